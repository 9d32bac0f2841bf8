r"""Detectors: what users of this method fear, recognized from the measurements of a run.

A detector observes the health records of a run in their order, and returns a finding when what it
looks for has lasted for two records; once, until it has passed. Ratios to the teacher are compared
with a bound only where they are beyond it by three standard errors, so that a measurement of few
samples is not mistaken for a failure.

An expert of one step starts as the posterior mean of its noise, which has little contrast,
diversity and motion: detectors of too little therefore judge the second half of a phase, or a
fall below half of what the phase had reached before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pdmd.arguments import checked

__all__ = [
    "Collapse",
    "Detector",
    "DivergingFakeScore",
    "Finding",
    "HealthRecord",
    "InaccurateFakeScore",
    "Oversaturation",
    "StaticVideo",
    "default_detectors",
    "diagnose",
]

ERRORS = 3.0
"""Standard errors by which a ratio must be beyond its bound."""


@checked
@dataclass(frozen=True, kw_only=True)
class HealthRecord:
    """The measurements at one update.

    Attributes:
        phase: Number of the phase, from 1.
        update: Number of the update within the phase, from 1.
        updates: Updates of the phase.
        values: Measurements by name (:mod:`pdmd.training.monitoring.probes`).
    """

    phase: int
    update: int
    updates: int
    values: Mapping[str, float]

    @property
    def settled(self) -> bool:
        """Whether the second half of the phase has begun."""
        return 2 * self.update > self.updates


@checked
@dataclass(frozen=True, kw_only=True)
class Finding:
    """What went wrong.

    Attributes:
        name: The failure, as ``collapse``.
        phase: Number of the phase, from 1.
        update: The update of the first record that shows it.
        evidence: The measurement, in words.
        cause: Why it happens.
        remedy: What to change.
    """

    name: str
    phase: int
    update: int
    evidence: str
    cause: str
    remedy: str

    def line(self) -> str:
        """Returns the finding in one line."""
        return (
            f"{self.name} since phase {self.phase}, update {self.update}: {self.evidence}; "
            f"{self.remedy}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)


class Detector(ABC):
    """Recognizes one failure."""

    @abstractmethod
    def observe(self, record: HealthRecord) -> Finding | None:
        """Observes the next record of a run, and returns a finding if it completes one."""


class _Lasting:
    """Whether a condition has held for a number of records in a row, once in a phase."""

    def __init__(self, records: int = 2) -> None:
        self.records = records
        self.phase, self.since, self.count = 0, 0, 0

    def __call__(self, record: HealthRecord, holds: bool) -> int | None:
        """Returns the update since which the condition holds, when it has just lasted."""
        if record.phase != self.phase:
            self.phase, self.count = record.phase, 0
        if not holds:
            self.count = 0
            return None
        self.count += 1
        if self.count == 1:
            self.since = record.update
        return self.since if self.count == self.records else None


class _Best:
    """The highest value of the earlier records of a phase."""

    def __init__(self) -> None:
        self.phase, self.value = 0, -math.inf

    def __call__(self, record: HealthRecord, value: float) -> float:
        if record.phase != self.phase:
            self.phase, self.value = record.phase, -math.inf
        before, self.value = self.value, max(self.value, value)
        return before


def _check_threshold(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is a ratio, 0 or more and finite, got {value}")


def _ratio(record: HealthRecord, name: str) -> tuple[float, float] | None:
    """Returns a ratio and its relative standard error."""
    value = record.values.get(f"health/{name}")
    if value is None or not math.isfinite(value):
        return None
    return value, record.values.get(f"health/{name}_error", 0.0)


@checked
class Oversaturation(Detector):
    """The latents' contrast, or the distance of their mean, exceeds the teacher's.

    Args:
        contrast: Standard deviation over the teacher's, above which latents are oversaturated.
        drift: Distance of the means, in standard deviations of the teacher.
    """

    def __init__(self, contrast: float = 1.35, drift: float = 0.75) -> None:
        _check_threshold(contrast=contrast, drift=drift)
        self.contrast, self.drift = contrast, drift
        self._lasting = _Lasting()

    def observe(self, record: HealthRecord) -> Finding | None:
        contrast, drift = _ratio(record, "contrast"), _ratio(record, "mean_drift")
        if contrast is None or drift is None:
            return None
        high = contrast[0] * (1 - ERRORS * contrast[1]) > self.contrast
        far = abs(drift[0]) - ERRORS * drift[1] > self.drift
        since = self._lasting(record, high or far)
        if since is None:
            return None
        return Finding(
            name="oversaturation",
            phase=record.phase,
            update=since,
            evidence=(
                f"the latents' contrast is {contrast[0]:.2f} times the teacher's, their mean "
                f"{drift[0]:+.2f} of its standard deviations away"
            ),
            cause=(
                "the expert leaves the teacher's range faster than the fake score can follow, or "
                "the guidance scale pushes it there"
            ),
            remedy=("lower train.lr or teacher.guidance, or raise train.fake_updates"),
        )


@checked
class Collapse(Detector):
    """Samples of one prompt are much more alike than the teacher's.

    Args:
        diversity: Diversity within prompts over the teacher's, below which it has collapsed.
    """

    def __init__(self, diversity: float = 0.4) -> None:
        _check_threshold(diversity=diversity)
        self.diversity = diversity
        self._lasting, self._best = _Lasting(), _Best()

    def observe(self, record: HealthRecord) -> Finding | None:
        ratio = _ratio(record, "diversity")
        if ratio is None:
            return None
        value, error = ratio
        best = self._best(record, value)
        low = value * (1 + ERRORS * error) < self.diversity
        since = self._lasting(record, low and (record.settled or value < best / 2))
        if since is None:
            return None
        similarity = record.values.get("health/similarity", math.nan)
        teacher = record.values.get("health/teacher_similarity", math.nan)
        return Finding(
            name="collapse",
            phase=record.phase,
            update=since,
            evidence=(
                f"samples of one prompt are alike to {similarity:.2f}, the teacher's to "
                f"{teacher:.2f} ({100 * value:.0f} % of its diversity)"
            ),
            cause=(
                "the expert seeks a few modes of the teacher, since the fake score does not show "
                "it where its samples lie too densely, or since its updates are too large"
            ),
            remedy=(
                "raise train.fake_updates or lower train.lr, add the repulsion objective, or "
                "train with plan.steps above 1"
            ),
        )


@checked
class StaticVideo(Detector):
    """Frames of a video differ much less than the teacher's.

    Args:
        motion: Mean absolute difference of latent frames over the teacher's, below which a video
            is static.
    """

    def __init__(self, motion: float = 0.5) -> None:
        _check_threshold(motion=motion)
        self.motion = motion
        self._lasting, self._best = _Lasting(), _Best()

    def observe(self, record: HealthRecord) -> Finding | None:
        ratio = _ratio(record, "motion")
        if ratio is None:
            return None
        value, error = ratio
        best = self._best(record, value)
        low = value * (1 + ERRORS * error) < self.motion
        since = self._lasting(record, low and (record.settled or value < best / 2))
        if since is None:
            return None
        return Finding(
            name="static video",
            phase=record.phase,
            update=since,
            evidence=f"latent frames differ by {100 * value:.0f} % of the teacher's motion",
            cause=(
                "motion is decided at high noise, where the expert has learned a mean of videos"
            ),
            remedy=(
                "train the first phase longer (train.update_shares), give it more steps "
                "(plan.steps) or a plan.shift nearer noise, or lower train.lr"
            ),
        )


@checked
class InaccurateFakeScore(Detector):
    """The relative error of the fake score stays high: it lags behind the student.

    Args:
        error: The relative error (root mean square over bins of time) above which it does.
    """

    def __init__(self, error: float = 0.35) -> None:
        _check_threshold(error=error)
        self.error = error
        self._lasting = _Lasting()

    def observe(self, record: HealthRecord) -> Finding | None:
        error = record.values.get("health/fake_error")
        if error is None:
            return None
        high = not error <= self.error
        since = self._lasting(record, high and (record.settled or record.update > 200))
        if since is None:
            return None
        return Finding(
            name="inaccurate fake score",
            phase=record.phase,
            update=since,
            evidence=f"its relative error is {error:.2f}, where {self.error:g} is tolerated",
            cause="the student's distribution moves faster than the fake score learns it",
            remedy=(
                "raise train.fake_updates or train.fake_lr, or lower train.lr; "
                "train.fake_error_tolerance chooses the number of fake updates by this error"
            ),
        )


@checked
class DivergingFakeScore(Detector):
    """The fake score predicts the student's samples worse than the teacher, at which it started.

    Args:
        excess: The fake score's loss over the teacher's, above which it diverges.
    """

    def __init__(self, excess: float = 1.5) -> None:
        _check_threshold(excess=excess)
        self.excess = excess
        self._lasting = _Lasting()

    def observe(self, record: HealthRecord) -> Finding | None:
        loss = record.values.get("health/fake_loss")
        if loss is None:
            return None
        since = self._lasting(record, not loss <= self.excess)
        if since is None:
            return None
        return Finding(
            name="diverging fake score",
            phase=record.phase,
            update=since,
            evidence=f"on the student's samples its loss is {loss:.3g} times the teacher's",
            cause=(
                "its learning rate is too high, or the student left the range in which the "
                "fake score was trained"
            ),
            remedy="lower train.fake_lr, or train.lr where the student is the cause",
        )


def default_detectors() -> tuple[Detector, ...]:
    """Returns a new detector of each kind."""
    return (
        Oversaturation(),
        Collapse(),
        StaticVideo(),
        InaccurateFakeScore(),
        DivergingFakeScore(),
    )


@checked
def diagnose(
    records: Iterable[HealthRecord], detectors: Sequence[Detector] | None = None
) -> list[Finding]:
    """Returns the findings of a run's records, in their order.

    Args:
        records: The records.
        detectors: Detectors that have observed nothing yet; by default all.
    """
    detectors = default_detectors() if detectors is None else detectors
    found = [detector.observe(record) for record in records for detector in detectors]
    return [finding for finding in found if finding is not None]
