"""Lengths of texts: carried with a condition, so that padding and masks need no reading."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd.teachers.conditioning.text_lengths import (
    TrimmedConditions,
    count_tokens,
    lengths_of,
    text_mask,
    trimmed,
    with_lengths,
)
from pdmd.typing import join_conditions, repeat_condition


def condition(lengths, padded=9):
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(0)
    fields = {
        "prompt": torch.randn(len(lengths), padded, 3, generator=generator) * mask[..., None],
        "mask": mask,
        "pooled": torch.randn(len(lengths), padded, generator=generator),
        "image": torch.randn(len(lengths), 4, 3, generator=generator),
    }
    return TensorDict(fields, batch_size=[len(lengths)])


some = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(some, st.data())
def test_a_batch_of_trimmed_conditions_is_padded_to_its_own_longest_text(lengths, data):
    whole = condition(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6))
    batch = TrimmedConditions.of(whole)[torch.tensor(rows)]
    chosen = [lengths[i] for i in rows]
    assert lengths_of(batch) == chosen and batch["mask"].shape == (len(rows), max(chosen))
    for key in ("prompt", "mask"):
        assert torch.equal(batch[key], whole[key][rows][:, : max(chosen)])
    for key in ("pooled", "image"):  # no sequences of the text
        assert torch.equal(batch[key], whole[key][rows])
    assert (text_mask(batch) is None) == bool(batch["mask"].all())


@given(some, some)
def test_lengths_follow_the_rows(first, second):
    a, b = with_lengths(condition(first)), with_lengths(condition(second, padded=11))
    joined = join_conditions(a, b)
    assert lengths_of(joined) == first + second == count_tokens(joined["mask"])
    assert lengths_of(joined.to("meta")) == first + second
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    assert lengths_of(a[order]) == [first[i] for i in order]
    assert lengths_of(repeat_condition(a[:1], 3)) == first[:1] * 3
    assert lengths_of(trimmed(joined)) == first + second
    assert trimmed(joined)["prompt"].shape[1] == max(first + second)


def test_conditions_on_a_device_are_read_without_waiting_for_it():
    batch = TrimmedConditions.of(condition([4, 7, 7])).to("meta")[torch.tensor([1, 2])]
    assert batch["prompt"].shape == (2, 7, 3) and batch["mask"].device.type == "meta"
    assert text_mask(batch) is None
    mixed = TrimmedConditions.of(condition([4, 7, 7])).to("meta")[:2]
    mask = text_mask(mixed)
    assert mask is not None and mask.shape == (2, 7)


def test_a_mask_without_lengths_is_kept_and_no_text_has_no_lengths():
    bare = condition([9, 9])
    assert lengths_of(bare) is None and text_mask(bare) is bare["mask"] and trimmed(bare) is bare
    assert lengths_of(bare.exclude("mask")) == [9, 9]
    labels = TensorDict({"label": torch.zeros(2)}, batch_size=[2])
    assert lengths_of(labels) is None and with_lengths(labels) is labels
    assert text_mask(labels) is None


@pytest.mark.parametrize("mask", [[[0, 0, 0]], [[1, 0, 1]], [[0, 1, 1]], [[1, 1, 1], [0, 0, 0]]])
def test_a_mask_with_a_hole_is_always_used(mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    fields = {"prompt": torch.ones(len(mask), 3, 2), "mask": mask}
    holed = TensorDict(fields, batch_size=[len(mask)])
    assert count_tokens(mask) is None and with_lengths(holed) is holed
    assert text_mask(holed) is mask and TrimmedConditions.of(holed) is holed
