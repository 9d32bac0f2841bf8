"""Condition streams: uniform sampling with replacement, the same on any number of ranks."""

import pytest
import torch

from pdmd.randomness import RankGenerator
from pdmd.teachers.mixture import encode_labels
from pdmd.training.conditions import ConditionStream
from pdmd.typing import labels_of


def test_conditions_are_sampled_uniformly_with_replacement():
    stream = ConditionStream(encode_labels([0, 1, 2, 2], 3))
    labels = labels_of(stream.draw(40_000, torch.Generator().manual_seed(0)))
    shares = labels.bincount(minlength=3) / len(labels)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), rtol=0, atol=0.01)


def test_drawing_is_sampling_rows_and_taking_them():
    stream = ConditionStream(encode_labels([0, 1, 2], 3))
    rows = stream.rows(8, torch.Generator().manual_seed(0))
    drawn = stream.draw(8, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.int64 and rows.shape == (8,)
    assert torch.equal(labels_of(stream.take(rows)), labels_of(drawn))
    assert torch.equal(labels_of(drawn), rows)  # label i is row i


def test_ranks_together_draw_the_rows_of_one_process():
    stream = ConditionStream(encode_labels(list(range(50)), 50))
    whole = stream.rows(8, RankGenerator.make(3, 0, 1))
    parts = [stream.rows(4, RankGenerator.make(3, rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_an_unconditional_stream_draws_none():
    stream = ConditionStream(None)
    generator = torch.Generator().manual_seed(0)
    assert stream.rows(4, generator) is None and stream.draw(4, generator) is None


def test_no_prompts_raise():
    with pytest.raises(ValueError, match="no prompts"):
        ConditionStream(encode_labels([0], 3)[:0])
