"""Custom teachers, through the library and the command line."""

import pytest
import torch

from pdmd import (
    CosineVP,
    FromDenoiser,
    LinearVP,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RectifiedFlow,
    Student,
    Teacher,
    VarianceExploding,
    sample,
    sample_ode,
)
from pdmd.cli.main import main
from pdmd.diffusion.schedules import same_process
from pdmd.teachers.base import teachers
from tests.helpers.distilling import distill

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


class Custom(Teacher):
    """An exact mixture: it has samples, but no weights."""

    def __init__(self, schedule=None, kind="velocity", time_range=(0.0, 1.0)):
        schedule = schedule or RectifiedFlow()
        super().__init__(schedule=schedule, kind=kind, latent_shape=(2,), time_range=time_range)
        self.exact = MixtureTeacher(
            torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 0.3, schedule=schedule, kind=kind
        )

    def network(self, x_t, t, condition):
        return self.exact.network(x_t, t, None)

    def sample(self, n, condition=None, *, generator=None):
        return self.exact.sample(n, generator=generator)

    def encode(self, prompts):
        return None


@pytest.fixture
def register():
    registered = []

    def register_custom(make):
        teachers.register("custom")(make)
        registered.append("custom")

    yield register_custom
    for name in registered:
        teachers.remove(name)


def run(folder, *words):
    return main(
        ["distill", "mixture", "--teacher.name=custom", "--out", str(folder), *TINY, *words]
    )


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (LinearVP(), "x0"),
        (VarianceExploding(5.0), "epsilon"),
        (CosineVP(), "v_prediction"),
        (LinearVP(), "score"),
    ],
)
def test_a_network_for_a_teacher_without_weights_is_on_its_schedule(
    tmp_path, register, schedule, kind
):
    register(lambda: Custom(schedule, kind))
    assert run(tmp_path / "run") == 0
    student = Student.load(tmp_path / "run" / "student")
    assert same_process(student.schedule, schedule)
    assert student.kind == ("x0" if kind == "score" else kind)
    assert sample(student, batch=3).isfinite().all()


def test_a_network_on_another_schedule_raises():
    network = MlpDenoiser(dim=2, schedule=RectifiedFlow(), width=8)
    with pytest.raises(ValueError, match="schedule=teacher.schedule"):
        distill(Custom(LinearVP(), "x0"), PhasePlan.uniform(2), init=FromDenoiser(network))


class Image(Custom):
    def __init__(self):
        super().__init__()
        self.latent_shape = (1, 4, 4)

    def network(self, x_t, t, condition):
        return x_t


class Captioned(Custom):
    def encode(self, prompts):
        from tensordict import TensorDict

        return TensorDict({"text": torch.zeros(len(prompts), 3)}, batch_size=[len(prompts)])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Custom(kind="epsilon"), "no step can be taken from a prediction of epsilon"),
        (Image, "latents of shape (1, 4, 4)"),
        (Captioned, "condition 'label'"),
    ],
)
def test_teachers_that_cannot_be_distilled_fail_before_training(
    tmp_path, register, capsys, make, named
):
    register(make)
    assert run(tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
    assert not any(tmp_path.iterdir())


def test_times_outside_the_time_range_fail_before_training(tmp_path, register, capsys):
    register(lambda: Custom(time_range=(0.05, 1.0)))
    words = ["--objective.margin=0.1", "--evaluate.teacher-steps"]
    assert run(tmp_path / "run", *words, "30") == 2
    error = capsys.readouterr().err.strip()
    assert "0.03333, outside its range [0.05, 1]" in error and "\n" not in error
    assert not any(tmp_path.iterdir())
    assert run(tmp_path / "run", *words, "20") == 0
    with pytest.raises(ValueError, match="take fewer steps"):
        sample_ode(Custom(time_range=(0.05, 1.0)), steps=21, batch=1)


class NotFinite(Custom):
    """A teacher whose output is not finite at times that no check evaluates."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def network(self, x_t, t, condition):
        bad = ((t > 0.6) & (t < 0.9))[:, None]
        return self.gain * super().network(x_t, t, condition).masked_fill(bad, torch.nan)


def test_a_non_finite_output_ends_the_run_with_one_line(tmp_path, register, capsys):
    register(NotFinite)
    assert run(tmp_path / "run", "--train.max-consecutive-skips", "0") == 1
    error = capsys.readouterr().err.strip()
    assert "phase 1, update 1" in error and "not finite" in error
    assert error.splitlines()[-1].startswith("pdmd: error: ") and "(no checkpoint" in error
