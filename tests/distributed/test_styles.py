"""Styles of tensor parallelism."""

from pdmd.distributed.styles import packed_order


def test_packed_order_splits_every_part():
    order = packed_order((4, 2), 2)
    assert order.tolist() == [0, 1, 4, 2, 3, 5]
    assert packed_order((6,), 3).tolist() == list(range(6))
