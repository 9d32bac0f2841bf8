"""Monitors: what observes a training between two updates without changing its numbers.

A monitor has its own random generators, and the evaluations that it makes are not counted as those
of the training. Ranks call it together, so that it may use networks that are sharded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.distributed.runtime import Runtime
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.recorder import Recorder

__all__ = ["Clock", "Cycle", "Monitor", "undisturbed"]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restores torch's global generators after a block, from which networks may draw (dropout).

    Args:
        device: The device of the training.
    """
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


class Clock(Protocol):
    """Measures the time of each role."""

    def read(self) -> dict[str, float]:
        """Returns the seconds of each role since the last call; waits for the device."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Cycle:
    """A finished cycle of a training, as monitors see it.

    Attributes:
        phase: The phase that trains; the first one, where several train jointly.
        phases: The number of phases in the plan.
        update: Number of the update within the phase, from 1.
        updates: Updates of the phase.
        measure: Computes the fake objective's measurements by name, on the device.
        experts: Returns the student so far: the frozen experts of earlier phases, and those in
            training over the averages of their weights.
        teacher: The real score, placed by the runtime.
        fake: The fake score of the last of the experts.
        conditions: The encoded prompts.
        batch: Samples of a rollout on this rank.
        samples: Samples of an update of the generator, over all ranks.
        evaluations: Returns the network evaluations so far by role, as forward passes.
        clock: The time of each role.
        runtime: The device and ranks.
        recorder: Records what is found.
    """

    phase: Phase
    phases: int
    update: int
    updates: int
    measure: Callable[[], Mapping[str, Tensor]]
    experts: Callable[[], Sequence[Expert]]
    teacher: Denoiser
    fake: Denoiser
    conditions: ConditionStream
    batch: int
    samples: int
    evaluations: Callable[[], Mapping[str, int]]
    clock: Clock
    runtime: Runtime
    recorder: Recorder

    @property
    def last(self) -> bool:
        """Whether the phase ends with this update."""
        return self.update == self.updates

    @property
    def device(self) -> torch.device:
        """The device of the training."""
        return self.runtime.device


class Monitor(ABC):
    """Observes a training after every update."""

    @abstractmethod
    def on_update(self, cycle: Cycle) -> None:
        """Called after every update, on all ranks.

        Args:
            cycle: The finished cycle.
        """
