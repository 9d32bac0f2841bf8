"""Batches of a training on several ranks: rank by rank in one process.

The networks do not change here, so that no rank needs another.
"""

import pytest
import torch

from pdmd import (
    MixtureTeacher,
    MlpDenoiser,
    PhaseInputBuffer,
    PhasePlan,
    RenoisingExpert,
    philox,
)
from pdmd.distributed.communicator import SingleRank
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives.base import Objective
from pdmd.objectives.time_samplers import UniformTimes
from pdmd.randomness import randn_like
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.phase_inputs import FreshPhaseInputs
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer
from pdmd.typing import labels_of

BATCH, CYCLES = 8, 3


class OneOf(SingleRank):
    def __init__(self, rank, ranks):
        self.data_rank, self.data_ranks = rank, ranks


class Recorded(Objective):
    """Draws as objectives do, records the batch, and has a loss of no gradient."""

    def __init__(self, denoiser):
        self.denoiser, self.batches = denoiser, []

    def losses(self, models, rollout, generator):
        x = rollout.phase_input
        assert x is not None
        t = UniformTimes()(len(x), rollout.phase, models.real.schedule, generator)
        noise = randn_like(x, generator)
        rows = {"x": x, "label": labels_of(rollout.condition), "t": t, "noise": noise}
        self.batches.append((rollout.exit_step, rows, rollout.x_s.detach()))
        return {"zero": 0 * getattr(models, self.denoiser)(x, 0.5, rollout.condition).value.sum()}


def trained(rank, ranks, phase_inputs, *, phase=1, state=None, cycles=CYCLES):
    """Returns the batches of a rank and the state of its generator, before every cycle."""
    torch.manual_seed(0)
    network, earlier, fake = (MlpDenoiser.rectified_flow(dim=3, classes=4) for _ in range(3))
    teacher = MixtureTeacher.random(dim=3, classes=4, modes=2)
    plan, runtime = PhasePlan.uniform(2, steps=3), OneProcess()
    runtime.ranks = OneOf(rank, ranks)
    generator = runtime.ranks.generator(7)
    if state is not None:
        generator.set_state(state)
    objectives = Recorded("expert"), Recorded("fake")
    trainer = PhaseTrainer(
        experts=[RenoisingExpert(network, plan[phase])],
        earlier=[RenoisingExpert(earlier.requires_grad_(False), plan[i]) for i in range(phase)],
        teacher=teacher,
        fakes=[[fake]],
        generator_objective=objectives[0],
        fake_objective=objectives[1],
        conditions=ConditionStream(teacher.encode(teacher.prompts)),
        updates=CYCLES,
        generator=generator,
        expert_training=ExpertTraining(),
        rollouts=Rollouts(batch_size=BATCH, phase_inputs=phase_inputs()),
        fake_training=FakeScoreTraining(updates=2),
        session=Session(runtime=runtime),
        seed=7,
    )
    states = []
    for _ in range(cycles):
        states.append(generator.get_state())
        trainer.cycle()
    return objectives[1].batches + objectives[0].batches, states


def check_same(whole, parts, phase=1):
    """Checks that the batches of ranks are together those of one process.

    The end of a rollout, and the phase inputs that earlier experts computed, agree up to rounding,
    which networks do otherwise in other batches.
    """
    for (exit_step, rows, x_s), *split in zip(whole, *parts, strict=True):
        assert {exit_step} == {part[0] for part in split}
        exact = ("label", "t", "noise", "x")[: 4 if phase == 0 else 3]
        for name in exact:
            assert torch.equal(rows[name], torch.cat([part[1][name] for part in split]))
        torch.testing.assert_close(torch.cat([part[1]["x"] for part in split]), rows["x"])
        torch.testing.assert_close(torch.cat([part[2] for part in split]), x_s)


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("phase_inputs", [FreshPhaseInputs, PhaseInputBuffer])
def test_the_batch_is_the_same_on_any_number_of_ranks(phase_inputs, phase):
    whole, states = trained(0, 1, phase_inputs, phase=phase)
    for ranks in (2, 4):
        parts = [trained(rank, ranks, phase_inputs, phase=phase) for rank in range(ranks)]
        check_same(whole, [batches for batches, _ in parts], phase)
        assert all(torch.equal(a, b) for _, own in parts for a, b in zip(own, states, strict=True))


def test_a_checkpoint_resumes_with_the_same_batches_on_another_number_of_ranks():
    whole, _ = trained(0, 1, FreshPhaseInputs)
    _, states = trained(1, 2, FreshPhaseInputs)
    parts = [
        trained(rank, 4, FreshPhaseInputs, state=states[1], cycles=CYCLES - 1)[0]
        for rank in range(4)
    ]
    fake, expert = whole[2 : 2 * CYCLES], whole[2 * CYCLES + 1 :]  # without the first cycle
    check_same(fake + expert, parts)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_computes_its_share_of_the_numbers_of_a_training(ranks, monkeypatch):
    computed, words = [], philox.words

    def record(seed, draw, first, count):
        computed.append(count)
        return words(seed, draw, first, count)

    monkeypatch.setattr(philox, "words", record)
    trained(0, 1, FreshPhaseInputs)
    whole = sum(computed)
    for rank in range(ranks):
        computed.clear()
        trained(rank, ranks, FreshPhaseInputs)
        assert sum(computed) == whole // ranks > 0
