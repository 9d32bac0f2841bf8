import gc
import weakref

import pytest
import torch

from pdmd import (
    FromDenoiser,
    FromPrevious,
    FullGradient,
    Guided,
    Joint,
    MlpDenoiser,
    OneFakeScorePerExitStep,
    PhasePlan,
    Student,
    Teacher,
    sample,
)
from pdmd.distillation.initializers import PerStep
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.trainer import PhaseTrainer
from tests.helpers.broken_teachers import DroppingTexts
from tests.helpers.distilling import distill
from tests.helpers.small_runs import StopAt, small, weights


def test_the_same_seed_gives_the_same_bits():
    assert torch.equal(weights(small()), weights(small()))
    assert not torch.equal(weights(small()), weights(small(seed=1)))


def test_a_student_saves_loads_and_is_distilled_again(tmp_path):
    student = small()
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    condition = loaded.encode([0, 1, 1])
    draws = [
        sample(s, condition, generator=torch.Generator().manual_seed(3)) for s in (student, loaded)
    ]
    assert torch.equal(*draws)
    assert loaded.plan == student.plan
    again = distill(
        loaded,
        PhasePlan.uniform(1),
        [0, 1],
        init=FromPrevious(),
        updates=2,
        fake_updates=1,
        batch_size=8,
    )
    assert sample(again, again.encode([1])).shape == (1, 2)


@pytest.mark.parametrize(
    "settings", [dict(curriculum=Joint(shared=True)), dict(curriculum=Joint())]
)
def test_phases_train_jointly(tmp_path, settings):
    student = small(**settings)
    shared = len({id(e.denoiser) for e in student.experts}) == 1
    assert shared == settings["curriculum"].shared
    student.save(tmp_path / "student")
    assert len(list((tmp_path / "student").glob("*.safetensors"))) == (1 if shared else 2)
    loaded = Student.load(tmp_path / "student")
    assert torch.equal(weights(loaded), weights(student))
    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, 5), **settings)
    resumed = small(checkpointer=Checkpointer(tmp_path / "c"), resume=True, **settings)
    assert torch.equal(weights(resumed), weights(student))


def test_a_network_per_step_and_a_fake_score_per_exit_step(tmp_path):
    settings = dict(
        plan=PhasePlan.uniform(1, steps=3),
        init=PerStep(FromDenoiser(MlpDenoiser.rectified_flow(dim=2, classes=2, width=8))),
        scores=OneFakeScorePerExitStep(),
    )
    student = small(**settings)
    networks = student.experts[0].denoiser.denoisers
    flat = [torch.cat([p.flatten() for p in n.parameters()]) for n in networks]
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[1], flat[2])
    student.save(tmp_path / "student")
    assert torch.equal(weights(Student.load(tmp_path / "student")), weights(student))


def test_fake_scores_that_would_not_train_raise():
    with pytest.raises(ValueError, match="FullGradient.*OneFakeScorePerExitStep.*untrained"):
        small(truncation=FullGradient(), scores=OneFakeScorePerExitStep())


class Broken(Teacher):
    def __init__(self, time_range=(0.0, 1.0)):
        from pdmd import RectifiedFlow

        super().__init__(
            schedule=RectifiedFlow(), kind="velocity", latent_shape=(2,), time_range=time_range
        )
        self.gain = torch.nn.Parameter(torch.tensor(float("nan")))

    def network(self, x_t, t, condition):
        return self.gain * x_t

    def encode(self, prompts):
        return None


def test_a_teacher_in_training_mode_is_distilled_without_dropout_and_stays_in_it():
    plan, found = PhasePlan.uniform(1), []
    for training in (False, True):
        teacher = DroppingTexts().train(training)
        teacher.text.requires_grad_(False)
        guided = Guided(teacher, 2.0)
        assert not guided.null["text"].requires_grad
        found.append(distill(guided, plan, updates=2, fake_updates=2, batch_size=4))
        assert all(module.training == training for module in teacher.modules())
        assert [p.requires_grad for p in teacher.text.parameters()] == [False, False]
        assert all(p.requires_grad and p.grad is None for p in teacher.letters.parameters())
    assert torch.equal(weights(found[0]), weights(found[1]))


def test_invalid_teachers_raise_before_training():
    with pytest.raises(ValueError, match="not finite"):
        distill(Broken(), PhasePlan.uniform(2))
    with pytest.raises(ValueError, match=r"t = 1, outside its range \[0.1, 0.9\]"):
        distill(Broken((0.1, 0.9)), PhasePlan.uniform(2))


class Networks(Recorder):
    """Keeps weak references to the networks in training, by phase."""

    def __init__(self, monkeypatch):
        self.left, self.now = [], []
        start = PhaseTrainer.__init__

        def watched(trainer, **arguments):
            self.left.append(sum(reference() is not None for reference in self.now))
            start(trainer, **arguments)
            self.now = [weakref.ref(p) for n in trainer.networks.values() for p in n.parameters()]

        monkeypatch.setattr(PhaseTrainer, "__init__", watched)


def test_the_networks_of_a_phase_are_freed_before_the_next_is_built(monkeypatch):
    gc.disable()
    try:
        networks = Networks(monkeypatch)
        small(plan=PhasePlan.uniform(3))
    finally:
        gc.enable()
    assert networks.left == [0, 0, 0]
