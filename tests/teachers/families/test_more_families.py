"""Further families: each conforms, and samples, encodes and decodes as its pipeline does."""

import pytest
import torch

from pdmd import Guided
from pdmd.conformance import check
from pdmd.teachers.base import teachers
from pdmd.typing import LENGTHS
from tests.helpers.tiny_families import close, noise, ode
from tests.helpers.tiny_more_flows import MORE, arguments_of, more, pipeline_of, registered

PROMPTS = ["a cat", "a dog of much longer words"]
SIZE = ("height", "width", "frames")


@pytest.mark.parametrize("name", MORE)
def test_a_family_conforms(name):
    report = check(more(name), skip=["score"])
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in MORE for scale in MORE[name].get("scales", (1.0, 4.0))],
)
def test_a_family_samples_as_its_pipeline_does(name, scale):
    teacher, kind = more(name), MORE[name]
    condition, null = teacher.encode(teacher.prompts), teacher.encode([None])
    pipeline = pipeline_of(name)
    expected = kind["run"](pipeline, teacher, condition, null, scale=scale, steps=5)
    times = kind.get("times", lambda p: p.scheduler.sigmas.tolist())(pipeline)
    close(ode(Guided(teacher, scale), condition, times), expected.float(), kind.get("atol", 2e-5))


@pytest.mark.parametrize("name", MORE)
def test_a_family_loads_encodes_and_decodes_as_its_pipeline_does(tmp_path, name):
    teacher, kind = more(name), MORE[name]
    pipeline = pipeline_of(name, text=True)
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    same = {key: value for key, value in arguments_of(name).items() if key in SIZE}
    options = {"folder": str(tmp_path), "dtype": "float32", **same}
    if "length" in kind:
        options["text_length"] = kind["length"]
    loaded = teachers.get(registered(name))(prompts=str(tmp_path / "prompts.txt"), **options)
    assert loaded.shift == pytest.approx(teacher.shift)
    assert loaded.latent_shape == teacher.latent_shape
    random, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    with torch.no_grad():
        close(loaded(x, 0.5, random).value, teacher(x, 0.5, random).value, 1e-6)
    condition = loaded.encode([*loaded.prompts, None])
    expected = kind["encode"](pipeline, PROMPTS)
    assert set(condition.keys()) - {LENGTHS} == set(expected)
    for key, value in expected.items():
        close(condition[key].float(), value.float())
    rows = condition[:2], condition[2:]
    pictures = kind["run"](pipeline, teacher, *rows, scale=1.0, steps=2, output="pt")
    latents = kind["run"](pipeline, teacher, *rows, scale=1.0, steps=2)
    close(loaded.decode(latents.float()), pictures.float())
    named = teachers.get(registered(name))(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    tables = dict(teacher.named_buffers())
    for path, table in named.named_buffers():
        close(table, tables[path], 1e-6)


@pytest.mark.parametrize("name", MORE)
def test_a_folder_of_another_family_raises(tmp_path, name):
    other = "sana" if name == "chroma" else "chroma"
    pipeline_of(other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a \w+, and this teacher's is a|states no betas"):
        teachers.get(registered(name))(folder=str(tmp_path), meta=True)
