"""Offloaded roles move from the GPU's memory to the node's, and cross the link between them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd.planning import Cluster, Degrees, Offload, Precision, memory_of, plan_roles, traffic_of
from pdmd.planning.memory import EIGHT_BIT
from tests.helpers.plans import DEGREES, PHASES, WORK, small_run

ITEMS = {
    "teacher": ("teacher",),
    "experts": ("frozen",),
    "averages": ("average",),
    "optimizers": ("generator_optimizer", "fake_optimizer"),
}


@given(degrees=DEGREES, roles=st.sets(st.sampled_from(list(ITEMS))))
def test_items_of_offloaded_roles_are_in_cpu_memory(degrees, roles):
    offload = Offload(**dict.fromkeys(roles, True))
    plain = memory_of(PHASES[1], WORK, degrees, Precision())
    moved = memory_of(PHASES[1], WORK, degrees, Precision(), offload)
    names = [name for role in roles for name in ITEMS[role]]
    assert all(moved.items[name] == 0 for name in names)
    assert moved.host == pytest.approx(sum(plain.items[name] for name in names))
    assert plain.host == 0
    if degrees.shards > 1:  # on one rank, what is gathered from the CPU is added
        assert moved.total <= plain.total
        assert moved.total >= plain.total - moved.host - 1e-6


def test_moments_of_eight_bits_take_a_quarter():
    eight = Precision(moment_bytes=EIGHT_BIT)
    plain, small = (memory_of(PHASES[1], WORK, Degrees(), p) for p in (Precision(), eight))
    n = PHASES[1].generator.parameters
    assert plain.items["generator_optimizer"] == 8 * n
    assert small.items["generator_optimizer"] == pytest.approx(2 * n, rel=0.02)


def test_offloaded_weights_are_copied_for_every_pass_and_moments_for_every_update():
    n = PHASES[1].generator.parameters

    def copied(**roles):
        sent = traffic_of(PHASES[1], WORK, 1, Degrees(), Precision(), Offload(**roles))
        return sent.host_copies

    assert copied() == 0
    assert copied(teacher=True) == 4 * n  # evaluated once
    assert copied(experts=True) == 3 * 4 * n  # three rollouts of one step
    assert copied(averages=True) == 2 * 4 * n
    assert copied(optimizers=True) == 2 * 8 * n * (1 + WORK.fake_updates)


def test_a_choice_fits_if_the_node_holds_what_is_offloaded():
    roles, work = small_run()
    offload = Offload(optimizers=True)
    plans = [
        plan_roles(
            roles,
            work,
            cluster=Cluster(gpus=2, node_memory=gib),
            precision=Precision(),
            offload=offload,
        )
        for gib in (1.0, 1e-6)
    ]
    assert plans[0].fitting and not plans[1].fitting
    choice = plans[0].best
    assert (
        choice.host
        == 2 * memory_of(roles[choice.phase], work, choice.degrees, Precision(), offload).host
    )
    assert dataclasses.asdict(plans[0].offload)["optimizers"]
