"""Further families: each conforms, and samples, encodes and decodes as its pipeline does."""

import pytest
import torch

from pdmd import Guided, PhasePlan, Student, sample
from pdmd.conformance import check
from pdmd.teachers.base import teachers
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline
from pdmd.typing import LENGTHS
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import close, noise, ode
from tests.helpers.tiny_more_flows import MORE, arguments_of, more, pipeline_of, registered

PROMPTS = ['a "cat"', "a dog of much longer words"]
NAMES = dict.fromkeys(map(registered, MORE))
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
def test_a_family_of_another_size_is_the_one_built_at_that_size(name):
    teacher, given = more(name), arguments_of(name)
    sizes = {key: 2 * teacher.options[key] for key in ("height", "width")}
    if "frames" in given:
        sizes["frames"] = teacher.options["frames"] + 16
    if name == "kandinsky5":
        sizes |= {"height": 480, "width": 480}  # whose positions have another scale
    built, resized = (
        teachers.get(registered(name))(**{**given, **sizes}),
        teacher.with_size(**sizes),
    )
    assert resized.latent_shape == built.latent_shape != teacher.latent_shape
    assert resized.shift == built.shift
    x, condition = noise(resized, 1), teacher.encode(teacher.prompts[:1])
    same = built if registered(name) == "ltx2" else teacher  # whose samples are of one size
    with torch.no_grad():
        close(same(x, 0.5, condition).value, resized(x, 0.5, condition).value, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_pipeline_is_of_its_family_alone(tmp_path, name):
    folder = str(write_tiny_pipeline(name, tmp_path))
    own = teachers.get(name)(folder=folder, meta=True, **TINY[name].options)
    assert own.latent_shape[0] == teachers.get(name)(**outline(name)).latent_shape[0]
    other = "sana" if name == "chroma" else "chroma"
    with pytest.raises(ValueError, match=r"is a \w+, and this teacher's is a|states no betas"):
        teachers.get(other)(folder=folder, meta=True)


def outline(name):
    return {**TINY[name].sizes, **TINY[name].options, "meta": True, "random_prompts": 1}


FAST = ("cogvideox_5b", "kandinsky5")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MORE]
)
def test_a_family_is_distilled_saved_and_loaded_to_the_same_bits(tmp_path, name):
    teacher, plan = more(name), PhasePlan.uniform(2)
    source = {"teacher": registered(name), "arguments": arguments_of(name)}
    student = distill(teacher, plan, source=source, updates=1, fake_updates=1, batch_size=2)
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    condition = loaded.encode(loaded.prompts)
    first, second = (
        sample(one, condition, generator=torch.Generator().manual_seed(0))
        for one in (student, loaded)
    )
    assert first.isfinite().all() and torch.equal(first, second)
