"""The cost benchmark: the network evaluations of a cycle, counted.

Real trainings on the exact mixture, every call of which is counted by the
:class:`~pdmd.training.monitoring.accounting.Account`. Stops are taken in turn rather than drawn,
so that averages are met exactly. Figures are for one sample: a forward is one, a backward two,
and a guided teacher's call two. :func:`pdmd.planning.calls` has the closed form. Where the number
of fake updates follows the fake score's relative error, it is that of a training of the
benchmark's length on the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pdmd.benchmarks.distillation import MixtureBenchmark
from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS, full_rollout
from pdmd.benchmarks.schemes import SCHEMES, Scheme
from pdmd.distillation.distill import distill
from pdmd.distillation.experts import StochasticTruncation, Truncation
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.teachers.guided import Guided
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import AdaptiveUpdates, FakeScoreTraining
from pdmd.training.monitoring.accounting import ROLES, Account
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

__all__ = ["CostBenchmark", "InTurn"]

CYCLES = 64
"""Cycles that are counted, where every cycle asks the same."""


class InTurn(Truncation):
    r"""Stops at every step of a phase as often as at another, in every role.

    With :math:`n` steps the i-th stop is :math:`i + \lfloor i / n \rfloor` modulo :math:`n`, so
    that every sixth rollout, the generator's, meets all stops too.
    """

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}

    def __call__(self, phase: Phase, generator: torch.Generator) -> int | None:
        calls = self._calls.get(phase.index, -1)  # a distillation asks once before it begins
        self._calls[phase.index] = calls + 1
        i = max(calls, 0)
        return (i + i // phase.steps) % phase.steps


@dataclass(kw_only=True)
class _Phases(Recorder):
    """Keeps the forward equivalents by role, up to the last update of every phase."""

    account: Account
    cycles: int
    states: list[dict[str, int]] = field(default_factory=list)

    def on_update(self, update: int) -> None:
        if update == self.cycles:
            self.states.append(self.account.equivalents)


class CostBenchmark(MixtureBenchmark):
    """Counts the evaluations of a cycle; its methods are efficiency settings, then schemes."""

    methods = (
        "full_rollout_2x2",
        *EFFICIENCY_SETTINGS,
        # phased_NAME is NAME, an efficiency
        *(n for n in SCHEMES if n != "vanilla_wide" and n[7:] not in EFFICIENCY_SETTINGS),
    )

    def about(self) -> dict[str, str]:
        out = {"full_rollout_2x2": "As full_rollout, of two phases of two steps."}
        out.update({name: efficiency.summary for name, efficiency in EFFICIENCY_SETTINGS.items()})
        out.update({name: SCHEMES[name].summary for name in self.methods if name in SCHEMES})
        return out

    def run(self, method: str, seed: int) -> tuple[dict[str, Any], str | None]:
        if method == "full_rollout_2x2":
            scheme = replace(SCHEMES["phased_2x2"], efficiency=EFFICIENCY_SETTINGS["full_rollout"])
        elif method in EFFICIENCY_SETTINGS:
            scheme = replace(SCHEMES["phased"], efficiency=EFFICIENCY_SETTINGS[method])
        else:
            scheme = SCHEMES[method]
        return self._count(scheme, seed), None

    def _count(self, scheme: Scheme, seed: int) -> dict[str, Any]:
        efficiency = scheme.efficiency
        plan, batch = scheme.plan(), self.config.batch_size or self.batch_size
        most = self.config.fake_updates or self.fake_updates
        fake_updates = efficiency.fake_updates(most)
        follows = isinstance(fake_updates, AdaptiveUpdates)
        cycles = (self.config.updates or self.updates) // len(plan) if follows else CYCLES
        account = Account()
        phases = _Phases(account=account, cycles=cycles)
        truncation = scheme.truncation
        if isinstance(truncation, StochasticTruncation):
            truncation = InTurn()
        together = len(scheme.curriculum.groups(plan)) < len(plan)
        distill(
            Guided(self.teacher(), 3.0),
            plan,
            generator_objective=scheme.generator_objective(),
            fake_objective=scheme.fake_objective(),
            updates=cycles // len(plan) if together else cycles,
            experts=ExpertTraining(
                initializer=scheme.init(self.start(scheme.widen)),
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
            session=Session(recorder=phases, account=account),
            seed=seed,
        )
        return _row(phases.states, plan, batch * cycles)


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
