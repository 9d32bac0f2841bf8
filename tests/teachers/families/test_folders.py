"""Families from folders, text and arguments."""

import json

import pytest
import torch

from pdmd.cli.main import main
from pdmd.planning import footprint
from pdmd.teachers.base import teachers
from pdmd.typing import LENGTHS
from tests.helpers.tiny_encoders import SAME, TEXTS
from tests.helpers.tiny_families import close, family, noise, qwen_pipeline
from tests.helpers.tiny_flows import FLOWS, flow

REGISTERED = [*TEXTS, "wan_i2v"]


PROMPTS = ["a cat", "a dog of much longer words"]


@pytest.mark.parametrize("name", [n for n in FLOWS if FLOWS[n].registered in TEXTS])
def test_a_family_loads_from_its_pipelines_folder(tmp_path, name):
    teacher, kind = flow(name), FLOWS[name]
    text, encoded = TEXTS[kind.registered][0]
    pipeline = kind.pipeline(teacher, text=text(), **kind.scheduler)
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    same = {k: kind.arguments[k] for k in SAME if k in kind.arguments}
    options = {"folder": str(tmp_path), "dtype": "float32", **same}
    loaded = teachers.get(kind.registered)(prompts=str(tmp_path / "prompts.txt"), **options)
    assert loaded.shift == pytest.approx(teacher.shift)
    assert loaded.latent_shape == teacher.latent_shape
    random, x = teacher.encode(teacher.prompts), noise(teacher, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.5, random).value, teacher(x, 0.5, random).value)
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    condition = loaded.encode([*loaded.prompts, None])
    expected = encoded(pipeline, PROMPTS)
    assert set(condition.keys()) - {LENGTHS} == set(expected)
    for key, value in expected.items():
        close(condition[key].float(), value.float())
    null = condition[2:]
    pictures = kind.run(pipeline, teacher, condition[:2], null, scale=3.0, steps=2, output="pt")
    latents = kind.run(pipeline, teacher, condition[:2], null, scale=3.0, steps=2)
    close(loaded.decode(latents), pictures)
    named = teachers.get(kind.registered)(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    assert {b.device.type for b in named.buffers()} <= {"cpu"}
    tables = dict(teacher.named_buffers())
    for path, table in named.named_buffers():
        close(table, tables[path], 1e-6)


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("name", REGISTERED)
def test_a_folder_of_another_family_is_refused(tmp_path, name, meta):
    teacher = family("qwen_image")
    qwen_pipeline(teacher).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a QwenImageTransformer2DModel, and this teacher's"):
        teachers.get(name)(folder=str(tmp_path), meta=meta)


@pytest.mark.parametrize("name", REGISTERED)
def test_the_command_line_plans_a_tiny_one(tmp_path, name):
    arguments = "\n".join(f"{k} = {json.dumps(v)}" for k, v in FLOWS[name].arguments.items())
    (tmp_path / "tiny.toml").write_text(
        f'[teacher]\nname = "{name}"\nguidance = [3.0]\n\n[teacher.arguments]\n{arguments}\n\n'
        "[plan]\nphases = 2\n"
    )
    figures = tmp_path / "plan.json"
    assert main(["plan", str(tmp_path / "tiny.toml"), "--json", str(figures)]) == 0
    parameters = sum(p.numel() for p in flow(name).parameters())
    assert str(parameters) in figures.read_text()


@pytest.mark.parametrize(
    ("name", "splits"), [("ltx", False), ("z_image", False), ("sd3", True), ("flux", True)]
)
def test_only_what_a_plan_splits_is_planned_to_be_split(name, splits):
    teacher = flow(name)
    measured = footprint.measure_footprint(teacher, teacher.encode(["random 0"]), train=False)
    assert (measured.heads > 0) == splits and len(measured.units) > 0


@pytest.mark.parametrize("train", [False, True])
def test_a_network_of_lists_is_planned_by_its_peaks(monkeypatch, train):
    teacher = flow("z_image")
    condition = teacher.encode(["random 0"])

    def peaks():
        course = footprint.measure_footprint(teacher, condition, train=train).training_memory
        live = course.bytes(6, (1, 1, 1, 1, 1))
        return live[: course.forward_end + 1].max(), live[course.forward_end :].max()

    predicted = peaks()  # from other batches than the one asked
    monkeypatch.setattr(footprint, "_BATCHES", (6, 8))
    assert predicted == pytest.approx(peaks(), rel=0.01)
