"""Detectors: which series of measurements they name, and which they do not."""

import pytest

from pdmd.training.monitoring.detectors import HealthRecord, diagnose

GOOD = {
    "contrast": 1.0,
    "mean_drift": 0.0,
    "diversity": 0.95,
    "motion": 1.0,
    "fake_loss": 1.0,
    "fake_error": 0.05,
}


def series(name, values, *, error=0.01, phase=1):
    return [
        HealthRecord(
            phase=phase,
            update=10 * (i + 1),
            updates=10 * len(values),
            values={
                f"health/{k}": v for k, v in {**GOOD, f"{name}_error": error, name: value}.items()
            },
        )
        for i, value in enumerate(values)
    ]


def names(records):
    return [(f.name, f.phase, f.update) for f in diagnose(records)]


@pytest.mark.parametrize(
    ("name", "values", "finding", "update"),
    [
        ("contrast", [1, 1, 1.5, 1.6, 1.7], "oversaturation", 30),
        ("mean_drift", [0, 0, -1.0, -1.1, -1.2], "oversaturation", 30),
        ("diversity", [0.1, 0.9, 0.3, 0.2, 0.2], "collapse", 30),
        ("motion", [0.9, 0.9, 0.4, 0.2, 0.1], "static video", 30),
        ("fake_loss", [0.4, 1.0, 1.1, 2.0, float("inf")], "diverging fake score", 40),
        ("fake_loss", [1.0, 1.0, 1.0, float("nan"), float("nan")], "diverging fake score", 40),
        ("fake_error", [0.9, 0.3, 0.3, 0.5, 0.6], "inaccurate fake score", 40),
    ],
)
def test_a_failure_is_named_once_since_it_began(name, values, finding, update):
    assert names(series(name, values)) == [(finding, 1, update)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("contrast", [0.3, 0.8, 1.0, 1.1, 1.2]),
        ("contrast", [1.0, 1.6, 1.0, 1.6, 1.0]),  # passes
        ("diversity", [0.01, 0.1, 0.5, 0.8, 0.9]),  # as an expert of one step starts
        ("motion", [0.1, 0.3, 0.6, 0.8, 0.9]),
        ("fake_loss", [0.01, 0.5, 0.9, 1.0, 1.05]),
        ("fake_error", [0.9, 0.6, 0.2, 0.1, 0.1]),
    ],
)
def test_a_good_run_has_no_findings(name, values):
    assert names(series(name, values)) == []


def test_a_measurement_of_few_samples_is_not_mistaken_for_a_failure():
    values = [1, 1, 1.5, 1.6, 1.5]
    assert names(series("contrast", values, error=0.2)) == []


def test_every_phase_is_judged_by_itself():
    bad = [1.0, 1.6, 1.7, 1.8]
    records = series("contrast", bad) + series("contrast", bad, phase=2)
    assert names(records) == [("oversaturation", 1, 20), ("oversaturation", 2, 20)]
    # the last record of a phase and the first of the next are not two in a row
    assert names(series("contrast", [1, 1.6]) + series("contrast", [1.6, 1], phase=2)) == []


def test_a_finding_says_what_why_and_what_to_do_in_one_line():
    (finding,) = diagnose(series("diversity", [0.9, 0.9, 0.1, 0.1]))
    assert "\n" not in finding.line()
    assert "update 30" in finding.line() and finding.remedy in finding.line() and finding.cause
