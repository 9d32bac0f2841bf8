"""A deep network's footprint from two shallow ones equals the measured one."""

import pytest

from pdmd import LowRank, LowRankRoles, PhasePlan, StochasticTruncation
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distillation.initializers import FromTeacher
from pdmd.planning import (
    Degrees,
    Precision,
    Workload,
    measure_footprint,
    measure_roles,
    memory_of,
    traffic_of,
)
from pdmd.planning.depth import deepen, deepen_roles
from pdmd.planning.traffic import flops_of
from pdmd.teachers.families.sd3 import SD3Teacher
from tests.helpers.trainings import MEDIUM, Images

INITS = {
    "full": FromTeacher(),
    "adapters": LowRankRoles(LowRank(rank=4), LowRank(rank=4)),
    "full fake score": LowRankRoles(LowRank(rank=4)),
}
DEPTHS, DEPTH = (2, 3), 8
SMALL_SD3 = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 12,
    "latent_channels": 4,
    "pos_embed_max_size": 8,
    "height": 32,
    "width": 32,
}


CASES = [("full", True), ("adapters", False)]
SLOW = [(name, again) for name in INITS for again in (False, True) if (name, again) not in CASES]


@pytest.mark.parametrize(
    ("name", "activation_checkpointing"),
    CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_a_deep_network_is_planned_from_two_shallow_ones(name, activation_checkpointing):
    work = Workload(
        plan=PhasePlan.uniform(2),
        truncation=StochasticTruncation(),
        batch_size=8,
        fake_updates=2,
        evaluations=2,
        activation_checkpointing=activation_checkpointing,
    )

    def roles_at(depth):
        teacher = Images(**{**MEDIUM, "depth": depth})
        condition = teacher.encode([1])
        return measure_roles(teacher, INITS[name], condition, work, precision=Precision())[1]

    few, many, built = (roles_at(depth) for depth in (*DEPTHS, DEPTH))
    planned = deepen_roles(few, many, DEPTHS, DEPTH)
    assert planned.generator.parameters == built.generator.parameters
    assert planned.fake.units == built.fake.units
    assert flops_of(planned, work, 1) == pytest.approx(flops_of(built, work, 1))
    for degrees in (Degrees(), Degrees(dp_shard=8), Degrees(dp_shard=2, tp=2, cp=2)):
        deep, exact = (memory_of(r, work, degrees, Precision()) for r in (planned, built))
        assert deep.total == pytest.approx(exact.total, rel=0.02)
        sent, exactly = (traffic_of(r, work, 1, degrees, Precision()) for r in (planned, built))
        assert sent.total == pytest.approx(exactly.total)


def test_depths_increase():
    with pytest.raises(ValueError, match="two depths increase"):
        deepen(None, None, (3, 3), 12)


def test_a_deep_routed_network_has_the_parameters_of_all_and_gathers_one():
    def pair(depth):
        network = Images(**{**MEDIUM, "depth": depth})
        router = IntervalRouter((1.0, 0.5, 0.0))
        both = RoutedDenoiser([network, network.trainable_copy()], router)
        return measure_footprint(both, network.encode([1]), train=False)

    deep, built = deepen(pair(1), pair(2), (1, 2), 5), pair(5)
    assert deep.parameters == built.parameters and deep.idle == built.idle
    assert deep.gathered(2) == built.gathered(2) and deep.evaluated(1) == built.evaluated(1)


def test_the_last_block_may_be_smaller():
    def at(layers):
        teacher = SD3Teacher.from_config(**SMALL_SD3, num_layers=layers, random_prompts=1)
        condition = teacher.encode(list(teacher.prompts)[:1])
        return measure_footprint(teacher, condition, train=False)

    deep, built = deepen(at(2), at(3), (2, 3), 5), at(5)
    assert built.units[-1] != built.units[-2]  # it returns no text
    assert deep.units == built.units and deep.parameters == built.parameters
