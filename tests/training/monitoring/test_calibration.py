"""Calibration: the slope of a score, and the score of samples."""

import pytest
import torch

from pdmd import MixtureTeacher, Prediction, RectifiedFlow
from pdmd.training.monitoring.calibration import calibration_slopes, fresh_score
from tests.helpers.diffused import diffused


def test_the_fresh_estimate_is_the_score_of_many_samples():
    teacher, s, t = MixtureTeacher(torch.tensor([[-1.0], [1.5]]), 0.4), 0.3, 0.6
    x_s, _, _ = diffused(teacher, 60_000, s, t)
    x_t = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    exact = teacher(x_t, t).to("score")
    torch.testing.assert_close(
        fresh_score(x_t, x_s, s, t, RectifiedFlow()), exact, rtol=0.05, atol=0.03
    )
    few = fresh_score(x_t, x_s[:50], s, t, RectifiedFlow())
    assert (few - exact).abs().mean() > 5 * (
        fresh_score(x_t, x_s, s, t, RectifiedFlow()) - exact
    ).abs().mean()


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_slope_of_a_scaled_score_is_the_inverse_factor(factor):
    teacher, s = MixtureTeacher(torch.zeros(1, 2), 0.8), 0.4

    class Scaled(MixtureTeacher):
        def network(self, x_t, t, condition):
            prediction = teacher(x_t, t, condition)
            scaled = Prediction(
                value=factor * prediction.to("score"),
                kind="score",
                x_t=x_t,
                t=t,
                schedule=teacher.schedule,
            )
            return scaled.to(self.kind)

    x_s, _, _ = diffused(teacher, 100_000, s, 0.7)
    generator = torch.Generator().manual_seed(0)
    exact, scaled = calibration_slopes(
        [teacher, Scaled(torch.zeros(1, 2), 0.8)], x_s, s, [0.6, 0.9], None, generator
    )
    assert exact == pytest.approx([1, 1], abs=0.02)
    assert scaled == pytest.approx([1 / factor] * 2, rel=0.02)
