"""Links: rings within a node, across nodes, and groups that share a node's network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd.planning import Cluster
from pdmd.planning.clusters import Group

SIXTEEN = Cluster(gpus=16, node_bandwidth=400.0, network_bandwidth=50.0)


def test_a_ring_within_a_node_is_as_fast_as_its_links():
    assert SIXTEEN.ring_seconds(800.0, Group(size=8)) == pytest.approx(2.0)
    assert SIXTEEN.ring_seconds(800.0, Group(size=4, stride=2)) == pytest.approx(2.0)
    assert SIXTEEN.ring_seconds(800.0, Group(size=1)) == 0


def test_a_ring_over_two_nodes_sends_half_of_the_whole_over_the_network():
    whole = 1600.0
    sent = whole * 15 / 16
    assert SIXTEEN.ring_seconds(sent, Group(size=16)) == pytest.approx(whole / 2 / 50)


def test_eight_rings_of_replicas_share_the_network_of_a_node():
    # a shard of 100 bytes is reduced and gathered: 2 (n - 1) / n of it over n = 2 replicas
    assert SIXTEEN.ring_seconds(100.0, Group(size=2, stride=8)) == pytest.approx(8 * 100 / 50)


def test_replicas_across_nodes_send_less_than_shards_across_nodes():
    """Ten passes gather the parameters, but gradients are summed once."""
    parameters = 1e3
    gathered = SIXTEEN.ring_seconds(10 * parameters * 15 / 16, Group(size=16))
    within = SIXTEEN.ring_seconds(10 * parameters * 7 / 8, Group(size=8))
    summed = SIXTEEN.ring_seconds(2 * parameters / 8 / 2, Group(size=2, stride=8))
    assert within + summed < 0.5 * gathered


def test_an_exchange_over_two_nodes_sends_the_other_nodes_part_over_the_network():
    assert SIXTEEN.exchange_seconds(800.0, Group(size=8)) == pytest.approx(2.0)
    far = 8 * 150.0 * 8 / 15  # of eight GPUs, to eight of the fifteen others
    assert SIXTEEN.exchange_seconds(150.0, Group(size=16)) == pytest.approx(far / 50)


@given(
    size=st.sampled_from([1, 2, 4, 8, 16, 32]),
    stride=st.sampled_from([1, 2, 4, 8, 16]),
    sent=st.floats(1, 1e12),
)
def test_a_faster_network_never_takes_longer(size, stride, sent):
    group = Group(size=size, stride=stride)
    slow, fast = (Cluster(gpus=512, network_bandwidth=b) for b in (50e9, 400e9))
    for name in ("ring_seconds", "exchange_seconds"):
        assert getattr(fast, name)(sent, group) <= getattr(slow, name)(sent, group)


@pytest.mark.parametrize(
    ("name", "option"),
    [("node_bandwidth", "--node"), ("network_bandwidth", "--network"), ("flops", "--rate")],
)
def test_rates_are_checked(name, option):
    with pytest.raises(ValueError, match=f"got 0; change {option}"):
        Cluster(**{name: 0})
