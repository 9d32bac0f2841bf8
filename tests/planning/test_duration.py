"""Seconds of a cycle: what overlaps and what does not, by the link of every group."""

import dataclasses

import pytest

from pdmd.planning import Cluster, Degrees, Traffic, seconds_of

SENT = Traffic(
    all_gather=900e9, reduce_scatter=0.0, all_reduce=10e9, tp_all_reduce=0.0, cp_all_to_all=0.0
)
CLUSTER = Cluster(gpus=16)


def test_gathering_overlaps_with_computing():
    degrees = Degrees(dp_replicate=2, dp_shard=8)
    seconds = seconds_of(16 * 0.4e15, SENT, degrees, CLUSTER)
    assert seconds.computing == pytest.approx(1.0)
    assert seconds.sharding == pytest.approx(900 / 450 + 8 * 10 / 50)
    assert seconds.total == pytest.approx(max(seconds.computing, seconds.sharding))


def test_sums_of_tensor_parallelism_do_not_overlap():
    degrees = Degrees(dp_shard=8, tp=2)
    tensor = dataclasses.replace(SENT, all_reduce=0.0, tp_all_reduce=45e9)
    seconds = seconds_of(160 * 0.4e15, tensor, degrees, CLUSTER)
    assert seconds.splitting == pytest.approx(0.1)
    # eight shards at stride 2 span both nodes, and two such rings share the network of a node
    assert seconds.sharding == pytest.approx(2 * 900 * 8 / 7 / 2 / 50)
    assert seconds.total == pytest.approx(max(10.0, seconds.sharding) + 0.1)


def test_copies_to_the_cpu_take_the_time_of_their_link():
    offloaded = dataclasses.replace(SENT, host_copies=500e9)
    seconds = seconds_of(1.0, offloaded, Degrees(dp_replicate=2, dp_shard=8), CLUSTER)
    assert seconds.copying == seconds.total == pytest.approx(10.0)
    assert offloaded.total == SENT.total
