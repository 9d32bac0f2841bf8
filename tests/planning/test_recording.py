"""Recorded memory is affine in the batch, and peaks are kept if moments do not correspond."""

import numpy as np

from pdmd.planning.recording import KINDS, Recording, fit


def recording(live, forward_end):
    return Recording(
        bytes=np.array(live, dtype=float),
        forward_end=forward_end,
        flops=(0, 0),
        unit_flops=0,
        attention=0,
        row_outputs=0,
        column_inputs=0,
        tokens=0,
    )


def column(values):
    """Places bytes in the first kind, activations outside the units."""
    return [[v, *[0] * (len(KINDS) - 1)] for v in values]


def test_two_batches_determine_any_other():
    timeline = fit(recording(column([10, 30]), 1), recording(column([10, 50]), 1), (2, 4))
    assert timeline.bytes(7, (1, 0, 0, 0, 0)).tolist() == [10, 80]
    assert timeline.bytes(7, (0.5, 0, 0, 0, 0)).tolist() == [5, 40]


def test_a_loop_over_samples_keeps_its_peaks():
    few = recording(column([0, 8, 4, 4]), 2)
    many = recording(column([0, 8, 4, 16, 8, 8]), 4)
    timeline = fit(few, many, (2, 4))
    live = timeline.bytes(4, (1, 0, 0, 0, 0))
    assert timeline.forward_end == 1 and live.tolist() == [16, 8, 8, 8]
