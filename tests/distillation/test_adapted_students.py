import copy
import json
import random

import pytest
import torch

from pdmd import Joint, LowRankRoles, PerStep, PhasePlan, Student
from pdmd.distillation.adapters import adapted_parts
from tests.distillation.test_adapters import FOUR, TWO, TWO_DIGITS, asked, digits, run, teacher_of
from tests.distillation.test_students import mutate
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import FAMILIES

STUDENTS = {
    "adapters": LowRankRoles(FOUR, FOUR),
    "per_step": PerStep(LowRankRoles(TWO)),
}


@pytest.mark.parametrize("init", STUDENTS)
@pytest.mark.parametrize("name", ["qwen_image", "wan_2.2_a14b"])
def test_a_saved_student_is_factors_alone(tmp_path, name, init):
    teacher = teacher_of(name)
    kind, arguments = FAMILIES[name]
    source = {"teacher": "wan" if "wan" in name else name, "arguments": dict(arguments)}
    plan = PhasePlan.from_timesteps([1, 0.875, 0.6, 0.3, 0], steps=2)
    if name == "qwen_image" and init == "adapters":
        plan = PhasePlan.uniform(2, steps=2)
    student = distill(
        teacher,
        plan,
        init=STUDENTS[init],
        updates=1,
        fake_updates=1,
        batch_size=2,
        source=source,
    )
    folder = tmp_path / "student"
    student.save(folder)
    weights = sum(p.nbytes for p in teacher.parameters())
    for i, expert in enumerate(student.experts):
        size = (folder / f"expert_{i + 1}.safetensors").stat().st_size
        own = sum(p.nbytes for p in expert.parameters())
        assert own < size < own + 300 * len(expert.denoiser.state_dict()) + 1000
        assert own < weights / 2
    entries = json.loads((folder / "student.json").read_text())["experts"]
    spec = FOUR if init == "adapters" else TWO
    assert entries[0]["adapter"] == {
        "rank": spec.rank,
        "alpha": spec.alpha,
        "targets": list(spec.targets),
    }
    loaded = Student.load(folder, teacher=teacher)
    with pytest.raises(ValueError, match="expert_1.safetensors adapts other weights than those"):
        Student.load(folder)  # whose teacher has the weights of its seed, not ours
    fresh = Student.load(folder, teacher=copy.deepcopy(teacher))
    for one in (loaded, fresh):
        assert one.state_dict().keys() == student.state_dict().keys()
        assert all(torch.equal(v, one.state_dict()[k]) for k, v in student.state_dict().items())
    bases = {id(part.base) for part in adapted_parts(loaded)}
    assert bases <= {id(m) for m in teacher.modules()} and len(bases) == (
        2 if "wan" in name else 1
    )
    bases = {id(part.base) for part in adapted_parts(fresh)}
    assert len(bases) == (2 if "wan" in name else 1)
    for t in (0.95, 0.7, 0.2):
        assert torch.equal(asked(loaded, teacher, t=t), asked(student, teacher, t=t))


def test_adapters_that_phases_share_load_over_the_networks_of_all_of_them(tmp_path):
    teacher = teacher_of("wan_2.2_a14b")
    plan = PhasePlan.from_timesteps([1, 0.9, 0.4, 0])  # the boundary is in the second phase
    student = distill(
        teacher,
        plan,
        init=LowRankRoles(FOUR, TWO),
        curriculum=Joint(shared=True),
        updates=2,
        fake_updates=1,
        batch_size=2,
    )
    student.save(tmp_path / "s")
    assert len(list((tmp_path / "s").glob("expert_*"))) == 1
    loaded = Student.load(tmp_path / "s", teacher=teacher)
    assert len({id(part.base) for part in adapted_parts(loaded)}) == 2
    for t in (0.95, 0.7, 0.2):
        assert torch.equal(asked(loaded, teacher, t=t), asked(student, teacher, t=t))


def test_weights_in_bfloat16_are_those_in_float32(tmp_path):
    base, student = adapted_student()
    student.save(tmp_path / "s")
    narrow = copy.deepcopy(base).to(torch.bfloat16)
    Student.load(tmp_path / "s", teacher=narrow)
    next(narrow.parameters()).data.mul_(1.5)
    with pytest.raises(ValueError, match="other weights"):
        Student.load(tmp_path / "s", teacher=narrow)


def adapted_student():
    torch.manual_seed(0)
    base = digits()
    _, _, student = run(
        base,
        LowRankRoles(FOUR, TWO_DIGITS),
        updates=1,
        source={"teacher": "digits", "arguments": {}},
    )
    return base, student


@pytest.mark.parametrize(
    "adapter",
    [
        None,
        [],
        {},
        {"rank": 4, "alpha": 8.0},
        {"rank": 0, "alpha": 8.0, "targets": []},
        {"rank": 10**12, "alpha": 8.0, "targets": []},
        {"rank": True, "alpha": 8.0, "targets": []},
        {"rank": 4, "alpha": 10**400, "targets": []},
        {"rank": 4, "alpha": -1, "targets": []},
        {"rank": 4, "alpha": 8.0, "targets": "qkv"},
        {"rank": 4, "alpha": 8.0, "targets": [3]},
        {"rank": 4, "alpha": 8.0, "targets": ["nowhere"]},
        {"rank": 4, "alpha": 8.0, "targets": ["qkv"]},
        {"rank": 5, "alpha": 8.0, "targets": []},
        {"rank": 4, "alpha": 8.0, "targets": [], "more": 1},
    ],
    ids=str,
)
def test_damaged_adapters_are_named(tmp_path, adapter):
    base, student = adapted_student()
    student.save(tmp_path / "s")
    path = tmp_path / "s" / "student.json"
    content = json.loads(path.read_text())
    content["experts"][0]["adapter"] = adapter
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        Student.load(tmp_path / "s", teacher=base)
    assert 0 < len(str(caught.value)) < 700


def test_a_mutated_description_of_adapters_is_refused_or_read(tmp_path):
    base, student = adapted_student()
    student.save(tmp_path / "s")
    path, rng, refused = tmp_path / "s" / "student.json", random.Random(0), 0
    good = json.loads(path.read_text())
    for _ in range(200):
        path.write_text(json.dumps(mutate(good, rng)))
        try:
            Student.load(tmp_path / "s", teacher=base)
        except ValueError as error:
            refused += 1
            assert 0 < len(str(error)) < 700
    assert refused > 100
