"""Throughput: samples and floating-point operations per second, peak memory, time by role.

Operations are those of the network evaluations that the account counts, a backward as two forwards
and a recomputation as one, times the operations of one forward of the teacher, which are counted
once. Experts and fake scores are taken to be as large as the teacher.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pdmd.distillation.buckets import Buckets
from pdmd.extras import MissingExtra
from pdmd.training.monitoring.monitors import Cycle, Monitor, undisturbed

__all__ = ["RoleClock", "Throughput", "peak_flops"]


RECENT = 4096
"""Blocks that a clock remembers until it is read, at most."""


class RoleClock:
    """Measures the time of each role on a device, and waits for it only when it is read.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._by_clock = device.type in ("cpu", "meta")  # which have no events
        self._events: deque[tuple[str, Any, Any]] = deque(maxlen=RECENT)

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Measures a block as the time of a role."""
        start = self._now()
        yield
        self._events.append((name, start, self._now()))

    def read(self) -> dict[str, float]:
        """Returns the seconds of each role since the last call."""
        events = list(self._events)
        self._events.clear()
        if events and not self._by_clock:
            events[-1][2].synchronize()
        out: dict[str, float] = {}
        for name, start, end in events:
            seconds = end - start if self._by_clock else start.elapsed_time(end) / 1000
            out[name] = out.get(name, 0.0) + seconds
        return out

    def _now(self) -> Any:
        if self._by_clock:
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event


class Throughput(Monitor):
    """Records throughput, peak memory and time by role at the interval of the recorder.

    Args:
        buckets: The sizes of samples, over whose shares FLOPs are averaged; the teacher's own by
            default.
    """

    def __init__(self, buckets: Buckets | None = None) -> None:
        self.buckets = buckets
        self._flops: float | None = None
        self._before: tuple[float, int, int, int] | None = None

    def on_update(self, cycle: Cycle) -> None:
        if self._flops is None:
            self._flops = self._count(cycle)
        now = time.perf_counter()
        done = sum(cycle.evaluations().values())
        if self._before is None or self._before[3] != cycle.phase.number:
            self._start(cycle, now, done)  # the first update compiles and allocates
            return
        if cycle.update % cycle.recorder.interval and not cycle.last:
            return
        then, evaluated, update, _ = self._before
        roles = cycle.clock.read()  # waits for the device
        now = time.perf_counter()
        seconds, updates = max(now - then, 1e-9), cycle.update - update
        flops = (done - evaluated) / cycle.runtime.ranks.data_ranks * self._flops / seconds
        values = {
            "throughput/samples_per_second": cycle.samples * updates / seconds,
            "throughput/seconds_per_update": seconds / max(updates, 1),
        }
        if flops:
            values["throughput/tflops_per_device"] = flops / 1e12
        peak = peak_flops(cycle.device, cycle.teacher.precision)
        if peak is not None and flops:
            values["throughput/utilisation"] = flops / peak
        values |= {f"seconds/{role}": value for role, value in roles.items()}
        if cycle.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(cycle.device) / 2**30
            values["memory/reserved_gib"] = torch.cuda.max_memory_reserved(cycle.device) / 2**30
            torch.cuda.reset_peak_memory_stats(cycle.device)
        cycle.recorder.on_throughput(cycle.phase, cycle.update, values)
        self._start(cycle, now, done)

    def _start(self, cycle: Cycle, now: float, done: int) -> None:
        cycle.clock.read()
        self._before = now, done, cycle.update, cycle.phase.number

    @torch.no_grad()
    def _count(self, cycle: Cycle) -> float:
        """Counts the operations of one forward pass of one sample; 0 if they cannot be."""
        condition = cycle.conditions.take(torch.tensor([0]))
        low, high = cycle.teacher.time_range
        buckets, flops = self.buckets or Buckets.of_shape(cycle.teacher.latent_shape), 0.0
        for bucket in buckets:
            x = torch.zeros((1, *bucket.latent_shape), device=cycle.device)
            counter = FlopCounterMode(display=False)
            try:
                with undisturbed(cycle.device), counter:
                    cycle.teacher(x, (low + high) / 2, condition)
            except Exception:  # some compiled networks do not run under the counter
                return 0.0
            flops += buckets.probability(bucket) * counter.get_total_flops()
        return flops / cycle.teacher.evaluations


def peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """Returns the peak of a device in 16 bits, per second, where torchtitan knows it.

    Args:
        device: The device.
        precision: The dtype in which networks compute.
    """
    if device.type != "cuda" or precision != torch.bfloat16:
        return None
    try:
        from pdmd.distributed.titan_parts import titan_tools
    except (MissingExtra, ImportError):
        return None
    return float(titan_tools.get_peak_flops(torch.cuda.get_device_name(device)))
