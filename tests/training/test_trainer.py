"""The trainer: which networks receive gradients, and that training stays on the device.

The meta device stands for an accelerator: its tensors cannot be mixed with those of the CPU.
"""

import pytest
import torch

from pdmd import (
    AdamRecipe,
    Guided,
    MlpDenoiser,
    PhasePlan,
    philox,
)
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.experts import FullGradient, OdeExpert
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives import (
    DistributionMatching,
    SubintervalScoreMatching,
    score_difference_weightings,
)
from pdmd.objectives.base import Models, Objective, Rollout
from pdmd.objectives.critics import MlpCritic
from pdmd.planning import Workload
from pdmd.randomness import RankGenerator
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining, FixedUpdates
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputs
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer
from tests.helpers.trainings import SMALL, Images, trainer_of
from tests.helpers.waiting import META, MetaOptimizer, Synchronizations


def network():
    return DigitsTeacher(ImageTransformer(width=16, depth=1, heads=2), std=0.7).to(META)


def meta_models():
    teacher, fake, generator = (network() for _ in range(3))
    return Models(real=Guided(teacher, 2.0), fake=fake, expert=generator)


@pytest.mark.parametrize("weight", list(score_difference_weightings))
@pytest.mark.parametrize("index", [0, 1])
def test_objectives_compute_on_the_device_of_the_networks(weight, index, monkeypatch):
    # times on the meta device have no values to check
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    models, phase = meta_models(), PhasePlan.uniform(2)[index]
    condition = models.real.encode([0, 1, 2, None]).to(META)
    x = torch.randn(4, 1, 8, 8, device=META)
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
    assert models.real(x, 0.5).value.device.type == "meta"  # unconditional
    critic = MlpCritic(dim=64, classes=10).to(META)
    t = torch.rand(4, dtype=torch.float64)
    assert critic(x, t, condition).device.type == "meta"
    assert RectifiedFlow()(0.5)[0].device.type == "cpu"


class EveryThird(Recorder):
    interval = 3


@pytest.mark.parametrize("updates_per_rollout", [1, 2])
@pytest.mark.parametrize("phase_inputs", [FreshPhaseInputs, PhaseInputBuffer])
def test_a_cycle_does_not_synchronize_with_the_device(
    phase_inputs, updates_per_rollout, monkeypatch
):
    if phase_inputs is FreshPhaseInputs and updates_per_rollout == 2:
        monkeypatch.setattr(philox, "_ON_DEVICE", 0)  # as if the noise were large
    monkeypatch.setattr(
        AdamRecipe, "build", lambda recipe, parameters, **_: MetaOptimizer(parameters)
    )
    teacher, plan = Guided(network(), 2.0).to(META), PhasePlan.uniform(2, steps=2)
    trainer = PhaseTrainer(
        experts=[OdeExpert(network(), plan[1])],
        earlier=[OdeExpert(network(), plan[0])],
        teacher=teacher,
        fakes=[[network()]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(teacher.encode([0, 1, 2, 3]).to(META)),
        updates=10,
        generator=RankGenerator.make(0),
        expert_training=ExpertTraining(ema=0.9, max_grad_norm=1.0, accumulate=2),
        rollouts=Rollouts(batch_size=4, phase_inputs=phase_inputs()),
        fake_training=FakeScoreTraining(
            updates=3, updates_per_rollout=updates_per_rollout, max_grad_norm=1.0
        ),
        session=Session(runtime=OneProcess(META), recorder=EveryThird(), max_consecutive_skips=0),
    )
    with Synchronizations() as syncs:
        trainer.cycle()
        trainer.cycle()
    assert not syncs.found and syncs.copies > 0
    with pytest.raises(
        RuntimeError, match="meta"
    ):  # the third cycle reads which steps were applied
        trainer.cycle()


def test_gradients_reach_the_trained_expert_and_nothing_else():
    from pdmd.distillation.experts import OdeExpert
    from pdmd.training.conditions import ConditionStream
    from pdmd.training.trainer import PhaseTrainer

    torch.manual_seed(0)
    teacher, earlier, own, fake = (MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(4))
    plan = PhasePlan.uniform(2, steps=2)
    trainer = PhaseTrainer(
        experts=[OdeExpert(own, plan[1])],
        earlier=[OdeExpert(earlier, plan[0])],
        teacher=teacher,
        fakes=[[fake]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(None),
        updates=1,
        generator=torch.Generator().manual_seed(0),
        expert_training=ExpertTraining(ema=0.9, max_grad_norm=1.0),
        rollouts=Rollouts(batch_size=8),
        fake_training=FakeScoreTraining(updates=0, max_grad_norm=1.0),
        session=Session(),
    )
    x, _ = trainer.phase_input()
    assert not x.requires_grad
    networks, found = (teacher, earlier, own, fake), []
    optimization = trainer.session.runtime.optimization
    step = optimization.step

    def record(optimizers, finite):
        found[:] = [[p.grad for p in network.parameters()] for network in networks]
        step(optimizers, finite)

    optimization.step = record
    trainer.cycle()
    of_teacher, of_earlier, of_own, of_fake = found
    assert all(g is not None for g in of_own) and any(g.abs().sum() > 0 for g in of_own)
    assert not [g for g in (*of_teacher, *of_earlier, *of_fake) if g is not None]
    before = [p.clone() for p in own.parameters()]
    trainer._apply("fake", trainer.fake_objective, [trainer.rollout(record=False)], 1, 0)
    of_teacher, of_earlier, of_own, of_fake = found
    assert all(g is not None for g in of_fake)
    assert not [g for g in (*of_teacher, *of_earlier, *of_own) if g is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    # Gradients are released after the update.
    assert all(p.grad is None for network in networks for p in network.parameters())


class Recorded(PhaseInputs):
    """Returns the rows of one tensor, a batch after the other, over and over."""

    def __init__(self, rows):
        self.rows, self.at = rows, 0

    def take(self):
        batch = self.rows.roll(-self.at, 0)[: self.source.batch]
        self.at += self.source.batch
        return batch, None


class Pull(Objective):
    """A deterministic loss whose gradient reaches a role's network."""

    name = "pull"

    def __init__(self, role):
        self.role = role

    def losses(self, models, rollout, generator):
        x_s, s = rollout.x_s, rollout.phase.t_end
        out = x_s if self.role == "expert" else models.fake(x_s, s, rollout.condition).value
        return {self.name: (out - 1).square().mean()}


@pytest.mark.parametrize("updates_per_rollout", [1, 3])
def test_accumulated_rollouts_update_as_one_large_batch(updates_per_rollout):
    rows = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    plan = PhasePlan.uniform(1, steps=2)

    def trained(batch_size, parts):
        torch.manual_seed(0)
        teacher, own, fake = (MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(3))
        trainer = PhaseTrainer(
            experts=[OdeExpert(own, plan[0])],
            earlier=[],
            teacher=teacher,
            fakes=[[fake]],
            generator_objective=Pull("expert"),
            fake_objective=Pull("fake"),
            conditions=ConditionStream(None),
            updates=2,
            generator=torch.Generator().manual_seed(0),
            expert_training=ExpertTraining(
                accumulate=parts, max_grad_norm=0.1, optimizer=AdamRecipe(lr=0.05)
            ),
            rollouts=Rollouts(
                batch_size=batch_size, truncation=FullGradient(), phase_inputs=Recorded(rows)
            ),
            fake_training=FakeScoreTraining(
                updates=3, accumulate=parts, updates_per_rollout=updates_per_rollout
            ),
            session=Session(),
        )
        if updates_per_rollout > 1:  # the expert's second rollout is not the fake score's
            scalars, networks = [trainer.cycle()], [fake]
        else:
            scalars, networks = [trainer.cycle() for _ in range(2)], [fake, own]
        values = [float(v) for s in scalars for name, v in s.items() if name.startswith("fake/")]
        return values, [p for network in networks for p in network.parameters()]

    losses, weights = trained(8, 1)
    for batch_size, parts in ((4, 2), (1, 8)):
        got, weights_got = trained(batch_size, parts)
        assert got == pytest.approx(losses, rel=1e-4)
        for a, b in zip(weights, weights_got, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    smaller, _ = trained(4, 1)
    assert smaller != pytest.approx(losses, rel=1e-4)  # the batch matters


class Measured(FixedUpdates):
    """Keeps the measurements of every fake update."""

    def __init__(self, number):
        super().__init__(number)
        self.seen = []

    def observe(self, measure):
        self.seen.append({name: value.clone() for name, value in measure().items()})


def test_measurements_are_means_over_accumulated_rollouts(monkeypatch):
    teacher, rule, single = Images(**SMALL), Measured(2), []
    work = Workload(
        plan=PhasePlan.uniform(1),
        truncation=FullGradient(),
        batch_size=4,
        fake_updates=1,
        fake_accumulate=3,
    )
    trainer = trainer_of(teacher, work, 0, fake_updates=rule)
    inner = SubintervalScoreMatching.diagnostics

    def diagnostics(self):
        single.append(inner(self)["relative_error"])
        return inner(self)

    monkeypatch.setattr(SubintervalScoreMatching, "diagnostics", diagnostics)
    trainer.cycle()
    assert len(single) == 6 and len(rule.seen) == 2
    for i, seen in enumerate(rule.seen):
        expected = torch.stack(single[3 * i : 3 * i + 3]).mean(0)
        assert torch.equal(seen["relative_error"], expected)
        assert not torch.equal(expected, single[3 * i + 2])
