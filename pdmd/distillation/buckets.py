r"""Buckets: the sizes of samples that a distillation trains on, one of which is drawn per batch.

All samples of a batch have one latent shape. With buckets :math:`b` of weight :math:`w_b`, every
batch of phase inputs is drawn from bucket :math:`b` with probability :math:`w_b / \sum_j w_j`, by
the run's generator, so that all ranks draw the same one.

Families of models whose time shift depends on the size evaluate larger samples nearer noise. In a
bucket, the times of the plan follow: with the family's shift :math:`k_b` there and :math:`k` at
the plan's own size,

.. math:: t \mapsto \frac{r t}{1 + (r - 1) t}, \qquad r = k_b / k,

which maps 0 to 0 and 1 to 1, and changes the log-SNR of rectified flow by :math:`-2 \log r`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from pdmd.arguments import checked
from pdmd.diffusion.schedules import check_shift, shift_times
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.typing import Latents

__all__ = ["Bucket", "Buckets"]


@checked
@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One size of samples.

    Attributes:
        latent_shape: Shape of one sample's latents, without the batch dimension.
        weight: Its share of the batches, relative to that of other buckets.
        shift: The shift :math:`r` of the plan's times at this size; 1 for the plan's own times.

    Raises:
        ValueError: If the shape is empty or has a number below 1, or weight or shift is not
            positive and finite.
    """

    latent_shape: tuple[int, ...]
    weight: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.latent_shape or min(self.latent_shape) < 1:
            raise ValueError(f"a bucket's latents have a positive shape, got {self.latent_shape}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"the weight of bucket {self} must be positive and finite, got {self.weight}"
            )
        check_shift(self.shift)

    def __str__(self) -> str:
        return " x ".join(map(str, self.latent_shape))

    def phase(self, phase: Phase) -> Phase:
        """Returns a phase with the times of this size."""
        if self.shift == 1:
            return phase
        low, high = phase.score_range
        times = [*phase.timesteps, phase.t_end, low, high]
        *steps, t_end, low, high = shift_times(
            torch.tensor(times, dtype=torch.float64), self.shift
        ).tolist()
        return replace(phase, timesteps=tuple(steps), t_end=t_end, score_range=(low, high))

    def expert(self, expert: Expert) -> Expert:
        """Returns an expert over the same network with the times of this size."""
        if self.shift == 1:
            return expert
        return type(expert)(expert.denoiser, self.phase(expert.phase))

    def plan(self, plan: PhasePlan) -> PhasePlan:
        """Returns a plan with the times of this size."""
        return plan if self.shift == 1 else PhasePlan(tuple(self.phase(p) for p in plan))


class Buckets:
    """Sizes of samples, of which one is drawn per batch.

    Args:
        buckets: The sizes; a single one is not drawn, so that it changes no random number.

    Raises:
        ValueError: If there is none, or two have one latent shape.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        if not buckets:
            raise ValueError("give at least one bucket")
        self._by_shape = {bucket.latent_shape: bucket for bucket in buckets}
        if len(self._by_shape) < len(buckets):
            shapes = [bucket.latent_shape for bucket in buckets]
            twice = next(bucket for bucket in buckets if shapes.count(bucket.latent_shape) > 1)
            raise ValueError(
                f"two buckets have latents of {twice}; give a size once, with the sum of weights"
            )
        self._buckets = tuple(buckets)
        *self._sums, self.total = accumulate(bucket.weight for bucket in buckets)

    @classmethod
    def of_shape(cls, latent_shape: Sequence[int]) -> Buckets:
        """Returns the one size of this latent shape."""
        return cls([Bucket(latent_shape=tuple(latent_shape))])

    @classmethod
    def read(cls, description: Sequence[Mapping[str, Any]]) -> Buckets:
        """Builds buckets from the result of :meth:`describe`.

        Raises:
            LookupError: If a key is missing.
            ValueError: If a value is out of its range.
        """
        return cls(
            [
                Bucket(
                    latent_shape=tuple(entry["latent_shape"]),
                    weight=entry["weight"],
                    shift=entry["shift"],
                )
                for entry in description
            ]
        )

    def describe(self) -> list[dict[str, Any]]:
        """Returns the buckets as JSON values."""
        return [
            {"latent_shape": list(b.latent_shape), "weight": b.weight, "shift": b.shift}
            for b in self
        ]

    def draw(self, generator: torch.Generator) -> Bucket:
        """Draws the bucket of a batch, the same on all ranks.

        Args:
            generator: The run's random generator; not used if there is one bucket.
        """
        if not self._sums:
            return self._buckets[0]
        u = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
        return self._buckets[bisect_right(self._sums, float(u) * self.total)]

    def probability(self, bucket: Bucket) -> float:
        """Returns the expected share of a bucket in all batches."""
        return bucket.weight / self.total

    def find(self, latent_shape: Sequence[int]) -> Bucket | None:
        """Returns the bucket of a latent shape, ``None`` if there is none."""
        return self._by_shape.get(tuple(latent_shape))

    def expert(self, expert: Expert, x: Latents) -> Expert:
        """Returns an expert with the times of the size of latents; itself at the plan's times.

        Args:
            expert: The expert, with the plan's times.
            x: Latents, with shape :math:`(B, *)`. Sizes without a bucket have the plan's times.
        """
        bucket = self._by_shape.get(tuple(x.shape[1:]))
        return expert if bucket is None else bucket.expert(expert)

    def plans(self, plan: PhasePlan) -> list[PhasePlan]:
        """Returns the plan at each size, without repetitions."""
        return list({b.shift: b.plan(plan) for b in self}.values())

    def seen_at(
        self, latent_shape: Sequence[int], experts: Sequence[Expert]
    ) -> tuple[Buckets, list[Expert]]:
        """Returns the sizes and experts as they are where another size is the student's own.

        Args:
            latent_shape: The size. If it is no bucket's, nothing changes.
            experts: The experts, with the plan's times.
        """
        own = self.find(latent_shape)
        if own is None:
            return self, list(experts)
        relative = Buckets([replace(b, shift=b.shift / own.shift) for b in self])
        return relative, [own.expert(expert) for expert in experts]

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def __len__(self) -> int:
        return len(self._buckets)

    def __repr__(self) -> str:
        shares = ", ".join(f"{b} ({self.probability(b):.0%})" for b in self)
        return f"Buckets({shares})"
