"""Planned memory equals what a run allocates."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given

from pdmd import (
    FullGradient,
    LowRank,
    LowRankRoles,
    PhasePlan,
    StochasticTruncation,
)
from pdmd.benchmarks.memory import peak_allocated
from pdmd.distributed.runtime import OneProcess
from pdmd.planning import (
    Degrees,
    Precision,
    Workload,
    measure_roles,
    memory_of,
)
from pdmd.training.phase_inputs import PhaseInputBuffer
from tests.helpers.distilling import distill
from tests.helpers.peaks import peak_of_last
from tests.helpers.plans import DEGREES, PHASES, WORK
from tests.helpers.trainings import MEDIUM, SMALL, Images, roles_of, trainer_of


def cycles(trainer, number):
    for _ in range(number):
        trainer.cycle()
    trainer.session.account.close()


def two_cycles(make):
    cycles(make(), 2)


SETTINGS = {
    "one step": (PhasePlan.uniform(1), StochasticTruncation(), 0, {}),
    "guided": (PhasePlan.uniform(1), StochasticTruncation(), 0, {"evaluations": 2}),
    "phased": (PhasePlan.uniform(4), StochasticTruncation(), 3, {"evaluations": 2}),
    "2x2": (PhasePlan.uniform(2, steps=2), StochasticTruncation(), 1, {"accumulate": 2}),
    "vanilla": (PhasePlan.uniform(1, steps=4), FullGradient(), 0, {"evaluations": 2}),
    "fake_updates_per_rollout": (
        PhasePlan.uniform(1),
        StochasticTruncation(),
        0,
        {"fake_updates_per_rollout": 2, "evaluations": 2},
    ),
    "two reused rollouts": (
        PhasePlan.uniform(4),
        StochasticTruncation(),
        3,
        {"fake_updates_per_rollout": 2, "fake_updates": 3, "evaluations": 2},
    ),
    "fake_updates_per_rollout, added": (
        PhasePlan.uniform(2),
        StochasticTruncation(),
        1,
        {"fake_updates_per_rollout": 2, "accumulate": 2},
    ),
    "buffer": (
        PhasePlan.uniform(4),
        StochasticTruncation(),
        3,
        {"phase_inputs": PhaseInputBuffer(40, together=4), "evaluations": 2, "updates": 3},
    ),
    "large buffer": (
        PhasePlan.uniform(4),
        StochasticTruncation(),
        3,
        {"phase_inputs": PhaseInputBuffer(40, together=16), "fake_updates": 15, "updates": 2},
    ),
    "no fake updates": (PhasePlan.uniform(1), StochasticTruncation(), 0, {"fake_updates": 0}),
}


WIDE = {"image_size": 64, "patch_size": 16, "width": 32, "depth": 1, "heads": 4}
FAST = [(name, MEDIUM, 8, False) for name in SETTINGS if name not in ("large buffer", "buffer")]
FAST += [("buffer", WIDE, 128, False), ("phased", MEDIUM, 8, True)]
ALL = [(name, MEDIUM, batch, False) for name in SETTINGS for batch in (8, 32)]
ALL += [("phased", MEDIUM, 32, True), ("vanilla", MEDIUM, 8, True)]
ALL += [(name, WIDE, 128, False) for name in SETTINGS]  # whose latents outweigh its networks
CASES = FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FAST]


@pytest.mark.parametrize(("name", "network", "batch", "activation_checkpointing"), CASES)
def test_memory_equals_what_a_run_allocates(name, network, batch, activation_checkpointing):
    plan, truncation, index, more = SETTINGS[name]
    usual = {
        "batch_size": batch,
        "fake_updates": 1,
        "activation_checkpointing": activation_checkpointing,
    }
    work = Workload(**{"plan": plan, "truncation": truncation, **usual, **more})

    def make():
        phase_inputs = copy.deepcopy(work.phase_inputs)
        guidance = 2.0 * work.evaluations - 1
        return trainer_of(
            Images(**network), work, index, guidance=guidance, phase_inputs=phase_inputs
        )

    roles = roles_of(Images(**network), work, index)
    planned = memory_of(roles, work, Degrees(), Precision())
    measured = peak_of_last(make, lambda trainer: cycles(trainer, max(2, work.updates)))
    assert planned.total == pytest.approx(measured, rel=0.03)


ADAPTERS = {
    "both": LowRankRoles(LowRank(rank=4), LowRank(rank=2)),
    "full fake score": LowRankRoles(LowRank(rank=4)),
}


@pytest.mark.parametrize(
    ("name", "activation_checkpointing"),
    [
        ("full fake score", False),
        ("both", True),
        pytest.param("full fake score", True, marks=pytest.mark.slow),
        pytest.param("both", False, marks=pytest.mark.slow),
    ],
)
def test_memory_with_adapters_equals_what_a_run_allocates(name, activation_checkpointing):
    init, index = ADAPTERS[name], 1
    work = Workload(
        plan=PhasePlan.uniform(2),
        truncation=StochasticTruncation(),
        batch_size=16,
        fake_updates=1,
        evaluations=2,
        activation_checkpointing=activation_checkpointing,
    )

    def make():
        return trainer_of(Images(**MEDIUM), work, index, guidance=2.0, init=init)

    teacher = Images(**MEDIUM)
    roles = measure_roles(teacher, init, teacher.encode([1]), work, precision=Precision())[index]
    assert roles.generator.parameters < 0.2 * roles.teacher.parameters
    planned = memory_of(roles, work, Degrees(), Precision())
    assert planned.total == pytest.approx(peak_allocated(lambda: two_cycles(make)), rel=0.03)


DEEP = {"image_size": 8, "patch_size": 2, "width": 256, "depth": 24, "heads": 4}


@pytest.mark.parametrize(
    "activation_checkpointing", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_three_roles_with_adapters_need_little_more_than_one_network(activation_checkpointing):
    """Guided, with both averages and moments: against one adapted network's gradient."""
    init = LowRankRoles(LowRank(rank=4), LowRank(rank=4))
    work = Workload(
        plan=PhasePlan.uniform(1),
        truncation=StochasticTruncation(),
        batch_size=16,
        fake_updates=1,
        evaluations=2,
        activation_checkpointing=activation_checkpointing,
    )

    def one():
        teacher = Images(**DEEP).requires_grad_(False)
        network = OneProcess(activation_checkpointing=activation_checkpointing).placement.trained(
            init.expert(teacher, work.plan[0], [])
        )
        x = torch.randn(work.batch_size, *teacher.latent_shape)
        network(x, 0.5, teacher.encode([0] * len(x))).value.square().mean().backward()

    roles = peak_allocated(
        lambda: two_cycles(lambda: trainer_of(Images(**DEEP), work, 0, guidance=3.0, init=init))
    )
    assert roles <= 1.15 * peak_allocated(one)


def test_a_distillation_needs_the_memory_of_its_largest_phase():
    """The networks of a phase are released before those of the next are built."""
    network = {**SMALL, "width": 256}  # optimizer states outweigh activations
    work = Workload(
        plan=PhasePlan.uniform(3),
        truncation=StochasticTruncation(),
        batch_size=2,
        fake_updates=1,
    )
    phases = [
        memory_of(roles_of(Images(**network), work, k), work, Degrees(), Precision()).total
        for k in range(3)
    ]
    settings = {"updates": 2, "fake_updates": 1, "batch_size": 2}
    whole = peak_allocated(lambda: distill(Images(**network), work.plan, **settings))
    assert max(phases) == phases[-1] == pytest.approx(whole, rel=0.02)


@given(degrees=DEGREES)
def test_optimizer_states_are_sharded(degrees):
    single = memory_of(PHASES[1], WORK, Degrees(), Precision())
    memory = memory_of(PHASES[1], WORK, degrees, Precision())
    network = PHASES[1].generator
    share = network.local(degrees.tp) / network.parameters / degrees.shards
    for item in ("generator_optimizer", "fake_optimizer"):
        assert memory.items[item] == pytest.approx(share * single.items[item])
    assert share >= 1 / (degrees.shards * degrees.tp) - 1e-12
    assert memory.total == pytest.approx(sum(memory.items.values()))
    copies = dataclasses.replace(degrees, dp_replicate=1)
    assert copies.ranks == degrees.ranks // degrees.dp_replicate
    kept = memory_of(PHASES[1], WORK, copies, Precision())
    for item in ("generator", "frozen", "average", "in_flight"):
        if kept.moment == memory.moment:
            assert kept.items[item] == pytest.approx(memory.items[item])
