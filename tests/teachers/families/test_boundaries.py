"""The boundary between the networks of a pipeline."""

import numpy as np
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
