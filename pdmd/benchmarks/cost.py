"""The cost benchmark: the network evaluations of a cycle, counted.

Each method is trained on the exact mixture and its calls are counted by an
:class:`~pdmd.training.monitoring.accounting.Account`. Exit steps cycle through all values instead
of being drawn, so that averages are exact. Costs are per sample: a forward counts one, a backward
two, a guided teacher's call two. :func:`~pdmd.planning.evaluations.cycle_passes` has the closed
form. Counts do not depend on the weights or the number of rows, so a few cycles of small batches
from random weights suffice; adaptive fake updates do depend on the weights, and are averaged over
a run of the benchmark's length that starts from a pretrained network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pdmd.benchmarks.distillation import MixtureBenchmark
from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS, full_rollout
from pdmd.benchmarks.schemes import SCHEMES, Scheme
from pdmd.distillation.distill import distill
from pdmd.distillation.experts import StochasticTruncation, Truncation
from pdmd.distillation.initializers import FromDenoiser, Initializer
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.teachers.guided import Guided
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import AdaptiveUpdates, FakeScoreTraining, FakeUpdates
from pdmd.training.monitoring.accounting import ROLES, Account
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

__all__ = ["CostBenchmark", "CyclingTruncation"]

CYCLES = 8
"""Cycles that are counted if the number of fake updates is fixed."""
ROWS = 8
"""Their batch size."""


class CyclingTruncation(Truncation):
    r"""Exits at every step of a phase equally often, for both networks.

    With :math:`n` steps the i-th exit step is :math:`i + \lfloor i / n \rfloor` modulo :math:`n`,
    so that every sixth rollout, the generator's, has all exit steps too.
    """

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        calls = self._calls.get(phase.index, -1)  # distill calls it once before training
        self._calls[phase.index] = calls + 1
        i = max(calls, 0)
        return (i + i // phase.steps) % phase.steps


@dataclass(kw_only=True)
class _CostRecorder(Recorder):
    """Records the cumulative cost by role at the last update of every phase."""

    account: Account
    cycles: int
    states: list[dict[str, int]] = field(default_factory=list)

    def on_update(self, update: int) -> None:
        if update == self.cycles:
            self.states.append(self.account.equivalents)


class CostBenchmark(MixtureBenchmark):
    """Counts the network evaluations of a cycle; methods are efficiency settings and schemes."""

    methods = (
        "full_rollout_2x2",
        *EFFICIENCY_SETTINGS,
        # phased_NAME has the efficiency setting NAME
        *(n for n in SCHEMES if n != "vanilla_wide" and n[7:] not in EFFICIENCY_SETTINGS),
    )
    default_methods = tuple(n for n in EFFICIENCY_SETTINGS if "adaptive" not in n)

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        chosen = (self._scheme(method) for method in methods or self.methods)
        if any(self._fake_updates(scheme)[1] for scheme in chosen):
            super().prepare(progress, methods)

    def descriptions(self) -> dict[str, str]:
        out = {"full_rollout_2x2": "As full_rollout, of two phases of two steps."}
        out.update({name: efficiency.summary for name, efficiency in EFFICIENCY_SETTINGS.items()})
        out.update({name: SCHEMES[name].summary for name in self.methods if name in SCHEMES})
        return out

    def run(self, method: str, seed: int) -> tuple[dict[str, Any], str | None]:
        return self._count(self._scheme(method), seed), None

    def _scheme(self, method: str) -> Scheme:
        if method == "full_rollout_2x2":
            return replace(SCHEMES["phased_2x2"], efficiency=EFFICIENCY_SETTINGS["full_rollout"])
        if method in EFFICIENCY_SETTINGS:
            return replace(SCHEMES["phased"], efficiency=EFFICIENCY_SETTINGS[method])
        return SCHEMES[method]

    def _fake_updates(self, scheme: Scheme) -> tuple[FakeUpdates, bool]:
        """Returns a scheme's fake updates, and whether they depend on the weights."""
        most = self.config.fake_updates or self.fake_updates
        fake_updates = scheme.efficiency.fake_updates(most)
        return fake_updates, isinstance(fake_updates, AdaptiveUpdates)

    def _start(self, scheme: Scheme, adaptive: bool) -> Initializer:
        if adaptive:
            return self.start(scheme.width_factor)
        config = self.config
        return FromDenoiser(
            MlpDenoiser(
                dim=config.dim, classes=config.classes, width=16, schedule=self.teacher().schedule
            )
        )

    def _count(self, scheme: Scheme, seed: int) -> dict[str, Any]:
        efficiency, plan = scheme.efficiency, scheme.plan()
        most = self.config.fake_updates or self.fake_updates
        fake_updates, adaptive = self._fake_updates(scheme)
        batch = self.config.batch_size or (self.batch_size if adaptive else ROWS)
        cycles = (self.config.updates or self.updates) // len(plan) if adaptive else CYCLES
        account = Account()
        recorder = _CostRecorder(account=account, cycles=cycles)
        truncation = scheme.truncation
        if isinstance(truncation, StochasticTruncation):
            truncation = CyclingTruncation()
        together = len(scheme.curriculum.groups(plan)) < len(plan)
        distill(
            Guided(self.teacher(), 3.0),
            plan,
            generator_objective=scheme.generator_objective(),
            fake_objective=scheme.fake_objective(),
            updates=cycles // len(plan) if together else cycles,
            experts=ExpertTraining(
                initializer=scheme.init(self._start(scheme, adaptive)),
                expert=full_rollout(plan, scheme.expert) if efficiency.full else scheme.expert,
                curriculum=scheme.curriculum,
                optimizer=self.optimizers[0],
                accumulate=scheme.accumulate,
            ),
            rollouts=Rollouts(
                batch_size=batch,
                truncation=truncation,
                phase_inputs=efficiency.phase_inputs(cycles * (most + scheme.accumulate)),
            ),
            fake_scores=FakeScoreTraining(
                updates=fake_updates,
                updates_per_rollout=efficiency.fake_updates_per_rollout,
                scores=scheme.fake_scores,
                optimizer=self.optimizers[1],
            ),
            session=Session(recorder=recorder, account=account),
            seed=seed,
            check_score=False,
        )
        return _row(recorder.states, plan, batch * cycles)


def _row(states: list[dict[str, int]], plan: PhasePlan, samples: int) -> dict[str, Any]:
    before, totals = dict.fromkeys(ROLES, 0), []
    for state in states:
        totals.append(round((sum(state.values()) - sum(before.values())) / samples, 3))
        before = state
    return {
        "a_cycle": round(sum(totals) / len(totals), 3),
        **{role: round(n / samples / len(states), 3) for role, n in before.items()},
        "least": min(totals),
        "most": max(totals),
        "nfe": plan.nfe,
    }
