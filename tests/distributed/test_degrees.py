"""Degrees of parallelism: their products and errors."""

from hypothesis import given
from hypothesis import strategies as st

from pdmd.distributed.degrees import Degrees

NAMES = ("dp_replicate", "dp_shard", "cp", "tp")


def degrees_and_errors(cases):
    outcomes = []
    for world, *degrees in cases:
        try:
            outcomes.append(Degrees.over(world, **dict(zip(NAMES, degrees, strict=True))).dp_shard)
        except ValueError as error:
            outcomes.append(str(error))
    return outcomes


def test_the_product_of_the_degrees_is_the_number_of_ranks():
    cases = {  # ranks, dp_replicate, dp_shard, cp, tp
        (8, 1, -1, 1, 1): 8,
        (8, 2, -1, 1, 2): 2,
        (8, 1, 2, 2, 2): 2,
        (1, 1, -1, 1, 1): 1,
        (8, 1, -1, 3, 1): "8 ranks are not divisible by dp_replicate x cp x tp = 1 x 3 x 1 = 3",
        (8, 1, 2, 1, 2): "= 1 x 2 x 1 x 2 = 4, but there are 8 ranks",
        (2, 1, 1, 1, 4): "= 4, but there are 2 ranks",
        (2, 0, -1, 1, 1): "parallel.dp_replicate must be at least 1, got 0",
        (2, 1, -1, -1, 1): "parallel.cp must be at least 1, got -1",
        (2, 1, -1, 1, 0): "parallel.tp must be at least 1, got 0",
        (
            2,
            1,
            0,
            1,
            1,
        ): "parallel.dp_shard must be at least 1, or -1 for all",
    }
    outcomes = degrees_and_errors(cases)
    for (case, expected), got in zip(cases.items(), outcomes, strict=True):
        assert got == expected if isinstance(expected, int) else expected in got, case


@given(*[st.integers(1, 5) for _ in NAMES])
def test_derived_counts_are_products_of_the_degrees(dp_replicate, dp_shard, cp, tp):
    degrees = Degrees(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)
    assert degrees.ranks == dp_replicate * dp_shard * cp * tp
    assert degrees.batches * cp * tp == degrees.ranks
    assert degrees.shards * dp_replicate * tp == degrees.ranks
    others = {"dp_replicate": dp_replicate, "cp": cp, "tp": tp}
    assert Degrees.over(degrees.ranks, **others) == degrees  # -1 is inferred
    assert Degrees.over(degrees.ranks, dp_shard=dp_shard, **others) == degrees
