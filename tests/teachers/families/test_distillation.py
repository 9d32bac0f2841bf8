"""Families distilled, saved, resumed and run from the command line."""

import functools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd import (
    Guided,
    IntervalRouter,
    Joint,
    PhasePlan,
    Progressive,
    RoutedDenoiser,
    Student,
    sample,
    sample_ode,
)
from pdmd.cli.config import TeacherConfig
from pdmd.cli.main import main
from pdmd.evaluation.figures import side_by_side
from pdmd.teachers import RoutedTeacher, WanTeacher
from pdmd.teachers.base import teachers
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.recorder import Recorder
from pdmd.typing import join_conditions
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import QWEN, WAN
from tests.helpers.tiny_flows import FLOWS, flow

TINY = {"updates": 2, "fake_updates": 1, "batch_size": 2}


def test_prompts_of_different_lengths_join():
    short = TensorDict({"prompt": torch.ones(1, 2, 3), "label": torch.ones(1)}, batch_size=[1])
    long = TensorDict({"prompt": torch.ones(2, 4, 3), "label": torch.ones(2)}, batch_size=[2])
    for first, second in ((short, long), (long, short)):
        joined = join_conditions(first, second)
        assert joined["prompt"].sum() == 6 + 24 and joined["prompt"].shape == (3, 4, 3)
        assert torch.equal(joined["label"], torch.ones(3))
    many = [(short, long)[i % 2] for i in range(9)]
    pairwise = functools.reduce(join_conditions, many)
    joined = join_conditions(*many)
    assert joined.batch_size == (13,) and set(joined.keys()) == set(pairwise.keys())
    assert all(torch.equal(joined[key], pairwise[key]) for key in joined.keys())


cuts = st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True)


@given(cuts, st.integers(0, 100), st.integers(0, 100))
def test_a_router_serves_an_interval_where_one_expert_serves_all_of_it(inner, a, b):
    boundaries = [1.0, *(n / 100 for n in sorted(inner, reverse=True)), 0.0]
    router = IntervalRouter(boundaries)
    high, low = max(a, b) / 100, min(a, b) / 100
    if high == low:
        return
    inside = torch.linspace(low, high, 1001, dtype=torch.float64)[1:-1]
    served = router(inside).unique().tolist()
    # an inner boundary is on the cleaner side, which an interval that only touches it ignores
    assert router.serves(high, low) == (served[0] if len(served) == 1 else None)


@pytest.mark.parametrize(
    ("name", "timesteps", "networks"),
    [
        ("qwen_image", (1.0, 0.6, 0.0), ["QwenImageTeacher", "QwenImageTeacher"]),
        ("wan", (1.0, 0.875, 0.0), ["WanTeacher", "WanTeacher"]),
        ("wan", (1.0, 0.5, 0.0), ["RoutedDenoiser", "WanTeacher"]),
    ],
)
def test_a_family_is_distilled_saved_and_loaded_to_the_same_bits(
    tmp_path, name, timesteps, networks
):
    arguments = QWEN if name == "qwen_image" else WAN
    teacher = teachers.get(name)(**arguments)
    scale = 4.0 if name == "qwen_image" else (4.0, 3.0)
    plan = PhasePlan.from_timesteps(timesteps)
    source = {"teacher": name, "arguments": arguments}
    student = distill(Guided(teacher, scale), plan, source=source, **TINY)
    assert [type(e.denoiser).__name__ for e in student.experts] == networks
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    assert list(loaded.prompts) == list(teacher.prompts)
    condition = loaded.encode(loaded.prompts)

    def draw(one):
        return sample(one, condition, generator=torch.Generator().manual_seed(0))

    x = draw(student)
    assert x.isfinite().all() and torch.equal(x, draw(loaded))
    for expert in student.experts:  # it has learned something
        start = teacher.trainable_part(expert.phase.t_start, expert.phase.t_end)
        moved = [
            not torch.equal(a, b)
            for a, b in zip(expert.parameters(), start.parameters(), strict=True)
        ]
        assert any(moved)


class StopAfterAPhase(Recorder):
    def __init__(self, checkpointer):
        self.checkpointer = checkpointer

    def on_calibration(self, *arguments):
        self.checkpointer.stop_requested = True


@pytest.mark.parametrize(
    ("curriculum", "networks"),
    [
        (Progressive(), [WanTeacher, WanTeacher]),
        (Joint(), [WanTeacher, WanTeacher]),
        (Joint(shared=True), [RoutedDenoiser, RoutedDenoiser]),
    ],
    ids=str,
)
def test_phases_of_two_networks_resume_and_load_to_the_same_bits(tmp_path, curriculum, networks):
    teacher = teachers.get("wan")(**WAN)
    plan = PhasePlan.from_timesteps((1.0, 0.875, 0.0))
    options = {"curriculum": curriculum, "source": {"teacher": "wan", "arguments": WAN}, **TINY}
    straight = distill(teacher, plan, **options)
    assert [type(expert.denoiser) for expert in straight.experts] == networks
    options["checkpointer"] = Checkpointer(tmp_path / "checkpoint")
    recorder = StopAfterAPhase(options["checkpointer"])
    if isinstance(curriculum, Progressive):
        with pytest.raises(Interrupted):
            distill(teacher, plan, recorder=recorder, **options)
    else:  # there is nothing after the first phases: the checkpoint holds them all, finished
        distill(teacher, plan, recorder=recorder, **options)
    options["checkpointer"].stop_requested = False
    resumed = distill(teacher, plan, resume=True, **options)
    straight.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    condition = teacher.encode(teacher.prompts)
    first, *others = (
        sample(one, condition, generator=torch.Generator().manual_seed(0))
        for one in (straight, resumed, loaded)
    )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("name", "scales"), [("qwen_image", [3.0]), ("wan", [4.0, 3.0])])
def test_the_command_line_distills_a_family(tmp_path, capsys, name, scales):
    tiny = {**(QWEN if name == "qwen_image" else WAN), "num_layers": 1}
    arguments = "\n".join(f"{k} = {json.dumps(v)}" for k, v in tiny.items())
    (tmp_path / "tiny.toml").write_text(
        f'[teacher]\nname = "{name}"\nguidance = {scales}\n\n[teacher.arguments]\n{arguments}\n\n'
        "[plan]\nphases = 2\n\n[train]\nupdates = 1\nfake_updates = 1\nbatch_size = 2\n\n"
        "[evaluate]\nsamples = 100\nteacher_steps = 1\n"
    )
    run = tmp_path / "run"
    assert main(["distill", str(tmp_path / "tiny.toml"), "--out", str(run), "--no-progress"]) == 0
    assert ", ".join(map(str, scales)) in (run / "report.html").read_text()
    latents = tmp_path / "x.safetensors"
    assert main(["sample", str(run), "--n", "3", "--out", str(latents)]) == 0
    assert latents.is_file()
    assert main(["sample", str(run), "--n", "3"]) != 0
    assert "does not make images" in capsys.readouterr().err

    def rows(*words):
        out = tmp_path / "rows.json"
        words = ["evaluate", str(run), "--samples", "100", "--teacher-steps", "1", *words]
        assert main([*words, "--out", str(out)]) == 0
        return {row["method"]: row for row in json.loads(out.read_text())["rows"]}

    assert rows()["teacher"]["nfe"] == 2 and rows("--guidance", "1")["teacher"]["nfe"] == 1


def test_a_configuration_guides_every_network_by_its_own_scale():
    guided = TeacherConfig(name="wan", arguments=WAN, guidance=(4.0, 3.0)).build()
    assert isinstance(guided, Guided) and guided.scales == (4.0, 3.0)
    assert not isinstance(TeacherConfig(name="wan", arguments=WAN).build(), Guided)
    with pytest.raises(ValueError, match="3 guidance scales"):
        TeacherConfig(name="wan", arguments=WAN, guidance=(4.0, 3.0, 2.0)).build()


def test_a_configuration_routes_the_networks_by_a_registered_router():
    router = {"name": "interval", "boundaries": [1.0, 0.25, 0.0]}
    teacher = TeacherConfig(name="wan", arguments=WAN, router=router).build()
    assert isinstance(teacher, RoutedTeacher)
    assert teacher.part(0.5, 0.3) is teacher.routed.denoisers[0]
    with pytest.raises(ValueError, match="unknown router 'intervals'.*did you mean 'interval'"):
        TeacherConfig(name="wan", router={"name": "intervals"}).check_name()
    with pytest.raises(ValueError, match="unknown key 'teacher.router.boundary'"):
        TeacherConfig(name="wan", router={"name": "interval", "boundary": 0.9}).check_name()
    with pytest.raises(ValueError, match="teacher.router does not fit 'mixture'.*has one"):
        TeacherConfig(name="mixture", router=router).build()


def test_a_student_is_loaded_behind_the_router_of_its_teacher(tmp_path):
    plan = PhasePlan.from_timesteps((1.0, 0.5, 0.0))
    router = {"name": "interval", "boundaries": [1.0, 0.5, 0.0]}
    source = {"teacher": "wan", "arguments": WAN, "router": router}
    teacher = TeacherConfig(name="wan", arguments=WAN, router=router).build()
    student = distill(teacher, plan, source=source, **TINY)
    assert all(isinstance(expert.denoiser, WanTeacher) for expert in student.experts)
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    condition = teacher.encode(teacher.prompts)
    first, other = (
        sample(one, condition, generator=torch.Generator().manual_seed(0))
        for one in (student, loaded)
    )
    assert torch.equal(first, other)
    router["boundaries"] = [1.0, 0.5]
    student.source = source
    student.save(tmp_path / "broken")
    with pytest.raises(ValueError, match="boundaries must run from 1 to 0"):
        Student.load(tmp_path / "broken")


def test_a_grid_of_videos_shows_their_middle_frame():
    videos = torch.rand(4, 3, 5, 6, 8)
    shown = [
        side_by_side({"": images}, columns=2).axes[0].get_images()[0].get_array()
        for images in (videos, videos[:, :, 2])
    ]
    assert (shown[0] == shown[1]).all()


def test_sampling_steps_through_the_times_given():
    teacher = teachers.get("mixture")(dim=3)
    condition = teacher.encode([1, 2])

    def draw(**options):
        return sample_ode(
            teacher, condition, generator=torch.Generator().manual_seed(0), **options
        )

    assert torch.equal(draw(times=[1.0, 0.75, 0.5, 0.25, 0.0]), draw(steps=4))
    assert torch.equal(draw(times=[1.0, 0.75, 0.5]), draw(steps=2, t_end=0.5))
    for times in ([0.9, 0.0], [1.0], [1.0, 0.5, 0.5]):
        with pytest.raises(ValueError, match="strictly decreasing from 1"):
            draw(times=times)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_family_is_distilled_saved_and_loaded_to_the_same_bits(tmp_path, name):
    teacher, family = flow(name), FLOWS[name]
    source = {"teacher": family.registered, "arguments": family.arguments}
    student = distill(
        Guided(teacher, 3.0),
        PhasePlan.uniform(2, shift=teacher.shift),
        source=source,
        updates=1,
        fake_updates=1,
        batch_size=2,
    )
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    condition = loaded.encode(loaded.prompts)
    first, second = (
        sample(one, condition, generator=torch.Generator().manual_seed(0))
        for one in (student, loaded)
    )
    assert first.isfinite().all() and torch.equal(first, second)
