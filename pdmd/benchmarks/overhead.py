"""The overhead benchmark: a trainer's cycle against a hand-written loop.

Both take one generator update and the same number of fake updates, with the same networks, batch
size and clipping; :mod:`pdmd.benchmarks.bare` is the loop. Their cycles alternate in one process,
so that a slowdown of the machine affects both; the result is the median of the ratios of adjacent
cycles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pdmd.benchmarks.bare import bare_cycle, labels
from pdmd.benchmarks.base import Benchmark
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.experts import OdeExpert
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.randomness import RankGenerator
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

__all__ = ["OverheadBenchmark"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Networks of one size.

    Attributes:
        summary: A description.
        build: Builds a network.
        batch: Batch size of a rollout.
        cycles: Cycles of each loop.
    """

    summary: str
    build: Callable[[], Denoiser]
    batch: int
    cycles: int


def _transformer(width: int, depth: int) -> Callable[[], Denoiser]:
    return lambda: DigitsTeacher(ImageTransformer(width=width, depth=depth, heads=4), std=0.75)


CASES = {
    "mlp": Case(
        summary="An MLP of 3 hidden layers of 256, on 64 dimensions.",
        build=lambda: MlpDenoiser(
            dim=64, classes=10, width=256, depth=3, schedule=RectifiedFlow()
        ),
        batch=256,
        cycles=200,
    ),
    "transformer_small": Case(
        summary="The digits teacher's transformer: 3 blocks of width 64, 16 tokens.",
        build=_transformer(64, 3),
        batch=128,
        cycles=60,
    ),
    "transformer_medium": Case(
        summary="An image transformer of 6 blocks of width 256, 16 tokens.",
        build=_transformer(256, 6),
        batch=64,
        cycles=24,
    ),
}


class OverheadBenchmark(Benchmark):
    """Measures the trainer's overhead per cycle; methods are network sizes."""

    methods = tuple(CASES)
    exclusive = True

    def descriptions(self) -> dict[str, str]:
        return {name: case.summary for name, case in CASES.items()}

    def run(self, method: str, seed: int) -> tuple[dict[str, Any], str | None]:
        case = CASES[method]
        torch.manual_seed(seed)
        teacher = case.build()
        with torch.no_grad():
            for parameter in teacher.parameters():  # no layer has zero output
                parameter.add_(0.02 * torch.randn_like(parameter))
        teacher.requires_grad_(False)
        phase = PhasePlan.uniform(4)[0]
        fakes, batch = self.config.fake_updates or 5, self.config.batch_size or case.batch
        cycles = self.config.updates or case.cycles
        loops = {
            "pdmd": _trainer(teacher, phase, fakes, batch, seed).cycle,
            "bare": bare_cycle(
                teacher, phase, fake_updates=fakes, batch=batch, lr=1e-5, fake_lr=1e-5
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for i in range(cycles + 2):
            order = list(loops) if i % 2 else list(loops)[::-1]
            for name in order:
                started = time.process_time()
                loops[name]()
                if i >= 2:  # the first ones warm up
                    seconds[name].append(time.process_time() - started)
        ratios = sorted(p / b for p, b in zip(seconds["pdmd"], seconds["bare"], strict=True))
        quarter = len(ratios) // 4
        return {
            "ratio": round(statistics.median(ratios), 4),
            "ratio_low": round(ratios[quarter], 4),
            "ratio_high": round(ratios[-1 - quarter], 4),
            "pdmd_ms": round(1e3 * statistics.median(seconds["pdmd"]), 3),
            "bare_ms": round(1e3 * statistics.median(seconds["bare"]), 3),
            "nfe": 4,
            "cpu_seconds": round(sum(map(sum, seconds.values())), 2),
        }, None


def _trainer(teacher: Any, phase: Phase, fakes: int, batch: int, seed: int) -> PhaseTrainer:
    conditions = ConditionStream(labels(range(10)))
    return PhaseTrainer(
        experts=[OdeExpert(teacher.trainable_copy(), phase)],
        earlier=[],
        teacher=teacher,
        fakes=[[teacher.trainable_copy()]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=conditions,
        updates=10**6,
        generator=RankGenerator.make(seed),
        expert_training=ExpertTraining(optimizer=AdamRecipe(lr=1e-5)),
        rollouts=Rollouts(batch_size=batch),
        fake_training=FakeScoreTraining(updates=fakes, optimizer=AdamRecipe(lr=1e-5)),
        session=Session(max_consecutive_skips=0),
    )
