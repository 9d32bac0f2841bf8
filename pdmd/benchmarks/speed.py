r"""The speed benchmark: cycles per second and peak memory, against other implementations.

Each network has two comparisons. The runs of a comparison alternate in one process, so that a
slowdown of the machine affects all of them:

- *equal work*: one phase of one step, by the library, by a hand-written loop, and by
  ``modelopt.torch.fastgen`` (:mod:`pdmd.benchmarks.speed_peers`), relative to the library;
- *efficiency*: four phases of the library, trained progressively with different efficiency
  settings (:mod:`pdmd.benchmarks.efficiency`), relative to rolling out every student step for
  every fake update.

Time is the processor's on a CPU, where one thread computes, so that what other processes take is
not counted; on a GPU it is the clock's. Freed memory is kept for the next tensors, as the
allocator of a GPU does: else the order in which a loop frees its buffers decides how many pages
the system maps again. ``speed`` is the ratio of cycles per second to the
reference's. It is the median over rounds; ``speed_low`` and ``speed_high`` are the quartiles,
``median_low`` and ``median_high`` the 95% confidence interval of the median, or the extremes if
there are too few rounds. Memory is measured in a separate pass; for four phases it is that of the
last.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pdmd.benchmarks.base import BenchConfig, Benchmark
from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS, EfficiencySetting, full_rollout
from pdmd.benchmarks.memory import peak_allocated
from pdmd.benchmarks.speed_networks import CASES, EvaluationCounter, pretrained_digits
from pdmd.benchmarks.speed_peers import MISSING, PEERS, Cycle, Task, build_trainer, has_modelopt
from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.phases import PhasePlan
from pdmd.distributed.runtime import pick_device
from pdmd.training.fake_scores import FixedUpdates
from pdmd.training.trainer import PhaseTrainer

__all__ = ["SETTINGS", "PhasedTraining", "SpeedBenchmark"]

PHASES = 4
GLIBC = {-1: 1 << 30, -3: 1 << 25}  # M_TRIM_THRESHOLD, and the largest M_MMAP_THRESHOLD
CYCLES_PER_TURN = 4  # cycles in a turn, the batches that a buffer computes together
GUIDANCE = 3.0

SETTINGS: dict[str, EfficiencySetting] = {
    **{name: EFFICIENCY_SETTINGS[name] for name in ("full_rollout", "boundary", "buffer_reuse")},
    "buffer_reuse_2": replace(
        EFFICIENCY_SETTINGS["buffer_reuse"],
        summary="As buffer_reuse, two fake updates per cycle, the adaptive mean on the mixture.",
        fake_updates=lambda most: FixedUpdates(2),
    ),
    "buffer_reuse_adaptive": EFFICIENCY_SETTINGS["buffer_reuse_adaptive"],
}
"""The efficiency settings by name; the first is the reference."""


@dataclass
class Timings:
    """The timings of one run, by round.

    Attributes:
        seconds: Seconds per cycle.
        forwards: Cost per cycle and sample, in forward passes.
        fake_updates: Fake updates per cycle.
    """

    seconds: list[float]
    forwards: list[float]
    fake_updates: list[float]


class PhasedTraining:
    """Progressive training of four phases with one efficiency setting, a cycle at a time.

    Args:
        task: The task.
        efficiency: The efficiency setting.
        cycles: Cycles per phase.
    """

    def __init__(self, task: Task, efficiency: EfficiencySetting, cycles: int) -> None:
        self.task, self.efficiency = task, efficiency
        self.plan = PhasePlan.uniform(PHASES)
        self.expert = full_rollout(self.plan) if efficiency.full else OdeExpert
        self.phase_inputs = efficiency.phase_inputs(cycles * (task.fake_updates + 1))
        self.fake_updates = efficiency.fake_updates(task.fake_updates)
        self.finished: list[Expert] = []
        self.trainer: PhaseTrainer | None = None

    def advance(self) -> PhaseTrainer:
        """Freezes the expert in training, if any, and starts the next phase."""
        if self.trainer is not None:
            self.trainer.session.account.close()
            self.finished += self.trainer.finished()
        return self._start_phase()

    def skip(self) -> PhaseTrainer:
        """Starts the last phase, with copies of the teacher as the earlier experts."""
        self.finished = [
            self.expert(self.task.teacher.trainable_copy(), phase) for phase in self.plan
        ][:-1]
        return self._start_phase()

    def _start_phase(self) -> PhaseTrainer:
        for expert in self.finished:
            expert.requires_grad_(False).eval()
        self.trainer = build_trainer(
            self.task,
            self.expert,
            self.plan,
            self.finished,
            fake_updates=self.fake_updates,
            fake_updates_per_rollout=self.efficiency.fake_updates_per_rollout,
            phase_inputs=self.phase_inputs,
        )
        return self.trainer


class SpeedBenchmark(Benchmark):
    """Measures cycles per second and peak memory; methods are network sizes."""

    methods = tuple(CASES)
    exclusive = True
    devices = ("cpu", "cuda")

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self.device = pick_device(config.device)

    def descriptions(self) -> dict[str, str]:
        peers = {
            "pdmd": "One phase of one step by the library: the reference.",
            "bare": "The same work by a hand-written loop.",
            "modelopt": "The same work through modelopt.torch.fastgen's DMDPipeline.",
        }
        settings = {name: f"Four phases: {e.summary}" for name, e in SETTINGS.items()}
        return {
            f"{network}/{name}": f"{summary} On {case.summary}."
            for network, case in CASES.items()
            for name, summary in {**peers, **settings}.items()
        }

    def left_out(self) -> dict[str, str]:
        return {} if has_modelopt() else {"modelopt": MISSING}

    def run(self, method: str, seed: int) -> tuple[list[dict[str, Any]], None]:
        _keep_freed_memory()
        case, counter = CASES[method], EvaluationCounter()
        teacher = pretrained_digits(method, self.folder, self.config.data_seed).to(self.device)
        case.core(teacher).register_forward_hook(counter)
        task = Task(
            teacher=teacher,
            guidance=GUIDANCE,
            fake_updates=self.config.fake_updates or 5,
            batch=self.config.batch_size or case.batch,
            lr=self.config.lr or 3e-4,
            fake_lr=self.config.fake_lr or 6e-4,
            seed=seed,
        )
        out = self._equal_work(task, counter, self.config.updates or case.cycles)
        rounds = -(-self.config.updates // (PHASES * CYCLES_PER_TURN)) or case.rounds
        out += self._efficiency(task, counter, rounds)
        return [{**row, "method": f"{method}/{row['method']}"} for row in out], None

    def _equal_work(
        self, task: Task, counter: EvaluationCounter, cycles: int
    ) -> list[dict[str, Any]]:
        peers = {n: build for n, build in PEERS.items() if n != "modelopt" or has_modelopt()}
        runs = {name: build(task) for name, build in peers.items()}
        turns = _interleave(runs, task, counter, rounds=cycles, warm=2, cycles=1)

        def twice(build: Callable[[Task], Cycle]) -> None:
            cycle = build(replace(task, teacher=copy.deepcopy(task.teacher)))
            for _ in range(2):
                cycle()

        peaks = {
            n: peak_allocated(lambda b=b: twice(b), task.teacher.device) for n, b in peers.items()
        }
        return _rows(turns, peaks, nfe=1)

    def _efficiency(
        self, task: Task, counter: EvaluationCounter, rounds: int
    ) -> list[dict[str, Any]]:
        warm = 1
        trainings = {
            n: PhasedTraining(task, e, (rounds + warm) * CYCLES_PER_TURN)
            for n, e in SETTINGS.items()
        }
        phases = [
            _interleave(
                {name: training.advance().cycle for name, training in trainings.items()},
                task,
                counter,
                rounds=rounds,
                warm=warm,
                cycles=CYCLES_PER_TURN,
            )
            for _ in range(PHASES)
        ]
        turns = {name: _mean_of([phase[name] for phase in phases]) for name in trainings}
        del trainings

        def twice(efficiency: EfficiencySetting) -> None:
            own = replace(task, teacher=copy.deepcopy(task.teacher))
            trainer = PhasedTraining(own, efficiency, 2).skip()
            for _ in range(2):
                trainer.cycle()

        peaks = {
            n: peak_allocated(lambda e=e: twice(e), task.teacher.device)
            for n, e in SETTINGS.items()
        }
        return _rows(turns, peaks, nfe=PHASES)


def _keep_freed_memory() -> None:
    """Lets glibc keep freed memory, for every run alike; other libraries are left as they are."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for option, value in GLIBC.items():
            ctypes.CDLL(None).mallopt(option, value)


def _interleave(
    runs: Mapping[str, Cycle],
    task: Task,
    counter: EvaluationCounter,
    *,
    rounds: int,
    warm: int,
    cycles: int,
) -> dict[str, Timings]:
    """Alternates the runs in turns of some cycles.

    The order rotates every round and reverses every full rotation, so that the state a run leaves
    in caches and the allocator affects all others equally.
    """
    device, names = task.teacher.device, list(runs)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    out = {name: Timings([], [], []) for name in names}
    for i in range(warm + rounds):
        passed, first = divmod(i, len(names))
        order = [*names[first:], *names[:first]]
        for name in order[::-1] if passed % 2 else order:
            fake_updates, before = 0.0, counter.forwards
            _wait(device)
            started = clock()
            for _ in range(cycles):
                scalars = runs[name]()
                if isinstance(scalars, dict):
                    fake_updates += float(scalars["fake_updates"])
                else:
                    fake_updates += task.fake_updates
            _wait(device)
            seconds = clock() - started
            if i >= warm:
                out[name].seconds.append(seconds / cycles)
                out[name].forwards.append((counter.forwards - before) / (cycles * task.batch))
                out[name].fake_updates.append(fake_updates / cycles)
    return out


def _median_rank(n: int) -> int:
    """Returns how many of n sorted values lie below the median's 95% confidence interval.

    The number of values below the true median is binomial for any distribution.
    """
    outside, below = 0.0, -1
    while outside <= 0.025:
        below += 1
        outside += math.comb(n, below) / 2**n
    return max(below - 1, 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean_of(phases: Sequence[Timings]) -> Timings:
    """Returns the means over phases, round by round."""
    return Timings(
        *(
            [statistics.fmean(values) for values in zip(*parts, strict=True)]
            for parts in (
                [p.seconds for p in phases],
                [p.forwards for p in phases],
                [p.fake_updates for p in phases],
            )
        )
    )


def _rows(
    turns: Mapping[str, Timings], peaks: Mapping[str, int], *, nfe: int
) -> list[dict[str, Any]]:
    """Returns a row for each run, relative to the first."""
    reference = next(iter(turns))
    out = []
    for name, timings in turns.items():
        pairs = zip(turns[reference].seconds, timings.seconds, strict=True)
        speeds = sorted(theirs / ours for theirs, ours in pairs)
        quarter = len(speeds) // 4
        rank = _median_rank(len(speeds))
        out.append(
            {
                "method": name,
                "cycles_per_second": round(1 / statistics.median(timings.seconds), 4),
                "speed": round(statistics.median(speeds), 4),
                "speed_low": round(speeds[quarter], 4),
                "speed_high": round(speeds[-1 - quarter], 4),
                "median_low": round(speeds[rank], 4),
                "median_high": round(speeds[-1 - rank], 4),
                "peak_mib": round(peaks[name] / 2**20, 3),
                "memory": round(peaks[name] / peaks[reference], 4),
                "evaluations": round(statistics.fmean(timings.forwards), 3),
                "fake_updates": round(statistics.fmean(timings.fake_updates), 3),
                "nfe": nfe,
            }
        )
    return out
