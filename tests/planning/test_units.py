"""Units, sharded layers and heads of a network, from its parallel plans."""

from torch import nn

from pdmd.planning.units import heads_of, split_of, units_of
from tests.helpers.trainings import MEDIUM, Checkpointed, Images, checkpointed


def test_units_are_the_blocks_of_the_parallel_plan():
    network = Images(**MEDIUM)
    assert list(units_of(network).values()) == list(network.net.blocks)
    wrapped = checkpointed(Images(**MEDIUM))
    assert all(isinstance(unit, Checkpointed) for unit in units_of(wrapped).values())
    assert units_of(nn.Linear(2, 2)) == {}


def test_sharded_layers_and_heads_are_those_of_the_tensor_plan():
    network = Images(**MEDIUM)
    split = split_of(network)
    assert set(split.column_wise).isdisjoint(split.row_wise)
    blocks = list(network.net.blocks)
    assert {block.proj for block in blocks} <= set(split.row_wise)
    assert {block.qkv for block in blocks} <= set(split.column_wise)
    assert heads_of(network) == MEDIUM["heads"]


def test_a_network_without_a_plan_has_no_sharded_layers():
    split = split_of(nn.Linear(2, 2))
    assert split.column_wise == split.row_wise == () and heads_of(nn.Linear(2, 2)) == 0
