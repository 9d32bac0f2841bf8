"""Communicators: how a batch is split over data ranks."""

import pytest
import torch

from pdmd.distributed.communicator import SingleRank


class OneOf(SingleRank):
    def __init__(self, rank, ranks):
        self.data_rank, self.data_ranks = rank, ranks


def test_the_local_batch_is_the_batch_divided_by_the_data_ranks():
    assert SingleRank().local_batch(7) == 7
    assert OneOf(1, 4).local_batch(12) == 3


def test_a_batch_that_does_not_divide_raises():
    with pytest.raises(ValueError, match="7 is not divisible by 2 data ranks; choose a multiple"):
        OneOf(0, 2).local_batch(7)


def test_generators_of_ranks_share_the_seed_and_split_the_rows():
    generators = [OneOf(rank, 2).generator(5) for rank in range(2)]
    assert [(g.rank, g.ranks) for g in generators] == [(0, 2), (1, 2)]
    assert generators[0].initial_seed() == generators[1].initial_seed() == 5


def test_a_single_rank_decides_alone():
    ranks, value = SingleRank(), torch.tensor([1.0, 2.0])
    assert ranks.mean(value) is value and ranks.main
    assert ranks.any(True) and not ranks.any(False)
    with pytest.raises(ValueError, match="as is"), ranks.consensus():
        raise ValueError("as is")
