"""Figures: what is plotted where."""

import base64

import matplotlib.colors
import numpy as np
import pytest
import torch

from pdmd.evaluation.figures import (
    calibration_figure,
    data_uri,
    loss_figure,
    plan_figure,
    side_by_side,
    tradeoff_figure,
    vector_scatter,
)


def test_losses_of_a_single_update_are_all_drawn():
    scalars = {"fake/score_matching": 1.0, "generator/distribution_matching": 2.0}
    figure = loss_figure([{"phase": 1, "update": 1, "scalars": scalars}])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["fake: score matching", "generator: distribution matching"]


def test_losses_of_phases_are_concatenated():
    history = [
        {"phase": phase, "update": update, "scalars": {"loss": phase + update / 10}}
        for phase in (1, 2)
        for update in (1, 2, 3)
    ]
    first, second = loss_figure(history).axes[0].lines
    assert first.get_xdata().tolist() == [1, 2, 3]
    assert second.get_xdata().tolist() == [4, 5, 6]
    assert second.get_ydata().tolist() == pytest.approx([2.1, 2.2, 2.3])


def test_a_data_uri_contains_the_png():
    figure = vector_scatter({"": torch.randn(20, 2)})
    prefix, content = data_uri(figure).split(",")
    assert prefix == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")
    again = data_uri(base64.b64decode(content))
    assert again.split(",")[1] == content
    with pytest.raises(ValueError, match="is not a PNG"):
        data_uri(b"bytes")


def test_images_are_placed_in_rows():
    images = torch.arange(4).reshape(4, 1, 1, 1).expand(4, 1, 2, 2) / 4
    axes = side_by_side({"title": images}, columns=2).axes[0]
    canvas = np.asarray(axes.images[0].get_array())
    assert axes.get_title() == "title" and canvas.shape == (7, 7)
    assert [canvas[1, 1], canvas[1, 4], canvas[4, 1], canvas[4, 4]] == [0, 0.25, 0.5, 0.75]
    assert canvas[0, 0] == canvas[3, 3] == 1


def test_videos_show_their_middle_frame():
    video = torch.stack([torch.full((1, 1, 2, 2), v) for v in (0.0, 0.5, 1.0)], 2)
    canvas = side_by_side({"": video.reshape(1, 1, 3, 2, 2)}, columns=1).axes[0].images[0]
    assert np.asarray(canvas.get_array())[1, 1] == 0.5


def test_a_plan_has_a_bar_for_subinterval_and_score_range():
    phases = [
        {"timesteps": [1.0], "t_end": 0.5, "score_range": [0.5, 1.0], "log_snr": [None, 0.0]},
        {"timesteps": [0.5], "t_end": 0.0, "score_range": [0.0, 0.5], "log_snr": [0.0, None]},
    ]
    axes = plan_figure(phases).axes[0]
    wide, narrow, disjoint, second = axes.patches
    assert wide.get_x() == narrow.get_x() and wide.get_width() == narrow.get_width()
    assert narrow.get_x() + narrow.get_width() == second.get_x() == disjoint.get_x() == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["phase 1", "phase 2"]


def test_calibration_has_a_panel_per_score_and_a_curve_per_phase():
    curves = [{"phase": 1, "t": [0.2, 0.8], "fake": [1.0, 1.1], "real": [0.9, 0.8]}]
    fake, real = calibration_figure(curves).axes
    assert [axes.get_title() for axes in (fake, real)] == ["fake score", "teacher"]
    assert list(fake.lines[0].get_ydata()) == [1, 1]  # the calibrated line
    assert list(fake.lines[1].get_ydata()) == [1.0, 1.1]
    assert list(real.lines[1].get_ydata()) == [0.9, 0.8]


def test_the_tradeoff_has_a_point_per_method_with_nfe():
    rows = [
        {"method": "real", "nfe": 0, "sw2": 0.1, "klh": 0.0},
        {"method": "teacher", "nfe": 100, "sw2": 0.2, "klh": 0.1},
        {"method": "student", "nfe": 4, "sw2": 0.3, "klh": 0.2},
    ]
    quality, diversity = tradeoff_figure(rows, "sw2", "klh").axes
    points = [(line.get_label(), *line.get_xydata()[0]) for line in quality.lines]
    assert points == [("teacher", 100, 0.2), ("student", 4, 0.3)]
    assert [line.get_ydata()[0] for line in diversity.lines] == [0.1, 0.2]
    colours = {matplotlib.colors.to_hex(line.get_color()) for line in quality.lines}
    assert len(colours) == 2
