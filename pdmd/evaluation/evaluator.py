"""The base of evaluators: the metrics of samples with given conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pdmd.typing import Latents

__all__ = ["Evaluator"]


class Evaluator(ABC):
    """Computes the metrics of samples with given conditions."""

    quality: str
    """The name of the quality metric in reports; lower is better."""
    diversity: str
    """The name of the diversity metric in reports."""

    @abstractmethod
    def __call__(self, x: Latents) -> dict[str, float]:
        """Returns the metrics of samples with shape :math:`(B, *)`, one per condition."""

    def real(self) -> dict[str, float] | None:
        """Returns the metrics of real data, or ``None`` without real data."""
        return None
