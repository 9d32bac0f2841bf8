r"""Phase inputs: the conditions and latents :math:`x_{t_{k-1}}` at which a phase's rollouts start.

The experts of earlier phases are frozen, so what they make is exact data: it may be made in large
batches without a gradient, kept, and used when it is needed. A :class:`PhaseInputBuffer` keeps
batches and hands each out a number of times; when the next phase begins, what it holds is carried
on by the one expert that was finished, rather than made again from noise.
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

from pdmd.distillation.experts import Expert
from pdmd.randomness import RankGenerator, randn
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.accounting import Account
from pdmd.typing import Condition, Latents

__all__ = ["PhaseInputs", "PhaseInputBuffer", "FreshPhaseInputs", "PhaseInputSource"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseInputSource:
    """What phase inputs of a phase are made of.

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


class PhaseInputs(ABC):
    """Hands out the phase inputs of a phase, a batch at a time."""

    source: PhaseInputSource

    def on_phase_start(self, source: PhaseInputSource) -> None:
        """Hears that a phase begins, or goes on after :meth:`restore`."""
        self.source = source

    @abstractmethod
    def take(self) -> tuple[Latents, Condition]:
        r"""Returns a batch.

        Returns:
            :math:`x_{t_{k-1}}`, with shape :math:`(B, *)`, and its condition.
        """

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state` returned, before :meth:`begin`."""
        return


class FreshPhaseInputs(PhaseInputs):
    """Makes every batch when it is asked for, and forgets it."""

    @torch.no_grad()
    def take(self) -> tuple[Latents, Condition]:
        p = self.source
        x, rows = p.noise(p.generator)
        condition = p.conditions.take(rows)
        for expert in p.experts:
            x = expert(x, condition, generator=p.generator)
        return x, condition

    def __repr__(self) -> str:
        return "FreshPhaseInputs()"


class PhaseInputBuffer(PhaseInputs):
    r"""Keeps batches made beforehand and hands each out a number of times.

    Batches are made as they are first needed, several together, from noise through all earlier
    experts. When a phase begins, what the ring holds is carried on by the newest expert alone: a
    ring that is not used up within a phase so costs one expert's steps for a batch and phase. A
    ring that is used up begins anew from noise.

    Everything in it is drawn from generators of its own, seeded by the run's seed and the batch's
    number: a resumed run makes it again, to the bit. Ranks that share out a batch keep their own
    rows.

    Args:
        batches: Batches that it holds at the most.
        uses: How often each is handed out: those of a window once, then again in another order,
            before those of the next window.
        window: Batches of a window.
        together: Batches that pass through an expert together.
        folder: Keep the latents in memory-mapped files in this local folder rather than in the
            device's memory; every ring uses a subfolder of its own, and removes it.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        batches: int = 1024,
        *,
        uses: int = 1,
        window: int = 16,
        together: int = 4,
        folder: str | Path | None = None,
    ) -> None:
        numbers = {"batches": batches, "uses": uses, "window": window, "together": together}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"a ring's {name} must be at least 1, got {value}")
        self.batches, self.uses = int(batches), int(uses)
        self.window, self.together = int(window), int(together)
        self.folder = None if folder is None else Path(folder)
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._fill = self._served = 0
        self._made = [0]  # batches that were made in every phase, of this fill
        self._drop()

    def on_phase_start(self, source: PhaseInputSource) -> None:
        super().on_phase_start(source)
        phase = len(source.experts)
        if phase != len(self._made) - 1:
            self._served = 0
            self._made += [0] * (phase - len(self._made) + 1)

    def take(self) -> tuple[Latents, Condition]:
        if self._served == self.batches * self.uses:
            self._fill, self._served = self._fill + 1, 0
            self._made = [0] * len(self._made)
            self._drop()
        index = self._index(self._served)
        self._served += 1
        self._make(index)
        x = self._batches[index]["x"].to(self.source.device, copy=True)
        return x, self.source.conditions.take(self._rows[index])

    def needed(self, taken: int) -> int:
        """Returns how many batches of a fill are made for so many that are taken."""
        block, within = divmod(taken, self.window * self.uses)
        touched = min(block * self.window + min(within, self.window), self.batches)
        return min(touched + -touched % self.together, self.batches)

    def held(self, taken: int) -> int:
        """Returns how many batches the device's memory holds after so many were taken."""
        if self.folder is not None:
            return 0
        return self.batches if taken > self.batches * self.uses else self.needed(taken)

    def state(self) -> dict[str, Any]:
        return {"fill": self._fill, "served": self._served, "made": list(self._made)}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self._fill, self._served = int(state["fill"]), int(state["served"])
            self._made = [int(number) for number in state["made"]]
            self._drop()

    def _drop(self) -> None:
        self._batches: dict[int, Any] = {}
        self._rows: dict[int, Tensor | None] = {}
        self._passed: dict[int, int] = {}
        self._order: tuple[tuple[int, int], list[int]] = ((0, 0), [])

    def _index(self, number: int) -> int:
        """Returns which batch is the ``number``-th that a fill hands out."""
        block, within = divmod(number, self.window * self.uses)
        first = block * self.window
        size = min(self.window, self.batches - first)
        turn, place = divmod(within, size)
        if turn == 0:
            return first + place
        if self._order[0] != (block, turn):
            order = torch.randperm(size, generator=self._generator(1, block, turn))
            self._order = ((block, turn), order.tolist())
        return first + self._order[1][place]

    @torch.no_grad()
    def _make(self, index: int) -> None:
        """Makes a batch, and those that go together with it, if they are not there yet."""
        p = self.source
        first = index - index % self.together
        places = range(first, min(first + self.together, self.batches))
        if index not in self._batches:
            for i in places:
                x, self._rows[i] = p.noise(self._generator(0, i))
                self._batches[i] = self._stored(i, x)
                self._passed[i] = 0
        for i in range(self._passed[index], len(p.experts)):
            counted = any(first < made for made in self._made[i + 1 :])
            with p.account.paused(counted):  # made again, in a run that was resumed
                self._pass(i, places)
        self._made[-1] = max(self._made[-1], places.stop)

    def _pass(self, number: int, places: range) -> None:
        p = self.source
        expert = p.experts[number]
        groups = [range(i, i + 1) for i in places] if expert.draws else [places]
        for group in groups:  # noise is drawn batch by batch
            x = torch.cat([self._batches[i]["x"] for i in group]).to(p.device)
            rows = [row for i in group if (row := self._rows[i]) is not None]
            condition = p.conditions.take(torch.cat(rows) if rows else None)
            x = expert(x, condition, generator=self._generator(2, number, group.start))
            for i, part in zip(group, x.chunk(len(group)), strict=True):
                self._batches[i]["x"].copy_(part)
                self._passed[i] = number + 1

    def _stored(self, index: int, x: Latents) -> Any:
        from tensordict import TensorDict

        batch = TensorDict({"x": x}, batch_size=[len(x)])
        if self.folder is None:
            return batch
        if self._place is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._place = tempfile.TemporaryDirectory(prefix="phase_inputs-", dir=self.folder)
        return batch.cpu().memmap_(str(Path(self._place.name) / str(index)))

    def _generator(self, *parts: int) -> RankGenerator:
        own = self.source.generator
        rank, ranks = getattr(own, "rank", 0), getattr(own, "ranks", 1)
        seed = self.source.seed
        for part in (self._fill, *parts):
            seed = (seed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % 2**63
        return RankGenerator.make(seed, rank, ranks)

    def __repr__(self) -> str:
        return f"PhaseInputBuffer({self.batches}, uses={self.uses})"
