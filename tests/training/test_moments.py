"""Moments in 8 bits: errors of a code, and blocks that keep within rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torchao")

from pdmd.training.moments import EightBitMoments, _block

KEEP = torch.tensor(False)


@given(seed=st.integers(0, 999), rows=st.integers(64, 90), columns=st.sampled_from([64, 512]))
def test_a_moment_is_stored_to_a_fraction_of_its_blocks_largest_value(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.empty(rows, 1).uniform_(-6, 2, generator=generator)
    for name in ("exp_avg", "exp_avg_sq"):
        moment = scale * torch.randn(rows, columns, generator=generator)
        moment = moment.square() if name == "exp_avg_sq" else moment
        moments = EightBitMoments()
        state = moments.zeros(moment, name)
        assert not moments.read(state, name).any()
        moments.write(state, name, moment, KEEP)
        error = (moments.read(state, name) - moment).abs()
        blocks = moment.abs().unflatten(1, (state[f"{name}.scale"].shape[1], -1))
        largest = blocks.amax(-1, keepdim=True).expand_as(blocks).flatten(1)
        assert (error <= 0.02 * largest).all()


@given(rows=st.integers(64, 90), columns=st.sampled_from([64, 96, 512]), cut=st.integers(1, 63))
def test_rows_are_stored_as_they_are_alone(rows, columns, cut):
    moment = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    moments = EightBitMoments()
    state = moments.zeros(moment, "exp_avg")
    moments.write(state, "exp_avg", moment, KEEP)
    part = {key: torch.zeros_like(value[cut:]) for key, value in state.items()}
    moments.write(part, "exp_avg", moment[cut:].contiguous(), KEEP)  # another rank's shard
    for key, value in state.items():
        assert torch.equal(part[key], value[cut:])


def test_tensors_that_have_no_blocks_stay_in_float32():
    shapes = {(4096,): None, (8, 8): None, (64, 521): None, (64, 64): 64, (64, 3072): 256}
    shapes |= {(32, 1000): 250, (128, 3, 16, 16): 256}
    assert {shape: _block(torch.empty(shape, device="meta")) for shape in shapes} == shapes
