r"""Metrics of measured rows: of one method alone, or against a reference's.

All read their rows file by file (:class:`~pdmd.evaluation.perceptual.stores.FeatureStore`): means
and covariances are accumulated in float64, the kernel distance is the mean of its unbiased
estimates on blocks, and diversity is a mean over prompts. What is held is a block and a matrix of
:math:`D \times D`, whatever the number of samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from pdmd.evaluation.metrics import kernel_distance, pairwise_cosine
from pdmd.evaluation.moments import Moments, frechet_of_gaussians
from pdmd.evaluation.perceptual.stores import FeatureStore
from pdmd.registry import Registry

__all__ = [
    "ClipScore",
    "Diversity",
    "Frechet",
    "FrechetVideo",
    "Kernel",
    "LpipsDiversity",
    "Metric",
    "MotionDegree",
    "metrics",
]

BLOCK = 4096
"""Rows of each set in one estimate of the kernel distance."""


class Metric(ABC):
    """A figure of a method, computed of the rows of one measurement.

    Attributes:
        measurement: The measurement's name.
        figures: The names of its figures, and what each means.
        compares: Whether it compares with the reference, which then has no figure of its own.
        distance: Whether its figures are distances to the reference: lower is closer. Where the
            student's is above that of the teacher's own few steps, a comparison says so.
    """

    measurement: str
    figures: dict[str, str]
    compares: bool = False
    distance: bool = False

    @abstractmethod
    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        """Returns the figures by name.

        Args:
            own: The method's rows.
            reference: The reference's rows, of the same prompts and noise.

        Raises:
            ValueError: If there are too few rows, or they are not finite.
        """


metrics: Registry[type[Metric]] = Registry("metric")
"""Metrics by name."""


@metrics.register("diversity")
class Diversity(Metric):
    """The mean cosine between features of samples of one prompt, averaged over prompts.

    On videos, the same frames of two samples are compared.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684.
    """

    measurement = "vision"
    figures = {"cosine": "similarity within a prompt: lower is more diverse"}

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        total, prompts = 0.0, 0
        for block in own.blocks(self.measurement):
            for group in block.split(own.seeds):
                frames = group.unbind(1)
                total += sum(pairwise_cosine(frame) for frame in frames) / len(frames)
                prompts += 1
        return {"cosine": total / prompts}


@metrics.register("lpips")
class LpipsDiversity(Metric):
    """The mean LPIPS distance between samples of one prompt."""

    measurement = "lpips"
    figures = {"lpips": "distance within a prompt: higher is more diverse"}

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        return {"lpips": _mean(own, self.measurement)[0]}


@metrics.register("clip")
class ClipScore(Metric):
    """The mean CLIP score of samples and their prompts."""

    measurement = "clip"
    figures = {"clip": "agreement with the prompt, up to 100: higher is better"}

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        return {"clip": _mean(own, self.measurement)[0]}


@metrics.register("frechet")
class Frechet(Metric):
    """The Frechet distance to the reference, between Gaussians fitted to vision features.

    On videos, each frame is a row.
    """

    measurement = "vision"
    figures = {"frechet": "distance to the teacher: lower is closer"}
    compares = distance = True

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        (name,) = self.figures
        f, g = (_moments(store, self.measurement) for store in (own, reference))
        return {name: frechet_of_gaussians(f.mean, f.covariance, g.mean, g.covariance)}


@metrics.register("fvd")
class FrechetVideo(Frechet):
    """The Frechet distance to the reference, between features of a video network."""

    measurement = "video"
    figures = {"fvd": "distance of videos to the teacher: lower is closer"}


@metrics.register("kernel")
class Kernel(Metric):
    """The kernel distance to the reference, with the cubic kernel, times 1000.

    Above 4096 rows it is the mean of the unbiased estimates on blocks of as many.

    References:
        Binkowski et al., arXiv:1801.01401.
    """

    measurement = "vision"
    figures = {"kernel": "distance to the teacher, times 1000, unbiased: lower is closer"}
    compares = distance = True

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        pairs = zip(
            _blocks_of(own, self.measurement, BLOCK),
            _blocks_of(reference, self.measurement, BLOCK),
            strict=True,
        )
        total = rows = 0.0
        for f, g in pairs:
            if len(f) > 1:  # a last block of one row has no pair
                total += len(f) * kernel_distance(f, g)
                rows += len(f)
        if not rows:
            raise ValueError("the kernel distance needs 2 samples or more; draw more")
        return {"kernel": 1000 * total / rows}


@metrics.register("motion")
class MotionDegree(Metric):
    """The mean optical flow, and the dynamic degree in percent."""

    measurement = "motion"
    figures = {
        "flow": "mean optical flow in pixels a frame, at 8 frames a second: near the teacher's",
        "dynamic": "dynamic degree, percent of videos that move; near the teacher's",
    }

    def __call__(self, own: FeatureStore, reference: FeatureStore) -> dict[str, float]:
        flow, dynamic = _mean(own, self.measurement)
        return {"flow": flow, "dynamic": 100 * dynamic}


def _mean(store: FeatureStore, name: str) -> list[float]:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for block in store.blocks(name):
        total = total + block.double().sum(0)
        count += len(block)
    if not bool(total.isfinite().all()):
        raise ValueError(f"measurements of {name!r} are not finite; inspect the samples")
    return (total / count).tolist()


def _moments(store: FeatureStore, name: str) -> Moments:
    moments = Moments()
    for block in store.blocks(name):
        moments.add(block.flatten(0, -2))
    return moments


def _blocks_of(store: FeatureStore, name: str, size: int) -> Iterator[Tensor]:
    """Yields the rows of a store in blocks of a size, whatever the sizes of its files."""
    kept: list[Tensor] = []
    for block in store.blocks(name):
        kept.append(block.flatten(0, -2))
        while sum(map(len, kept)) >= size:
            rows = torch.cat(kept)
            yield rows[:size]
            kept = [rows[size:]]
    if sum(map(len, kept)):
        yield torch.cat(kept)
