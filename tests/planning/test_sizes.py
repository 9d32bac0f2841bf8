"""A network's footprint at a size from three smaller ones equals the measured one."""

import pytest

from pdmd import LowRank, LowRankRoles, PhasePlan, StochasticTruncation
from pdmd.planning import Degrees, Precision, Workload, measure_roles, memory_of, traffic_of
from pdmd.planning.sizes import resize, resize_roles
from pdmd.planning.traffic import flops_of
from tests.helpers.trainings import SMALL, Images


@pytest.mark.slow
def test_a_large_sample_is_planned_from_three_small_ones():
    work = Workload(
        plan=PhasePlan.uniform(1),
        truncation=StochasticTruncation(),
        batch_size=8,
        fake_updates=2,
        evaluations=2,
        activation_checkpointing=True,
    )
    init = LowRankRoles(LowRank(rank=4))

    def roles_at(size):
        teacher = Images(**{**SMALL, "image_size": size})
        return measure_roles(teacher, init, teacher.encode([1]), work, precision=Precision())[0]

    small, built = [roles_at(size) for size in (8, 12, 16)], roles_at(40)
    planned = resize_roles(small, built.teacher.tokens)
    assert flops_of(planned, work, 0) == pytest.approx(flops_of(built, work, 0), rel=1e-9)
    for degrees in (Degrees(), Degrees(dp_shard=2, tp=2, cp=2)):
        large, exact = (memory_of(r, work, degrees, Precision()) for r in (planned, built))
        assert large.total == pytest.approx(exact.total, rel=0.01)
        sent, exactly = (traffic_of(r, work, 0, degrees, Precision()) for r in (planned, built))
        assert sent.total == pytest.approx(exactly.total, rel=0.01)


def test_sizes_increase():
    teacher = Images(**SMALL)
    work = Workload(
        plan=PhasePlan.uniform(1),
        truncation=StochasticTruncation(),
        batch_size=1,
        fake_updates=1,
    )
    init = LowRankRoles(LowRank(rank=4))
    one = measure_roles(teacher, init, teacher.encode([1]), work, precision=Precision())[0].teacher
    with pytest.raises(ValueError, match="three sizes increase"):
        resize([one, one, one], 64)
