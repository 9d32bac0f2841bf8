"""The section ``[health]``: what is measured while a run trains."""

from __future__ import annotations

from dataclasses import dataclass

from pdmd.training.monitoring.monitors import Monitor
from pdmd.training.monitoring.probes import HealthProbe

__all__ = ["HealthConfig"]


@dataclass(kw_only=True)
class HealthConfig:
    """Measurements of the student beside the teacher while it trains, and what goes wrong."""

    every: int = 50
    """Updates between measurements; 0 for none."""
    samples: int = 64
    """Samples of student and teacher in a measurement; at least two on each rank."""
    teacher_steps: int = 25
    """Steps of the teacher's samples, which are sampled once in a phase."""

    def build(self, seed: int) -> list[Monitor]:
        """Builds the monitors; none if nothing is measured.

        Args:
            seed: Seed of the run.
        """
        if not self.every:
            return []
        return [HealthProbe(self.every, samples=self.samples, steps=self.teacher_steps, seed=seed)]
