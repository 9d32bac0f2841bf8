r"""Phase inputs: the conditions and latents :math:`x_{t_{k-1}}` at which a phase's rollouts start.

With the experts of earlier phases frozen, the law of :math:`x_{t_{k-1}}` is fixed during phase
:math:`k`, so phase inputs may be sampled in large batches without a gradient, stored, and reused.
A :class:`PhaseInputBuffer` stores batches and returns each a number of times. When the next phase
starts, the newest expert alone advances the stored batches; they are not sampled again from noise.
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

from pdmd.arguments import checked
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import Expert
from pdmd.files import local_path
from pdmd.randomness import RankGenerator, randn
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.accounting import Account
from pdmd.typing import Condition, Latents

__all__ = ["PhaseInputs", "PhaseInputBuffer", "FreshPhaseInputs", "PhaseInputSource"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseInputSource:
    """The frozen experts, conditions and randomness from which phase inputs are sampled.

    Attributes:
        experts: The frozen experts of the phases before, noisiest first.
        conditions: Draws the conditions.
        buckets: The sizes of samples, of which every batch has one.
        sigma: Standard deviation of the noise at time 1.
        batch: Samples per batch on this rank.
        device: Device of the latents.
        generator: The run's random generator.
        seed: The seed of the run.
        account: Counts network evaluations.
    """

    experts: Sequence[Expert]
    conditions: ConditionStream
    buckets: Buckets
    sigma: float
    batch: int
    device: torch.device
    generator: torch.Generator
    seed: int
    account: Account

    def noise(self, generator: torch.Generator) -> tuple[Latents, Tensor | None]:
        """Samples noise at time 1 in a random bucket, and the indices of its conditions."""
        bucket = self.buckets.draw(generator)
        rows = self.conditions.rows(self.batch, generator)
        noise = randn((self.batch, *bucket.latent_shape), generator, device=self.device)
        return noise if self.sigma == 1 else self.sigma * noise, rows


class PhaseInputs(ABC):
    """Supplies the phase inputs of a phase, a batch at a time."""

    source: PhaseInputSource

    def on_distillation_start(self) -> None:
        """Called when a distillation starts, before :meth:`restore`: forgets those before."""
        return

    def on_phase_start(self, source: PhaseInputSource) -> None:
        """Called when a phase starts, or resumes after :meth:`restore`."""
        self.source = source

    @abstractmethod
    def take(self) -> tuple[Latents, Condition]:
        r"""Returns a batch.

        Returns:
            :math:`x_{t_{k-1}}`, with shape :math:`(B, *)`, and its condition.
        """

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state` returned; called before :meth:`on_phase_start`."""
        return


class FreshPhaseInputs(PhaseInputs):
    """Samples a new batch for every rollout, and stores none."""

    @torch.no_grad()
    def take(self) -> tuple[Latents, Condition]:
        p = self.source
        x, rows = p.noise(p.generator)
        condition = p.conditions.take(rows)
        for expert in p.experts:
            x = p.buckets.expert(expert, x)(x, condition, generator=p.generator)
        return x, condition

    def __repr__(self) -> str:
        return "FreshPhaseInputs()"


@checked
class PhaseInputBuffer(PhaseInputs):
    r"""Stores batches of phase inputs and returns each a number of times.

    Batches are computed when first needed, several at once, from noise through all earlier
    experts. When a phase starts, the newest expert alone advances the stored batches, so a buffer
    that lasts for the whole phase costs one expert's steps per batch and phase. Once every batch
    has been returned ``uses`` times, the buffer is refilled from noise.

    Every batch has its own random generators, seeded by the run's seed and the batch's index, so a
    resumed run recomputes the same bits. Each rank stores its rows of a batch.

    Args:
        batches: Capacity of the buffer, in batches.
        uses: How often each batch is returned. The batches of a window are returned once in order,
            then reshuffled for each further use, before those of the next window.
        window: Batches per window.
        together: Batches that an expert evaluates at once.
        folder: Store the latents in memory-mapped files in this local folder rather than on the
            device. Every buffer creates its own subfolder, and removes it.

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
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.batches, self.uses = int(batches), int(uses)
        self.window, self.together = int(window), int(together)
        self.folder = None if folder is None else local_path(folder, "the phase-input buffer")
        self._subfolder: tempfile.TemporaryDirectory[str] | None = None
        self.on_distillation_start()

    def on_distillation_start(self) -> None:
        self._fill = self._served = 0
        self._computed = [0]  # batches of this fill that each phase computed
        self._clear()

    def on_phase_start(self, source: PhaseInputSource) -> None:
        super().on_phase_start(source)
        phase = len(source.experts)
        if phase != len(self._computed) - 1:
            self._served = 0
            self._computed += [0] * (phase - len(self._computed) + 1)

    def take(self) -> tuple[Latents, Condition]:
        if self._served == self.batches * self.uses:
            self._fill, self._served = self._fill + 1, 0
            self._computed = [0] * len(self._computed)
            self._clear()
        index = self._index(self._served)
        self._served += 1
        self._compute(index)
        x = self._batches[index]["x"].to(self.source.device, copy=True)
        return x, self.source.conditions.take(self._rows[index])

    def batches_computed(self, taken: int) -> int:
        """Returns how many batches of a fill are computed once ``taken`` were returned."""
        block, within = divmod(taken, self.window * self.uses)
        touched = min(block * self.window + min(within, self.window), self.batches)
        return min(touched + -touched % self.together, self.batches)

    def batches_in_memory(self, taken: int) -> int:
        """Returns how many batches are in device memory once ``taken`` were returned."""
        if self.folder is not None:
            return 0
        full = taken > self.batches * self.uses
        return self.batches if full else self.batches_computed(taken)

    def state(self) -> dict[str, Any]:
        return {"fill": self._fill, "served": self._served, "made": list(self._computed)}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            self._fill, self._served = int(state["fill"]), int(state["served"])
            self._computed = [int(number) for number in state["made"]]
            self._clear()

    def _clear(self) -> None:
        self._batches: dict[int, Any] = {}
        self._rows: dict[int, Tensor | None] = {}
        self._steps_done: dict[int, int] = {}
        self._order: tuple[tuple[int, int], list[int]] = ((0, 0), [])

    def _index(self, number: int) -> int:
        """Returns the index of the batch that a fill returns at position ``number``."""
        block, within = divmod(number, self.window * self.uses)
        first = block * self.window
        size = min(self.window, self.batches - first)
        turn, position = divmod(within, size)
        if turn == 0:
            return first + position
        if self._order[0] != (block, turn):
            order = torch.randperm(size, generator=self._generator(1, block, turn))
            self._order = ((block, turn), order.tolist())
        return first + self._order[1][position]

    @torch.no_grad()
    def _compute(self, index: int) -> None:
        """Computes a batch, and those evaluated at once with it, if they are not stored yet."""
        p = self.source
        first = index - index % self.together
        batches = range(first, min(first + self.together, self.batches))
        if index not in self._batches:
            for i in batches:
                x, self._rows[i] = p.noise(self._generator(0, i))
                self._batches[i] = self._stored(i, x)
                self._steps_done[i] = 0
        for i in range(self._steps_done[index], len(p.experts)):
            counted = any(first < n for n in self._computed[i + 1 :])
            with p.account.paused(counted):  # recomputed by a resumed run
                self._advance(i, batches)
        self._computed[-1] = max(self._computed[-1], batches.stop)

    def _advance(self, number: int, batches: range) -> None:
        """Advances stored batches by the expert of this index."""
        p = self.source
        expert = p.experts[number]
        groups: Sequence[Sequence[int]]
        if expert.stochastic:  # noise is drawn for each batch
            groups = [[i] for i in batches]
        else:
            shapes = {i: self._batches[i]["x"].shape for i in batches}
            groups = [
                [i for i in batches if shapes[i] == s] for s in dict.fromkeys(shapes.values())
            ]
        for group in groups:
            x = torch.cat([self._batches[i]["x"] for i in group]).to(p.device)
            rows = [row for i in group if (row := self._rows[i]) is not None]
            condition = p.conditions.take(torch.cat(rows) if rows else None)
            generator = self._generator(2, number, group[0])
            x = p.buckets.expert(expert, x)(x, condition, generator=generator)
            for i, part in zip(group, x.chunk(len(group)), strict=True):
                self._batches[i]["x"].copy_(part)
                self._steps_done[i] = number + 1

    def _stored(self, index: int, x: Latents) -> Any:
        from tensordict import TensorDict

        batch = TensorDict({"x": x}, batch_size=[len(x)])
        if self.folder is None:
            return batch
        if self._subfolder is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._subfolder = tempfile.TemporaryDirectory(prefix="phase_inputs-", dir=self.folder)
        return batch.cpu().memmap_(str(Path(self._subfolder.name) / str(index)))

    def _generator(self, *parts: int) -> RankGenerator:
        own = self.source.generator
        rank, ranks = getattr(own, "rank", 0), getattr(own, "ranks", 1)
        seed = self.source.seed
        for part in (self._fill, *parts):
            seed = (seed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % 2**63
        return RankGenerator.make(seed, rank, ranks)

    def __repr__(self) -> str:
        return f"PhaseInputBuffer({self.batches}, uses={self.uses})"
