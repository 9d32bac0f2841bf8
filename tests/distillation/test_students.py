import copy
import json
import math
import random

import pytest
import torch

from pdmd import (
    DistributionMatching,
    FromDenoiser,
    IntervalRouter,
    LinearVP,
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    PhasePlan,
    RoutedDenoiser,
    Student,
    SubintervalScoreMatching,
    sample,
)
from pdmd.cli.main import main
from pdmd.objectives import Repulsion, UniformTimes
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill

SOURCE = {
    "teacher": "mixture",
    "arguments": {"dim": 2, "classes": 2, "modes": 2},
    "guidance": 1.0,
    "network": {"name": "mlp", "arguments": {"dim": 2, "classes": 2, "width": 8}},
}


def student(steps=1, seed=0):
    torch.manual_seed(seed)
    plan = PhasePlan.uniform(2, steps=steps)
    experts = [
        OdeExpert(MlpDenoiser.rectified_flow(dim=2, classes=2, width=8), phase) for phase in plan
    ]
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    return Student(experts, encode=teacher.encode, prompts=teacher.prompts, source=SOURCE)


JUNK = [None, True, -1, 0, 3, 10**400, 10**12, 0.5, math.nan, math.inf, -math.inf, "", "cat"]
JUNK += ["digits", "mixture", "mlp", "a\0b", "../x", [], [1], [1, "a"], [[1]], {}, {"a": 1}]


def places(data, path=()):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutate(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(places(data)))
        place = data
        for key in path:
            place = place[key]
        chance = rng.random()
        if chance < 0.7:
            place[last] = copy.deepcopy(rng.choice(JUNK))
        elif chance < 0.85:
            del place[last]
        elif isinstance(place, dict):
            place[f"{last}_"] = rng.choice(JUNK)
    return data


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_mutated_description_ends_in_one_line(tmp_path, capsys):
    folder = tmp_path / "student"
    student(steps=2).save(folder)
    path, rng, refused = folder / "student.json", random.Random(0), 0
    good = json.loads(path.read_text())
    for i in range(600):
        path.write_text(json.dumps(mutate(good, rng)))
        try:
            Student.load(folder)
            continue
        except ValueError as error:
            refused += 1
            assert 0 < len(str(error)) < 700
        if i % 6 == 0:
            out = tmp_path / "x.safetensors"
            assert main(["sample", str(folder), "--n", "2", "--out", str(out)]) == 2
            error = capsys.readouterr().err.strip()
            assert error.startswith("pdmd: error: ") and "\n" not in error and not out.exists()
    assert refused > 400


@pytest.mark.parametrize("name", ["student.json", "expert_1.safetensors"])
def test_flipped_bytes_are_noticed(tmp_path, name):
    folder, rng = tmp_path / "student", random.Random(1)
    student().save(folder)
    content = (folder / name).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        if name == "student.json":  # where a number may turn into another
            damaged[rng.randrange(len(damaged))] = 0xFF
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Student.load(folder)


def test_a_student_saved_again_keeps_what_lies_beside_it(tmp_path):
    folder = tmp_path / "student"
    student().save(folder)
    (folder / "notes.md").write_text("mine")
    (folder / "expert_9.safetensors").write_bytes(b"left from a longer plan")
    other = student(seed=1)
    other.save(folder)
    assert {p.name for p in folder.iterdir()} == {
        "student.json",
        "expert_1.safetensors",
        "expert_2.safetensors",
        "notes.md",
    }
    loaded = Student.load(folder)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_student_teaches_the_prompts_it_knows(tmp_path):
    student().save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    assert list(loaded.prompts) == [0, 1]
    seen = set()

    class Spy(DistributionMatching):
        def losses(self, models, rollout, generator):
            seen.update(rollout.condition["label"].tolist())
            return super().losses(models, rollout, generator)

    again = distill(
        loaded,
        PhasePlan.uniform(1),
        generator_objective=Spy(),
        updates=2,
        fake_updates=1,
        batch_size=16,
    )
    assert seen == {0, 1} and list(again.prompts) == [0, 1]


def test_a_student_answers_where_any_of_its_experts_does():
    plan = PhasePlan.uniform(2)
    ranges = [(0.5, 1.0), (0.0, 0.6)]
    experts = []
    for phase, time_range in zip(plan, ranges, strict=True):
        denoiser = MlpDenoiser.rectified_flow(dim=2, width=8)
        denoiser.time_range = time_range
        experts.append(OdeExpert(denoiser, phase))
    assert Student(experts).time_range == (0.0, 1.0)


def test_a_boundary_in_float32_reaches_the_expert_that_starts_there():
    plan = PhasePlan.from_timesteps([1, 0.6, 0])
    assert float(torch.tensor(0.6)) > 0.6
    torch.manual_seed(0)
    networks = [MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(2)]
    whole = Student([OdeExpert(n, p) for n, p in zip(networks, plan, strict=True)])
    x, t = torch.randn(3, 2), torch.full((3,), 0.6)
    assert torch.equal(whole(x, t).value, networks[1](x, t).value)


def test_prompts_in_place_of_a_condition_or_a_list_are_refused():
    with pytest.raises(ValueError, match="encode"):
        sample(student(), [0, 1])
    with pytest.raises(ValueError, match="pass a list"):
        distill(student(), PhasePlan.uniform(1), "01")
    with pytest.raises(ValueError, match="no prompts"):
        distill(student(), PhasePlan.uniform(1), [])


def test_times_of_the_fake_score_are_checked_before_work():
    class Untouched(FromDenoiser):
        def expert(self, teacher, phase, finished):
            raise AssertionError("work has begun")

    from pdmd import Disjoint

    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    with pytest.raises(ValueError, match="phase 2: a time margin of 0.3"):
        distill(
            MixtureTeacher.random(dim=2, classes=2),
            PhasePlan.from_timesteps([1, 0.5, 0.45, 0], score_range=Disjoint()),
            init=Untouched(network),
            fake_objective=SubintervalScoreMatching(times=UniformTimes(0.3)),
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(generator_objective=DistributionMatching().only(0)), "no loss in phase 2"),
        (dict(fake_objective=SubintervalScoreMatching().only(1)), "no loss in phase 1"),
        (dict(generator_objective=DistributionMatching() + Repulsion().only(2)), "the plan has 2"),
        (dict(seed=-1), "got -1"),
        (dict(seed=2**70), str(2**70)),
        (dict(init=FromDenoiser(MlpDenoiser.rectified_flow(dim=3))), r"shape \(3,\)"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_work(settings, named):
    heard = []

    class Deaf(Recorder):
        def on_phase_start(self, phase, phases, updates, done):
            heard.append(phase)

    teacher = MixtureTeacher.random(dim=2, classes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    with pytest.raises(ValueError, match=named):
        distill(
            teacher,
            PhasePlan.uniform(2),
            **{"init": FromDenoiser(network), "updates": 1, "recorder": Deaf(), **settings},
        )
    assert not heard


def test_routed_denoisers_are_checked():
    networks = [MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(2)]
    with pytest.raises(ValueError, match="3 boundaries"):
        RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0.2, 0]))
    networks[1].schedule = LinearVP()
    with pytest.raises(ValueError, match="one schedule"):
        RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0]))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(means=torch.tensor([[0.0], [math.nan]])), "means must be finite"),
        (dict(stds=[0.1, 0.2, 0.3]), r"shape \(3,\)"),
        (dict(stds=math.inf), "inf"),
        (dict(weights=[1.0, math.inf]), "inf"),
    ],
)
def test_mixtures_are_checked(settings, named):
    with pytest.raises(ValueError, match=named):
        MixtureTeacher(**{"means": torch.zeros(2, 1), **settings})
