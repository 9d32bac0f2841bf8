import pytest
import torch

from pdmd import (
    DistributionMatching,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    PhasePlan,
    Student,
    SubintervalScoreMatching,
    sample,
)
from pdmd.objectives import Repulsion, UniformTimes
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill
from tests.helpers.small_runs import untrained_student


def test_a_student_as_teacher_has_its_prompts(tmp_path):
    untrained_student().save(tmp_path / "student")
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


def test_a_students_time_range_is_the_union_of_its_experts():
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


def test_prompts_instead_of_a_condition_or_a_list_raise():
    with pytest.raises(ValueError, match="encode"):
        sample(untrained_student(), [0, 1])
    with pytest.raises(TypeError, match="such as a list: \\['01'\\]"):
        distill(untrained_student(), PhasePlan.uniform(1), "01")
    with pytest.raises(ValueError, match="no prompts"):
        distill(untrained_student(), PhasePlan.uniform(1), [])


def test_times_of_the_fake_score_are_checked_before_training():
    class Untouched(FromDenoiser):
        def expert(self, teacher, phase, finished):
            raise AssertionError("training has started")

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
        (dict(generator_objective=DistributionMatching().only(1)), "no loss in phase 2"),
        (dict(fake_objective=SubintervalScoreMatching().only(2)), "no loss in phase 1"),
        (dict(generator_objective=DistributionMatching() + Repulsion().only(3)), "the plan has 2"),
        (dict(seed=-1), "got -1"),
        (dict(seed=2**70), str(2**70)),
        (dict(init=FromDenoiser(MlpDenoiser.rectified_flow(dim=3))), r"shape \(3,\)"),
    ],
)
def test_invalid_settings_raise_before_training(settings, named):
    started_phases = []

    class Recording(Recorder):
        def on_phase_start(self, phase, phases, updates, done):
            started_phases.append(phase)

    teacher = MixtureTeacher.random(dim=2, classes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    with pytest.raises(ValueError, match=named):
        distill(
            teacher,
            PhasePlan.uniform(2),
            **{"init": FromDenoiser(network), "updates": 1, "recorder": Recording(), **settings},
        )
    assert not started_phases


def test_a_printed_student_states_log_snr_and_parameters():
    network = MlpDenoiser.rectified_flow(dim=2, width=8)
    size = sum(p.numel() for p in network.parameters())
    plan = PhasePlan.uniform(2)
    student = Student([OdeExpert(network, phase) for phase in plan])
    head, first, second, caption = str(student).splitlines()
    assert head.split()[:3] == ["phase", "t", "log-SNR"]
    assert "-inf to 0" in first and "0 to inf" in second
    assert first.endswith(f"MlpDenoiser  {size}") and second.endswith(f"MlpDenoiser  {size}")
    assert caption.endswith(f"{size} parameters in all")  # the experts share the network
    assert student._repr_html_().count("<td>MlpDenoiser</td>") == 2
    assert repr(student).startswith("Student(")
