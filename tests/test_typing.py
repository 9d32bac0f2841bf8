"""Operations on latents, times and conditions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd.typing import expand, join_conditions, labels_of, moved, repeat_condition


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_coefficient_multiplies_its_own_sample(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    coefficient = torch.arange(1, shape[0] + 1, dtype=torch.float64)
    scaled = expand(coefficient, x) * x
    assert scaled.dtype == torch.promote_types(dtype, torch.float32)
    for i, row in enumerate(scaled):
        assert torch.equal(row, torch.full_like(row, i + 1))
    assert torch.equal(expand(torch.tensor(2.0), x) * x, torch.full_like(scaled, 2))


def test_a_tensor_on_its_device_is_returned_as_it_is():
    x = torch.ones(3)
    assert moved(x, "cpu") is x and moved(x, torch.device("cpu")) is x
    assert moved(x, "meta").device.type == "meta"


def condition(rows, length, value):
    mask = torch.ones(rows, length, dtype=torch.bool)
    fields = {
        "prompt": torch.full((rows, length, 2), value),
        "mask": mask,
        "label": torch.full((rows,), int(value)),
    }
    return TensorDict(fields, batch_size=[rows])


def test_joined_conditions_are_padded_with_zeros_to_the_longest():
    joined = join_conditions(condition(1, 2, 1.0), condition(2, 4, 2.0), condition(1, 3, 3.0))
    assert joined.batch_size == (4,)
    assert joined["label"].tolist() == [1, 2, 2, 3]
    assert joined["mask"].sum(1).tolist() == [2, 4, 4, 3]
    assert joined["prompt"].sum((1, 2)).tolist() == [4.0, 16.0, 16.0, 18.0]
    assert not joined["prompt"][~joined["mask"]].any()


def test_a_condition_is_repeated_without_copying():
    one = condition(1, 2, 1.0)
    repeated = repeat_condition(one, 3)
    assert repeated.batch_size == (3,)
    assert torch.equal(repeated["prompt"], one["prompt"].expand(3, -1, -1))
    assert repeated["prompt"].data_ptr() == one["prompt"].data_ptr()
    assert repeat_condition(None, 3) is None


def test_a_condition_without_labels_raises():
    assert labels_of(condition(2, 1, 5.0)).tolist() == [5, 5]
    for without in (None, condition(2, 1, 5.0).exclude("label")):
        with pytest.raises(ValueError, match="no 'label'"):
            labels_of(without)
