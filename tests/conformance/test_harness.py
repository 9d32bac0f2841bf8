"""The harness: tolerances, the scale of its latents, and the text of a report."""

import pytest
import torch

from pdmd import CosineVP
from pdmd.conformance.harness import CheckFailed, Outcome, Report, TeacherHarness
from tests.helpers.broken_teachers import SmallTeacher


def test_equal_tensors_pass_and_different_ones_raise_with_their_error():
    harness = TeacherHarness(SmallTeacher(), ["a", "bb", "a"], seed=0)
    x = torch.linspace(-2, 2, 16).reshape(1, 16)
    assert harness.assert_close(x, x, "itself") == 0
    with pytest.raises(CheckFailed, match=r"shifted: relative error 0\.05, tolerance 0\.0002"):
        harness.assert_close(x + 0.1, x, "shifted")
    with pytest.raises(CheckFailed, match=r"half: shape \(1, 8\), not \(1, 16\)"):
        harness.assert_close(x[:, :8], x, "half")


def test_latents_have_the_scale_of_the_schedule():
    harness = TeacherHarness(SmallTeacher(CosineVP()), ["a"], seed=0)
    alpha, sigma = CosineVP()(0.3)
    expected = float(torch.hypot(alpha, sigma))
    assert float(harness.latents(0.3, rows=4000).std()) == pytest.approx(expected, rel=0.02)


def test_half_precision_widens_the_tolerance():
    full = TeacherHarness(SmallTeacher(), ["a"], seed=0)
    half = TeacherHarness(SmallTeacher().bfloat16(), ["a"], seed=0)
    assert (full.tolerance, half.tolerance) == (2e-4, 5e-2)


def test_a_report_has_a_line_per_check_and_passes_unless_one_failed():
    outcomes = [
        Outcome(name="range", passed=True, detail="fine"),
        Outcome(name="decode", passed=None, detail="has no decode()"),
    ]
    report = Report(tuple(outcomes))
    assert report.passed and report.failed == ()
    assert str(report) == "PASS  range          fine\nn/a   decode         has no decode()"
    failing = Report((*outcomes, Outcome(name="rows", passed=False, detail="differ")))
    assert not failing.passed and failing.failed == ("rows",)
