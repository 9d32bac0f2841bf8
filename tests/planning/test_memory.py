import copy

import pytest
import torch
from torch import nn

from pdmd import (
    FullGradient,
    LowRank,
    LowRankRoles,
    PhasePlan,
    StochasticTruncation,
)
from pdmd.benchmarks.memory import allocated
from pdmd.distributed.runtime import OneProcess
from pdmd.planning import (
    Degrees,
    Precision,
    Work,
    measure,
    measure_roles,
    memory_of,
)
from pdmd.training.phase_inputs import PhaseInputBuffer
from tests.helpers.distilling import distill
from tests.helpers.trainings import MEDIUM, SMALL, Images, roles_of, trainer_of


def two_cycles(make):
    trainer = make()
    for _ in range(2):
        trainer.cycle()
    trainer.session.account.close()


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
    "two anchors": (
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
        {"phase_inputs": PhaseInputBuffer(40, together=4), "evaluations": 2, "updates": 2},
    ),
    "large ring": (
        PhasePlan.uniform(4),
        StochasticTruncation(),
        3,
        {"phase_inputs": PhaseInputBuffer(40, together=16), "fake_updates": 15, "updates": 2},
    ),
    "no fake updates": (PhasePlan.uniform(1), StochasticTruncation(), 0, {"fake_updates": 0}),
}


WIDE = {"image_size": 64, "patch_size": 16, "width": 32, "depth": 1, "heads": 4}
CASES = [(name, MEDIUM, batch, False) for name in SETTINGS for batch in (8, 32)]
CASES += [("phased", MEDIUM, 32, True), ("vanilla", MEDIUM, 8, True)]
CASES += [(name, WIDE, 128, False) for name in SETTINGS]  # whose latents outweigh its networks


@pytest.mark.parametrize(("name", "network", "batch", "activation_checkpointing"), CASES)
def test_memory_is_what_a_run_allocates(name, network, batch, activation_checkpointing):
    plan, truncation, index, more = SETTINGS[name]
    usual = {
        "batch_size": batch,
        "fake_updates": 1,
        "activation_checkpointing": activation_checkpointing,
    }
    work = Work(**{"plan": plan, "truncation": truncation, **usual, **more})

    def make():
        phase_inputs = copy.deepcopy(work.phase_inputs)
        guidance = 2.0 * work.evaluations - 1
        return trainer_of(
            Images(**network), work, index, guidance=guidance, phase_inputs=phase_inputs
        )

    roles = roles_of(Images(**network), work, index)
    planned = memory_of(roles, work, Degrees(), Precision())
    assert planned.total == pytest.approx(allocated(lambda: two_cycles(make)), rel=0.02)


ADAPTERS = {
    "both": LowRankRoles(LowRank(rank=4), LowRank(rank=2)),
    "full fake score": LowRankRoles(LowRank(rank=4)),
}


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_memory_with_adapters_is_what_a_run_allocates(name, activation_checkpointing):
    init, index = ADAPTERS[name], 2
    work = Work(
        plan=PhasePlan.uniform(4),
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
    assert planned.total == pytest.approx(allocated(lambda: two_cycles(make)), rel=0.02)


DEEP = {"image_size": 8, "patch_size": 2, "width": 256, "depth": 24, "heads": 4}


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_three_roles_with_adapters_need_little_more_than_one_network(activation_checkpointing):
    """Guided, with both averages and moments: against one adapted network's gradient."""
    init = LowRankRoles(LowRank(rank=4), LowRank(rank=4))
    work = Work(
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

    roles = allocated(
        lambda: two_cycles(lambda: trainer_of(Images(**DEEP), work, 0, guidance=3.0, init=init))
    )
    assert roles <= 1.15 * allocated(one)


def test_a_whole_distillation_needs_what_its_dearest_phase_does():
    """Networks of a phase are released before those of the next are made."""
    network = {**SMALL, "width": 256}  # whose states outweigh its activations
    work = Work(
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
    whole = allocated(lambda: distill(Images(**network), work.plan, **settings))
    assert max(phases) == phases[-1] == pytest.approx(whole, rel=0.02)


def test_a_split_network_needs_what_its_half_measures():
    """Half of every split layer, built by hand, keeps what the plan of two ranks says."""
    whole = Images(**MEDIUM)
    half = copy.deepcopy(whole)
    width = MEDIUM["width"]
    for block in half.net.blocks:
        block.heads //= 2
        block.qkv = nn.Linear(width, 3 * width // 2)
        block.proj = nn.Linear(width // 2, width)
        block.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
    condition = whole.encode([1])
    for activation_checkpointing in (False, True):
        settings = {"train": True, "activation_checkpointing": activation_checkpointing}
        planned = measure(whole, condition, **settings)
        built = measure(half, condition, **settings)
        assert planned.local(2) == built.parameters
        for batch in (1, 7):
            for course in ("quiet", "recorded"):
                left = getattr(planned, course).bytes(batch, (1, 1, 1 / 2, 1, 1 / 2))
                right = getattr(built, course).bytes(batch, (1, 1, 1, 1, 1))
                assert left.max() == pytest.approx(right.max(), rel=1e-6)
                turn = getattr(planned, course).turn
                assert left[turn] == pytest.approx(right[turn], rel=1e-6)


def test_a_part_of_the_sequence_needs_its_part_of_the_memory():
    """Units of a quarter of the tokens keep a quarter, modulation apart, which has no tokens."""
    many, few = (Images(**{**MEDIUM, "patch_size": p}) for p in (2, 4))
    condition = many.encode([1])
    a, b = (measure(n, condition, train=True).recorded for n in (many, few))
    inside = (0, 1, 1, 0, 0)
    kept = [float(c.bytes(4, inside)[c.turn]) for c in (a, b)]
    assert kept[0] / 4 == pytest.approx(kept[1], rel=0.1)
    assert a.bytes(4, (1, 0, 0, 0, 0))[a.turn] < 0.2 * kept[0]  # what is not divided is small
