"""A student's folder says which kind and schedule its experts have."""

import json

import pytest
import torch

from pdmd import (
    CosineVP,
    LinearVP,
    MlpDenoiser,
    OdeExpert,
    PhasePlan,
    RectifiedFlow,
    Shifted,
    Student,
    VarianceExploding,
    sample,
)
from pdmd.files import own_digest


def network(schedule, kind="v_prediction"):
    torch.manual_seed(0)
    return MlpDenoiser(dim=2, width=8, schedule=schedule, kind=kind)


def student(schedule, kind="v_prediction"):
    return Student([OdeExpert(network(schedule, kind), p) for p in PhasePlan.uniform(2)])


SCHEDULES = [CosineVP(), LinearVP(), RectifiedFlow(), VarianceExploding(80.0)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_template_of_the_same_process_loads(tmp_path, schedule):
    saved = student(schedule)
    saved.save(tmp_path / "s")
    loaded = Student.load(tmp_path / "s", template=network(schedule))
    one, two = (
        sample(s, batch=3, generator=torch.Generator().manual_seed(0)) for s in (saved, loaded)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("other", [*SCHEDULES[1:], Shifted(CosineVP(), 1.5)])
def test_a_template_on_another_schedule_raises(tmp_path, other):
    student(CosineVP()).save(tmp_path / "s")
    with pytest.raises(ValueError, match="alpha = 0.7071.*but the MlpDenoiser at hand is on"):
        Student.load(tmp_path / "s", template=network(other))


def test_a_template_of_another_kind_raises(tmp_path):
    student(CosineVP()).save(tmp_path / "s")
    with pytest.raises(ValueError, match="predict v_prediction, but the MlpDenoiser at hand x0"):
        Student.load(tmp_path / "s", template=network(CosineVP(), "x0"))


def test_folders_of_older_versions_load(tmp_path):
    student(CosineVP()).save(tmp_path / "s")
    path = tmp_path / "s" / "student.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    for entry in content["experts"]:
        del entry["process"]
    path.write_text(json.dumps({**content, "sha256": own_digest(content)}))
    Student.load(tmp_path / "s", template=network(CosineVP()))
