"""The boundary between the networks of a pipeline."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd.teachers.families.boundaries import boundary_router


@given(st.floats(0.01, 0.99), st.integers(-3, 3))
@settings(max_examples=200)
def test_every_float32_time_goes_where_the_pipeline_sends_it(ratio, steps):
    t = np.float32(ratio)
    for _ in range(abs(steps)):
        t = np.nextafter(t, np.float32(steps > 0))
    high = bool(torch.tensor(t) >= torch.tensor(np.float32(ratio)))
    assert int(boundary_router(ratio)(float(t))) == (0 if high else 1)


@pytest.mark.parametrize("ratio", [0, 1, 875, -0.1, "0.875", float("nan")])
def test_a_boundary_is_a_number_between_noise_and_data(ratio):
    with pytest.raises(ValueError, match="a boundary ratio must be a number in"):
        boundary_router(ratio)
