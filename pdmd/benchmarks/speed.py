r"""The speed benchmark: cycles per second and peak memory, against a hand-written loop and a peer.

Every network has two comparisons, each of contestants that alternate in one process, so that a
slowdown of the machine affects all of them:

- *equal work*: one phase of one step, by the library, by a hand-written loop, and by
  ``modelopt.torch.fastgen`` (:mod:`pdmd.benchmarks.speed_peers`), relative to the library;
- *efficiency settings*: four phases of the library, trained one after the other, in settings with
  fewer network evaluations (:mod:`pdmd.benchmarks.efficiency`), relative to rolling out every
  student step for every fake update.

``speed`` is the ratio of a contestant's cycles per second to those of its reference. It is the
median over rounds; ``speed_low`` and ``speed_high`` are the quartiles, ``median_low`` and
``median_high`` the ends of the 95% interval of the median, or the extremes if there are too few
rounds for one. Memory is measured in a separate pass; with four phases it is that of the last.
"""

from __future__ import annotations

import copy
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
from pdmd.benchmarks.memory import allocated
from pdmd.benchmarks.speed_networks import CASES, Tally, pretrained_digits
from pdmd.benchmarks.speed_peers import MISSING, PEERS, Cycle, Task, has_modelopt, make_trainer
from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.phases import PhasePlan
from pdmd.distributed.runtime import pick_device
from pdmd.training.fake_scores import FixedUpdates
from pdmd.training.trainer import PhaseTrainer

__all__ = ["SETTINGS", "Course", "SpeedBenchmark"]

PHASES = 4
TURN = 4  # cycles in a turn, as many as the batches that a ring makes together
GUIDANCE = 3.0

SETTINGS: dict[str, EfficiencySetting] = {
    **{name: EFFICIENCY_SETTINGS[name] for name in ("full_rollout", "boundary", "buffer_reuse")},
    "buffer_reuse_2": replace(
        EFFICIENCY_SETTINGS["buffer_reuse"],
        summary="As buffer_reuse, two fake updates in a cycle: adaptive's number on the mixture.",
        fake_updates=lambda most: FixedUpdates(2),
    ),
    "buffer_reuse_adaptive": EFFICIENCY_SETTINGS["buffer_reuse_adaptive"],
}
"""The efficiency_settings by name; the first is what the others are measured against."""


@dataclass
class Turns:
    """What a contestant's turns took, by round.

    Attributes:
        seconds: Seconds per cycle.
        forwards: Forward equivalents of one sample per cycle.
        fake_updates: Fake updates per cycle, where the contestant says.
    """

    seconds: list[float]
    forwards: list[float]
    fake_updates: list[float]


class Course:
    """The phases of one setting, trained one after the other, a cycle at a time.

    Args:
        task: The networks and numbers.
        efficiency: The setting.
        cycles: Cycles in each phase.
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
        """Freezes the expert in training, if there is one, and begins the next phase."""
        if self.trainer is not None:
            self.trainer.session.account.close()
            self.finished += self.trainer.finished()
        return self._begin()

    def skip(self) -> PhaseTrainer:
        """Begins the last phase, the teacher's copies in the place of the experts before it."""
        self.finished = [
            self.expert(self.task.teacher.trainable_copy(), phase) for phase in self.plan
        ][:-1]
        return self._begin()

    def _begin(self) -> PhaseTrainer:
        for expert in self.finished:
            expert.requires_grad_(False).eval()
        self.trainer = make_trainer(
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
    """Measures cycles per second and peak memory; its methods are sizes of networks."""

    methods = tuple(CASES)
    alone = True
    devices = ("cpu", "cuda")

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self.device = pick_device(config.device)

    def about(self) -> dict[str, str]:
        peers = {
            "pdmd": "One phase of one step by the library: what its peers are measured against.",
            "bare": "The same work by a loop written by hand.",
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
        case, tally = CASES[method], Tally()
        teacher = pretrained_digits(method, self.folder, self.config.data_seed).to(self.device)
        case.core(teacher).register_forward_hook(tally)
        task = Task(
            teacher=teacher,
            guidance=GUIDANCE,
            fake_updates=self.config.fake_updates or 5,
            batch=self.config.batch_size or case.batch,
            lr=self.config.lr or 3e-4,
            fake_lr=self.config.fake_lr or 6e-4,
            seed=seed,
        )
        out = self._equal_work(task, tally, self.config.updates or case.cycles)
        rounds = -(-self.config.updates // (PHASES * TURN)) or case.rounds
        out += self._economies(task, tally, rounds)
        return [{**row, "method": f"{method}/{row['method']}"} for row in out], None

    def _equal_work(self, task: Task, tally: Tally, cycles: int) -> list[dict[str, Any]]:
        peers = {n: make for n, make in PEERS.items() if n != "modelopt" or has_modelopt()}
        sides = {name: make(task) for name, make in peers.items()}
        turns = _interleave(sides, task, tally, rounds=cycles, warm=2, cycles=1)

        def twice(make: Callable[[Task], Cycle]) -> None:
            cycle = make(replace(task, teacher=copy.deepcopy(task.teacher)))
            for _ in range(2):
                cycle()

        peaks = {n: allocated(lambda m=m: twice(m), task.teacher.device) for n, m in peers.items()}
        return _rows(turns, peaks, nfe=1)

    def _economies(self, task: Task, tally: Tally, rounds: int) -> list[dict[str, Any]]:
        warm = 1
        courses = {n: Course(task, e, (rounds + warm) * TURN) for n, e in SETTINGS.items()}
        phases = [
            _interleave(
                {name: course.advance().cycle for name, course in courses.items()},
                task,
                tally,
                rounds=rounds,
                warm=warm,
                cycles=TURN,
            )
            for _ in range(PHASES)
        ]
        turns = {name: _mean_of([phase[name] for phase in phases]) for name in courses}
        del courses

        def twice(efficiency: EfficiencySetting) -> None:
            own = replace(task, teacher=copy.deepcopy(task.teacher))
            trainer = Course(own, efficiency, 2).skip()
            for _ in range(2):
                trainer.cycle()

        peaks = {
            n: allocated(lambda e=e: twice(e), task.teacher.device) for n, e in SETTINGS.items()
        }
        return _rows(turns, peaks, nfe=PHASES)


def _interleave(
    sides: Mapping[str, Cycle], task: Task, tally: Tally, *, rounds: int, warm: int, cycles: int
) -> dict[str, Turns]:
    """Lets sides take turns of some cycles.

    Each round is begun by another, and every other time that all have begun one, they go
    backwards: what a side leaves behind, in caches or in the allocator, meets all others.
    """
    device, names = task.teacher.device, list(sides)
    out = {name: Turns([], [], []) for name in names}
    for i in range(warm + rounds):
        passed, first = divmod(i, len(names))
        order = [*names[first:], *names[:first]]
        for name in order[::-1] if passed % 2 else order:
            made, before = 0.0, tally.forwards
            _wait(device)
            started = time.perf_counter()
            for _ in range(cycles):
                scalars = sides[name]()
                if isinstance(scalars, dict):
                    made += float(scalars["fake_updates"])
                else:
                    made += task.fake_updates
            _wait(device)
            seconds = time.perf_counter() - started
            if i >= warm:
                out[name].seconds.append(seconds / cycles)
                out[name].forwards.append((tally.forwards - before) / (cycles * task.batch))
                out[name].fake_updates.append(made / cycles)
    return out


def _aside(n: int) -> int:
    """Returns how many of n sorted values lie outside a 95% interval of their median, each side.

    The number of values below the true median is binomial, whatever their distribution.
    """
    outside, below = 0.0, -1
    while outside <= 0.025:
        below += 1
        outside += math.comb(n, below) / 2**n
    return max(below - 1, 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mean_of(phases: Sequence[Turns]) -> Turns:
    """Returns the means over phases, round by round."""
    return Turns(
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
    turns: Mapping[str, Turns], peaks: Mapping[str, int], *, nfe: int
) -> list[dict[str, Any]]:
    """Returns a row for each contestant, relative to the first."""
    reference = next(iter(turns))
    out = []
    for name, own in turns.items():
        pairs = zip(turns[reference].seconds, own.seconds, strict=True)
        speeds = sorted(theirs / ours for theirs, ours in pairs)
        quarter = len(speeds) // 4
        aside = _aside(len(speeds))
        out.append(
            {
                "method": name,
                "cycles_per_second": round(1 / statistics.median(own.seconds), 4),
                "speed": round(statistics.median(speeds), 4),
                "speed_low": round(speeds[quarter], 4),
                "speed_high": round(speeds[-1 - quarter], 4),
                "median_low": round(speeds[aside], 4),
                "median_high": round(speeds[-1 - aside], 4),
                "peak_mib": round(peaks[name] / 2**20, 3),
                "memory": round(peaks[name] / peaks[reference], 4),
                "evaluations": round(statistics.fmean(own.forwards), 3),
                "fake_updates": round(statistics.fmean(own.fake_updates), 3),
                "nfe": nfe,
            }
        )
    return out
