r"""Entry states: the conditions and latents :math:`x_{t_{k-1}}` at which a phase's rollouts start.

The experts of earlier phases are frozen, so what they make is exact data: it may be made in large
batches without a gradient, kept, and used when it is needed. A :class:`EntryRing` keeps batches
and hands each out a number of times; when the next phase begins, what it holds is carried on by
the one expert that was finished, rather than made again from noise.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.experts import Expert
from pdmd.randomness import RankGenerator, randn
from pdmd.training.accounting import Account
from pdmd.training.data import ConditionStream
from pdmd.typing import Condition, Latents

__all__ = ["Entries", "EntryRing", "FreshEntries", "Producer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Producer:
    """What entry states of a phase are made of.

    Attributes:
        experts: The frozen experts of the phases before, noisiest first.
        conditions: Draws the conditions.
        latent_shape: Shape of one sample.
        sigma: Standard deviation of the noise at time 1.
        batch: Samples in a batch, on this rank.
        device: Where latents live.
        generator: The source of the run's randomness.
        seed: The seed of the run.
        account: Counts network evaluations.
    """

    experts: Sequence[Expert]
    conditions: ConditionStream
    latent_shape: Sequence[int]
    sigma: float
    batch: int
    device: torch.device
    generator: torch.Generator
    seed: int
    account: Account

    def noise(self, generator: torch.Generator) -> tuple[Latents, Tensor | None]:
        """Draws a batch of conditions, as rows of the stream, and of noise at time 1."""
        rows = self.conditions.rows(self.batch, generator)
        shape = (self.batch, *self.latent_shape)
        return self.sigma * randn(shape, generator, device=self.device), rows


class Entries(ABC):
    """Hands out the entry states of a phase, a batch at a time."""

    producer: Producer

    def begin(self, producer: Producer) -> None:
        """Hears that a phase begins, or goes on after :meth:`restore`."""
        self.producer = producer

    @abstractmethod
    def take(self) -> tuple[Latents, Condition]:
        r"""Returns a batch.

        Returns:
            :math:`x_{t_{k-1}}`, with shape :math:`(B, *)`, and its condition.
        """

    def state(self) -> dict[str, int]:
        """Returns what a checkpoint keeps."""
        return {}

    def restore(self, state: Mapping[str, int]) -> None:
        """Takes what :meth:`state` returned, before :meth:`begin`."""
        return


class FreshEntries(Entries):
    """Makes every batch when it is asked for, and forgets it."""

    @torch.no_grad()
    def take(self) -> tuple[Latents, Condition]:
        p = self.producer
        x, rows = p.noise(p.generator)
        condition = p.conditions.take(rows)
        for expert in p.experts:
            x = expert(x, condition, generator=p.generator)
        return x, condition

    def __repr__(self) -> str:
        return "FreshEntries()"


class EntryRing(Entries):
    r"""Keeps batches made beforehand and hands each out a number of times.

    The ring is filled when it is first asked and whenever all of it has been used up, from noise
    through all earlier experts. When a phase begins, what it holds is carried on by the newest
    expert alone: a ring that is never used up within a phase so costs one expert's steps a sample
    and phase. Its batches are handed out in a new order each time.

    Everything in it is drawn from generators of its own, seeded by the run's seed and the number
    of the fill: a resumed run makes it again, to the bit. Ranks that share out a batch keep their
    own rows.

    Args:
        batches: Batches that it holds.
        uses: How often each is handed out before it is replaced.
        together: Batches that pass through the experts together.
        folder: Keep the latents in memory-mapped files in this local folder rather than in the
            device's memory; a run and every rank use a subfolder of their own.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        batches: int = 64,
        *,
        uses: int = 1,
        together: int = 4,
        folder: str | Path | None = None,
    ) -> None:
        for name, value in (("batches", batches), ("uses", uses), ("together", together)):
            if value < 1:
                raise ValueError(f"a ring's {name} must be at least 1, got {value}")
        self.batches, self.uses, self.together = int(batches), int(uses), int(together)
        self.folder = None if folder is None else Path(folder)
        self._fill = self._served = self._phase = 0
        self._passed = self._counted = 0  # experts that its content has passed; been counted for
        self._content: Any = None
        self._rows: list[Tensor | None] = []
        self._order: list[int] = []
        self._place: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, producer: Producer) -> None:
        super().begin(producer)
        phase = len(producer.experts)
        if phase != self._phase:
            self._served = 0
        self._phase = phase
        if self._content is not None:
            self._carry()

    def take(self) -> tuple[Latents, Condition]:
        p = self.producer
        if self._served == self.batches * self.uses:
            self._fill, self._served, self._counted = self._fill + 1, 0, 0
            self._content = None
        if self._content is None:
            self._make()
        turn, place = divmod(self._served, self.batches)
        if place == 0 or not self._order:
            order = torch.randperm(self.batches, generator=self._generator(1, turn))
            self._order = order.tolist()
        index = self._order[place]
        self._served += 1
        x = self._content[index]["x"].to(p.device, copy=True)
        return x, p.conditions.take(self._rows[index])

    def state(self) -> dict[str, int]:
        names = ("fill", "served", "phase", "counted")
        return {name: getattr(self, f"_{name}") for name in names}

    def restore(self, state: Mapping[str, int]) -> None:
        for name, value in state.items():
            setattr(self, f"_{name}", int(value))
        self._content = None

    def _make(self) -> None:
        from tensordict import TensorDict

        p = self.producer
        generator = self._generator(0)
        drawn = [p.noise(generator) for _ in range(self.batches)]
        self._rows = [rows for _, rows in drawn]
        self._content = TensorDict(
            {"x": torch.stack([x for x, _ in drawn])}, batch_size=[self.batches]
        )
        self._passed, self._order = 0, []
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._place = tempfile.TemporaryDirectory(prefix="entries-", dir=self.folder)
            self._content = self._content.cpu().memmap_(self._place.name)
        self._carry()

    @torch.no_grad()
    def _carry(self) -> None:
        """Passes what the ring holds through the experts that it has not passed yet."""
        p = self.producer
        for i, expert in enumerate(p.experts[self._passed :], self._passed):
            generator = self._generator(2, i)
            size = 1 if expert.draws else self.together  # noise is drawn batch by batch
            with p.account.paused(i < self._counted):  # made again in a run that was resumed
                for first in range(0, self.batches, size):
                    self._pass(expert, range(first, min(first + size, self.batches)), generator)
        self._passed = self._counted = len(p.experts)
        self._order = []

    def _pass(self, expert: Expert, places: range, generator: torch.Generator) -> None:
        x = torch.cat([self._content[i]["x"] for i in places]).to(self.producer.device)
        rows = [row for row in self._rows[places.start : places.stop] if row is not None]
        condition = self.producer.conditions.take(torch.cat(rows) if rows else None)
        x = expert(x, condition, generator=generator)
        for i, part in zip(places, x.chunk(len(places)), strict=True):
            self._content[i]["x"].copy_(part)

    def _generator(self, purpose: int, more: int = 0) -> RankGenerator:
        own = self.producer.generator
        rank, ranks = getattr(own, "rank", 0), getattr(own, "ranks", 1)
        seed = self.producer.seed
        for part in (purpose, self._fill, more):
            seed = (seed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % 2**63
        return RankGenerator.make(seed, rank, ranks)

    def __repr__(self) -> str:
        return f"EntryRing({self.batches}, uses={self.uses})"
