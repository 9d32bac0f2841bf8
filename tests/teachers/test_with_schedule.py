"""Change of schedule: closed forms, inversion, sampling, guidance and students."""

import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdmd import (
    CosineVP,
    DiscreteVP,
    Guided,
    LinearVP,
    MixtureTeacher,
    PhasePlan,
    RectifiedFlow,
    Shifted,
    Student,
    VarianceExploding,
    sample,
    sample_ode,
)
from pdmd.cli.config import TeacherConfig
from pdmd.cli.main import main
from pdmd.diffusion.predictions import KINDS
from pdmd.diffusion.schedules import Truncated, same_process
from pdmd.diffusion.solvers import ode_step
from pdmd.teachers import QwenImageTeacher, WithSchedule
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.with_schedule import equal_snr_time, on_schedule, schedules
from tests.helpers.distilling import distill
from tests.helpers.strategies import ddpm_levels, mixtures, teacher_of
from tests.helpers.strategies import schedules as any_schedule
from tests.helpers.strategies import times as any_time
from tests.helpers.tiny_families import QWEN, close, noise
from tests.helpers.tiny_flows import flow

SD = DiscreteVP(torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0))
KINDS_OF_PREDICTION = st.sampled_from(KINDS)


def assert_exact(left, right):
    scale = 1 + right.abs().max()
    assert float((left - right).abs().max() / scale) < 1e-10


def assume_common_snr(schedule, other, t):
    """Discards examples whose log-SNR is outside the range of the other schedule."""
    value = float(schedule.log_snr(t))
    assume(float(other.log_snr(0.998)) < value < float(other.log_snr(0.002)))


@given(mixtures(), any_schedule, any_schedule, any_time, KINDS_OF_PREDICTION, KINDS_OF_PREDICTION)
@settings(max_examples=150)
def test_every_kind_is_exact_on_the_other_schedule(data, own, other, t, kind, other_kind):
    assume_common_snr(other, own, t)
    teacher = WithSchedule(teacher_of(data, own, kind), other, kind=other_kind)
    truth = teacher_of(data, other, other_kind)
    x = torch.randn(
        4, teacher.latent_shape[0], generator=torch.Generator().manual_seed(0)
    ).double()
    alpha, sigma = other(t)
    x = (alpha * truth.sample(4).double() + sigma * x).double()
    assert_exact(teacher(x, t).value, truth(x, t).value)
    assert_exact(teacher(x, t).to("score"), truth(x, t).to("score"))


@given(mixtures(), any_schedule, any_schedule, any_time)
def test_a_change_of_schedule_and_back_is_the_identity(data, own, other, t):
    assume_common_snr(own, other, t)
    teacher = teacher_of(data, own, "velocity")
    back = WithSchedule(WithSchedule(teacher, other, kind="v_prediction"), own)
    x = torch.randn(3, teacher.latent_shape[0]).double()
    assert_exact(back(x, t).value, teacher(x, t).value)
    low, high = back.time_range
    assert low <= t <= high


@given(any_schedule, any_schedule)
def test_the_time_range_is_the_common_range_of_log_snr(own, other):
    teacher = WithSchedule(MixtureTeacher(torch.ones(1, 2), schedule=own), other)
    low, high = teacher.time_range
    if high < 1:
        assert float(other.log_snr(high)) == pytest.approx(float(own.log_snr(1.0)), abs=1e-6)
    else:
        assert float(other.log_snr(1.0)) >= float(own.log_snr(1.0)) - 1e-6
    if low > 0:
        assert float(other.log_snr(low)) == pytest.approx(float(own.log_snr(0.0)), abs=1e-6)
    x = torch.ones(1, 2).double()
    for t in (max(low, 1e-6), high):
        assert math.isfinite(float(equal_snr_time(t, other, own)))
        if float(other(t)[0]) > 0:
            assert teacher(x, t).value.isfinite().all()


def test_a_narrower_time_range_is_mapped_by_log_snr():
    own, other = CosineVP(), RectifiedFlow()
    teacher = MixtureTeacher(torch.ones(1, 2), schedule=own)
    teacher.time_range = (0.2, 0.7)
    low, high = WithSchedule(teacher, other).time_range
    for t, mapped in ((0.2, low), (0.7, high)):
        tangent = math.tan(math.pi / 2 * t)
        assert mapped == pytest.approx(tangent / (1 + tangent), abs=1e-12)
    back = WithSchedule(WithSchedule(teacher, other), own)
    assert back.time_range == pytest.approx((0.2, 0.7), abs=1e-12)


def test_schedules_without_a_common_log_snr_raise():
    teacher = MixtureTeacher(torch.ones(1, 2), schedule=Truncated(RectifiedFlow(), 0.1))
    clean = Shifted(VarianceExploding(80.0, 50.0), 1.0)
    with pytest.raises(ValueError, match="does not contain"):
        WithSchedule(teacher, clean)


PAIRS = [
    (RectifiedFlow(), CosineVP(), "v_prediction"),
    (CosineVP(), RectifiedFlow(), "velocity"),
    (LinearVP(), Truncated(RectifiedFlow(), 0.99), "velocity"),
    (RectifiedFlow(), LinearVP(), "epsilon"),
]


@pytest.mark.parametrize(("own", "other", "kind"), PAIRS)
def test_ddim_commutes_with_the_change_of_schedule(own, other, kind):
    """Steps through equal log-SNRs give equal trajectories, up to scale."""
    teacher = MixtureTeacher.random(dim=3, classes=0, schedule=own)
    converted = WithSchedule(teacher, other, kind=kind)
    times = [0.98, 0.9, 0.7, 0.4, 0.2, 0.05]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double()
    t = float(equal_snr_time(times[0], other, own))
    y = x * torch.hypot(*own(t)) / torch.hypot(*other(times[0]))
    for t, s in zip(times, times[1:], strict=False):
        x = ode_step(converted(x, t), s)
        inner_t, inner_s = (float(equal_snr_time(v, other, own)) for v in (t, s))
        y = ode_step(teacher(y, inner_t), inner_s)
    assert_exact(y, x * torch.hypot(*own(inner_s)) / torch.hypot(*other(s)))


def test_samples_of_both_schedules_agree_in_the_limit():
    teacher = MixtureTeacher.random(dim=2, classes=0, modes=2, schedule=CosineVP(), seed=1)
    converted = WithSchedule(teacher, RectifiedFlow())

    def draw(denoiser, steps):
        return sample_ode(
            denoiser, batch=32, steps=steps, generator=torch.Generator().manual_seed(0)
        )

    errors = [float((draw(teacher, n) - draw(converted, n)).abs().mean()) for n in (10, 40, 160)]
    assert errors[0] > 5e-3 and errors[2] < 2e-3
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_standard_guidance_commutes_with_the_change_of_schedule(scale):
    teacher = MixtureTeacher.random(dim=4, classes=3, schedule=LinearVP())
    teacher.kind = "epsilon"
    condition = teacher.encode([0, 1, 2, None])
    x, t = torch.randn(4, 4).double(), torch.tensor([0.3, 0.6, 0.8, 0.9]).double()
    inside = WithSchedule(Guided(teacher, scale), RectifiedFlow())
    outside = Guided(WithSchedule(teacher, RectifiedFlow()), scale)
    assert_exact(inside(x, t, condition).value, outside(x, t, condition).value)
    assert inside.evaluations == outside.evaluations == (1 if scale == 1 else 2)
    assert unguided(inside) is unguided(outside) is teacher


def test_another_guidance_rule_must_be_applied_inside():
    teacher = QwenImageTeacher.from_config(**QWEN)
    x, condition = torch.randn(2, *teacher.latent_shape), teacher.encode(["random 0", None])
    outside = Guided(WithSchedule(teacher, CosineVP(), kind="v_prediction"), 3.0)
    with pytest.raises(ValueError, match="apply it inside: WithSchedule"):
        outside(x, 0.5, condition)
    inside = WithSchedule(Guided(teacher, 3.0), CosineVP())
    own = Guided(teacher, 3.0)
    with torch.no_grad():
        alpha, sigma = CosineVP()(0.5)
        value = own(x / (alpha + sigma).float(), 0.5, condition)
        close(inside(x, 0.5, condition).to("x0"), value.to("x0"), 1e-5)


def test_guidance_outside_keeps_the_first_image():
    teacher = flow("wan_i2v")
    condition = teacher.encode(teacher.prompts[:2])
    x, t = noise(teacher, 2), torch.tensor([0.3, 0.9])
    inside = WithSchedule(Guided(teacher, 3.0), CosineVP(), kind="v_prediction")
    outside = Guided(WithSchedule(teacher, CosineVP(), kind="v_prediction"), 3.0)
    with torch.no_grad():
        close(outside(x, t, condition).value, inside(x, t, condition).value)
    assert inside.conditions(teacher.prompts[:2]).keys() == condition.keys()


def test_trainable_copies_are_on_the_new_schedule():
    teacher = DigitsTeacher.from_package()
    converted = WithSchedule(Guided(teacher, 2.0), CosineVP(), kind="v_prediction")
    x, condition = torch.randn(2, 1, 8, 8), teacher.encode([3, None])
    part = converted.trainable_part(0.8, 0.5)
    assert same_process(part.schedule, CosineVP()) and part.kind == "v_prediction"
    value = part(x, 0.6, condition).value
    close(
        value, WithSchedule(teacher, CosineVP(), kind="v_prediction")(x, 0.6, condition).value, 0
    )
    value.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    close(WithSchedule(teacher, CosineVP()).decode(x), teacher.decode(x), 0)


def test_the_time_range_of_stable_diffusion_ends_at_its_noisiest_level():
    teacher = MixtureTeacher.random(dim=2, classes=0, schedule=SD)
    teacher.kind, teacher.time_range = "epsilon", (1e-3, 1.0)
    flow = WithSchedule(teacher, RectifiedFlow())
    assert flow.time_range == pytest.approx((0.0284, 0.9361), abs=1e-3)
    plan = PhasePlan.uniform(2)
    with pytest.raises(ValueError, match=r"t = 1, outside its range \[0.02.*, 0.936.*reach"):
        distill(flow, plan)
    with pytest.raises(ValueError, match="outside its range"):
        sample_ode(flow, batch=1)
    reached = WithSchedule.reach(teacher, RectifiedFlow())
    assert reached.time_range[1] == 1.0
    alpha, sigma = reached.schedule(1.0)
    teacher_alpha, teacher_sigma = SD(1.0)
    assert float(sigma / alpha) == pytest.approx(float(teacher_sigma / teacher_alpha), rel=1e-9)
    assert float(alpha + sigma) == pytest.approx(1.0)
    times = [*torch.linspace(1, 0.031, 200).tolist(), 0.0]
    with pytest.raises(ValueError, match=r"at t = 0.02, outside its range \[0.03"):
        sample_ode(reached, batch=1, steps=50)
    # both start from the same noise, and in the limit end at the same sample
    draws = [
        sample_ode(d, batch=64, times=times, generator=torch.Generator().manual_seed(0))
        for d in (teacher, reached)
    ]
    assert float((draws[0] - draws[1]).abs().mean()) < 2e-2
    assert WithSchedule.reach(MixtureTeacher.random(), CosineVP()).time_range == (0.0, 1.0)


def test_times_beyond_the_noise_of_the_teacher_raise():
    flow = WithSchedule(MixtureTeacher.random(dim=2, classes=0, schedule=SD), RectifiedFlow())
    with pytest.raises(ValueError, match="outside the range of this schedule"):
        flow(torch.zeros(1, 2), 0.95)
    with pytest.raises(ValueError, match="outside the range of this schedule"):
        flow(torch.zeros(1, 2), 1.0)  # pure noise: an infinite log-SNR


@given(st.floats(0.05, 1.0), st.floats(0.001, 1.0))
def test_a_truncated_schedule_equals_its_base_up_to_its_end(t_max, t):
    base = CosineVP()
    cut = Truncated(base, t_max)
    for own, whole in zip(cut(t), base(t_max * t), strict=True):
        assert float(own) == float(whole)
    ahead, behind = min(t + 1e-6, 1.0), t - 1e-6
    slope = [
        float((a - b) / (ahead - behind)) for a, b in zip(cut(ahead), cut(behind), strict=True)
    ]
    assert [float(d) for d in cut.derivatives(t)] == pytest.approx(slope, abs=1e-4)
    assert float(cut.t_from_log_snr(cut.log_snr(t))) == pytest.approx(t, rel=1e-9)
    if t_max < 0.999:
        with pytest.raises(ValueError, match="outside the range of this schedule"):
            cut.t_from_log_snr(float(cut.log_snr(1.0)) - 1.0)


@pytest.mark.parametrize("t_max", [0.0, -1.0, 1.1, math.nan])
def test_a_truncation_outside_the_unit_interval_raises(t_max):
    with pytest.raises(ValueError, match="t_max (must be in|is nan)"):
        Truncated(RectifiedFlow(), t_max)


def test_the_standard_deviation_of_the_prior():
    assert RectifiedFlow().prior_std() == 1.0
    assert Shifted(RectifiedFlow(), 3.0).prior_std() == 1.0
    assert SD.prior_std() == pytest.approx(1.0, abs=1e-12)
    assert DiscreteVP(ddpm_levels(100, True)).prior_std() == 1.0
    assert VarianceExploding(80.0).prior_std() == pytest.approx(math.hypot(80, 1))
    assert Truncated(RectifiedFlow(), 0.9).prior_std() == pytest.approx(math.hypot(0.9, 0.1))


TINY = [
    "--train.updates=2",
    "--train.fake-updates=1",
    "--train.batch-size=8",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=4",
    "--network.updates=5",
    "--plan.phases=2",
    "--no-progress",
]


@pytest.mark.parametrize("name", ["digits", "mixture"])
def test_a_schedule_is_chosen_by_a_flag_and_recorded_in_the_student(tmp_path, name, capsys):
    words = ["--teacher.schedule", "cosine", "--teacher.guidance", "2", "--out"]
    assert main(["distill", name, *words, str(tmp_path / "run"), *TINY]) == 0
    source = json.loads((tmp_path / "run" / "student" / "student.json").read_text())["source"]
    assert source["schedule"] == {"name": "cosine", "end": "noise"}
    student = Student.load(tmp_path / "run" / "student")
    assert same_process(student.schedule, CosineVP()) and student.kind == "v_prediction"
    assert sample(student, student.encode([1, 2])).isfinite().all()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--samples=100", "--teacher-steps=4"]) == 0
    table = capsys.readouterr().out
    config = TeacherConfig(name=name, guidance=(2.0,), schedule="cosine")
    assert "teacher" in table and same_process(config.build().schedule, CosineVP())
    path = tmp_path / "run" / "student" / "student.json"
    damaged = json.loads(path.read_text())
    damaged["source"]["schedule"] = {"name": "cosine", "end": "nowhere"}
    path.write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match="a name and an end"):
        Student.load(path.parent)


def test_few_steps_on_another_schedule_give_other_samples():
    teacher = MixtureTeacher.random(dim=2, classes=2)
    few = dict(steps=3, condition=teacher.encode([0, 1] * 8))
    draws = [
        sample_ode(d, generator=torch.Generator().manual_seed(0), **few)
        for d in (teacher, on_schedule(teacher, "cosine"))
    ]
    assert (draws[0] - draws[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--teacher.schedule", "cosin"], "unknown schedule 'cosin': did you mean 'cosine'?"),
        (["--teacher.schedule-end", "teacher"], "needs a schedule"),
    ],
)
def test_invalid_schedules_are_one_line(tmp_path, capsys, words, named):
    assert main(["distill", "digits", "--out", str(tmp_path / "run"), *TINY, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not any(tmp_path.iterdir())


def test_a_custom_schedule_is_registered():
    schedules.register("custom")(lambda: Shifted(CosineVP(), 2.0))
    try:
        teacher = on_schedule(MixtureTeacher.random(), "custom")
        assert same_process(teacher.schedule, Shifted(CosineVP(), 2.0))
    finally:
        schedules.remove("custom")
