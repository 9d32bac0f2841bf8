"""Degrees of parallelism: their products and errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd.distributed.degrees import Degrees, ranks_per_node

NAMES = ("dp_replicate", "dp_shard", "cp", "tp")


def degrees_and_errors(cases):
    outcomes = []
    for world, *degrees in cases:
        try:
            found = Degrees.over(world, **dict(zip(NAMES, degrees, strict=True)))
            outcomes.append((found.dp_replicate, found.dp_shard))
        except ValueError as error:
            outcomes.append(str(error))
    return outcomes


def test_the_product_of_the_degrees_is_the_number_of_ranks():
    cases = {  # ranks, dp_replicate, dp_shard, cp, tp
        (8, 1, -1, 1, 1): (1, 8),
        (8, 2, -1, 1, 2): (2, 2),
        (8, 1, 2, 2, 2): (1, 2),
        (8, -1, 2, 1, 2): (2, 2),
        (1, 1, -1, 1, 1): (1, 1),
        (8, -1, -1, 1, 2): (1, 4),
        (8, -1, 3, 1, 1): "8 ranks are not divisible by dp_shard x cp x tp = 3 x 1 x 1 = 3",
        (8, 1, -1, 3, 1): "8 ranks are not divisible by dp_replicate x cp x tp = 1 x 3 x 1 = 3",
        (8, 1, 2, 1, 2): "= 1 x 2 x 1 x 2 = 4, but there are 8 ranks",
        (2, 1, 1, 1, 4): "2 ranks are not divisible by dp_replicate x dp_shard x cp x tp = 1 x 1",
        (2, 0, -1, 1, 1): "parallel.dp_replicate must be at least 1, or -1 for all",
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
        assert expected in got if isinstance(expected, str) else got == expected, case


@given(*[st.integers(1, 5) for _ in NAMES])
def test_derived_counts_are_products_of_the_degrees(dp_replicate, dp_shard, cp, tp):
    degrees = Degrees(dp_replicate=dp_replicate, dp_shard=dp_shard, cp=cp, tp=tp)
    assert degrees.ranks == dp_replicate * dp_shard * cp * tp
    assert degrees.batches * cp * tp == degrees.ranks
    assert degrees.shards * dp_replicate * tp == degrees.ranks
    others = {"dp_replicate": dp_replicate, "cp": cp, "tp": tp}
    assert Degrees.over(degrees.ranks, **others) == degrees  # -1 is inferred
    assert Degrees.over(degrees.ranks, dp_shard=dp_shard, **others) == degrees


@pytest.mark.parametrize(
    ("world", "cp", "tp", "expected"),
    [
        (8, 1, 1, (1, 8)),
        (64, 1, 1, (8, 8)),
        (64, 2, 2, (8, 2)),
        (64, 8, 1, (8, 1)),
        (64, 8, 2, (4, 1)),  # two nodes hold one copy of the parameters
    ],
)
def test_by_default_parameters_are_sharded_within_a_node_of_eight(world, cp, tp, expected):
    degrees = Degrees.over(world, cp=cp, tp=tp, per_node=8)
    assert (degrees.dp_replicate, degrees.dp_shard) == expected
    assert degrees.ranks == world
    assert Degrees.over(world, dp_replicate=1, cp=cp, tp=tp, per_node=8).dp_replicate == 1


def test_degrees_that_straddle_nodes_and_uneven_nodes_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="cp x tp = 3 x 1 = 3 neither divides the 8 ranks of a"):
        Degrees.over(24, cp=3, per_node=8)
    assert Degrees.over(24, dp_shard=8, cp=3, per_node=8).dp_replicate == 1
    assert ranks_per_node(16) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert ranks_per_node(16) == 8
    for here, nodes in (("8", "3"), ("4", "3"), ("5", "3")):  # 8 + 4 + 4 ranks, and 5 + 5 + 6
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
        with pytest.raises(ValueError, match="16 ranks run on 3 nodes.*start as many on each"):
            ranks_per_node(16)
