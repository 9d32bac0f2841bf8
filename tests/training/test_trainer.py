"""Networks on an accelerator: what is computed around them stays with them.

The meta device stands for one: its tensors mix with the CPU's as little as an accelerator's do.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdmd import AdamRecipe, Guided, PhasePlan
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.experts import OdeExpert
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives import (
    DistributionMatching,
    SubintervalScoreMatching,
    score_difference_weightings,
)
from pdmd.objectives.base import Models, Rollout
from pdmd.objectives.critics import MlpCritic
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

THERE = torch.device("meta")


def network():
    return DigitsTeacher(ImageTransformer(width=16, depth=1, heads=2), std=0.7).to(THERE)


def fake_players():
    teacher, fake, generator = (network() for _ in range(3))
    return Models(real=Guided(teacher, 2.0), fake=fake, expert=generator)


@pytest.mark.parametrize("weight", list(score_difference_weightings))
@pytest.mark.parametrize("index", [0, 1])
def test_objectives_stay_on_the_networks_device(weight, index, monkeypatch):
    # times there have no values to check
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    models, phase = fake_players(), PhasePlan.uniform(2)[index]
    condition = models.real.encode([0, 1, 2, None]).to(THERE)
    x = torch.randn(4, 1, 8, 8, device=THERE)
    expert = OdeExpert(models.expert, phase)
    rollout = Rollout(
        x_s=expert(x, condition), condition=condition, phase=phase, phase_input=x, exit_step=0
    )
    generator = torch.Generator().manual_seed(0)
    for objective in (
        DistributionMatching(score_difference_weightings[weight]()),
        SubintervalScoreMatching(),
    ):
        (loss,) = objective.losses(models, rollout, generator).values()
        assert loss.device.type == "meta" and loss.dtype == torch.float32
    assert models.real(x, 0.5).value.device.type == "meta"  # of no condition
    critic = MlpCritic(dim=64, classes=10).to(THERE)
    t = torch.rand(4, dtype=torch.float64)
    assert critic(x, t, condition).device.type == "meta"
    assert RectifiedFlow()(0.5)[0].device.type == "cpu"


class Waits(TorchDispatchMode):
    """Lists what makes the host wait for the accelerator, and counts copies to it."""

    def __init__(self):
        super().__init__()
        self.found, self.copies = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), str(func)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        there = [a for a in tensors if a.device == THERE]
        if there and any(word in name for word in ("local_scalar", "nonzero", "unique", "equal")):
            self.found.append(name)
        if isinstance(out, torch.Tensor) and "copy" in name and len(tensors) > len(there):
            if out.device == THERE:
                self.copies += 1
                if not (kwargs or {}).get("non_blocking"):
                    self.found.append(f"{name} of {[tuple(a.shape) for a in tensors]}")
        return out


class Flagged(torch.optim.Optimizer):
    """Stands for a fused optimizer, which there is none of on the meta device."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        assert self.found_inf.device == THERE


class EveryThird(Recorder):
    interval = 3


@pytest.mark.parametrize("updates_per_rollout", [1, 2])
@pytest.mark.parametrize("phase_inputs", [FreshPhaseInputs, PhaseInputBuffer])
def test_a_cycle_never_waits_for_the_device(phase_inputs, updates_per_rollout, monkeypatch):
    monkeypatch.setattr(AdamRecipe, "build", lambda recipe, parameters: Flagged(parameters))
    teacher, plan = Guided(network(), 2.0).to(THERE), PhasePlan.uniform(2, steps=2)
    trainer = PhaseTrainer(
        experts=[OdeExpert(network(), plan[1])],
        earlier=[OdeExpert(network(), plan[0])],
        teacher=teacher,
        fakes=[[network()]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(teacher.encode([0, 1, 2, 3]).to(THERE)),
        updates=10,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(ema=0.9, max_grad_norm=1.0, accumulate=2),
        rollouts=Rollouts(batch_size=4, phase_inputs=phase_inputs()),
        fake_training=FakeScoreTraining(
            updates=3, updates_per_rollout=updates_per_rollout, max_grad_norm=1.0
        ),
        session=Session(runtime=OneProcess(THERE), recorder=EveryThird(), max_consecutive_skips=0),
    )
    with Waits() as waits:
        trainer.cycle()
        trainer.cycle()
    assert not waits.found and waits.copies > 0
    with pytest.raises(RuntimeError, match="meta"):  # the third settles which steps were applied
        trainer.cycle()
