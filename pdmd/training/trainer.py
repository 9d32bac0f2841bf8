r"""The training of a phase, or of several phases together.

One cycle is several updates of the fake score on the student's samples :math:`x_{t_k}`, then one
update of the expert. Earlier experts make the phase's phase inputs without a gradient. Where
several phases train together, each cycle draws one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process
from pdmd.distillation.experts import Expert, Truncation
from pdmd.distillation.phases import Phase
from pdmd.distributed.runtime import OneProcess, Runtime
from pdmd.objectives.base import Models, Objective, PhaseContext, Rollout
from pdmd.training.conditions import ConditionStream
from pdmd.training.ema import Ema
from pdmd.training.fake_scores import FakeScores, FakeUpdates
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.health import Health
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputs, PhaseInputSource
from pdmd.typing import Condition, Latents, Times

__all__ = ["PhaseTrainer"]


class PhaseTrainer:
    """Trains the experts of one or more phases and their fake scores.

    Args:
        experts: The experts to train, over trainable denoisers, which they may share; noisiest
            first, of adjoining phases.
        earlier: The frozen experts of the phases before them, placed by the runtime.
        teacher: The real score, placed likewise.
        fakes: For each expert its fake scores, trainable denoisers, as many as ``fake_scores``
            says.
        generator_objective: What the experts minimise.
        fake_objective: What the fake scores minimise.
        conditions: Draws the conditions.
        truncation: Chooses where a rollout stops inside a phase.
        updates: Updates of the experts, all together.
        fake_scores: Assigns rollouts to fake scores.
        fake_updates: Decides how often the fake score trains before each expert's update.
        batch_size: Samples in each rollout.
        accumulate: Rollouts whose gradients make one update of the expert.
        fake_updates_per_rollout: Fake updates that one rollout serves, with times and noises of
            their own; above 1 the generator's rollout serves the first of them.
        optimizer: The experts' optimizer.
        fake_optimizer: The fake scores'.
        ema_decay: Decay of the averages that become the experts.
        max_grad_norm: Largest gradient norm of either role.
        generator: The source of all randomness.
        seed: Seeds what objectives make when a phase begins.
        account: Counts network evaluations.
        runtime: Where it runs; this process by default.
        health: Hears of updates that are refused; stops at the first by default.
        phase_inputs: Where rollouts start; made afresh by default.
        interval: Cycles after which an accelerator is asked what it refused; at once on a CPU.

    Raises:
        ValueError: If the batch is not shared out evenly, or an expert's or fake score's schedule
            or latent shape is not the teacher's.
    """

    def __init__(
        self,
        *,
        experts: Sequence[Expert],
        earlier: Sequence[Expert],
        teacher: Denoiser,
        fakes: Sequence[Sequence[Denoiser]],
        generator_objective: Objective,
        fake_objective: Objective,
        conditions: ConditionStream,
        truncation: Truncation,
        updates: int,
        fake_scores: FakeScores,
        fake_updates: FakeUpdates,
        batch_size: int,
        accumulate: int = 1,
        fake_updates_per_rollout: int = 1,
        optimizer: AdamRecipe,
        fake_optimizer: AdamRecipe,
        ema_decay: float,
        max_grad_norm: float,
        generator: torch.Generator,
        seed: int = 0,
        account: Account | None = None,
        runtime: Runtime | None = None,
        health: Health | None = None,
        phase_inputs: PhaseInputs | None = None,
        interval: int = 1,
    ) -> None:
        for denoiser in (*(e.denoiser for e in experts), *(d for row in fakes for d in row)):
            if not same_process(denoiser.schedule, teacher.schedule):
                raise ValueError(
                    f"a network runs on {denoiser.schedule!r}, but its teacher on "
                    f"{teacher.schedule!r}; make the network with schedule=teacher.schedule"
                )
            if denoiser.latent_shape != teacher.latent_shape:
                raise ValueError(
                    f"a network takes latents of shape {denoiser.latent_shape}, but its teacher "
                    f"makes {teacher.latent_shape}; make the network for the teacher's"
                )
        self.runtime, self.health = runtime or OneProcess(), health or Health(0)
        self.experts = tuple(experts)
        self.earlier = tuple(earlier)
        self.teacher = teacher
        self.fakes = tuple(tuple(scores) for scores in fakes)
        self.generator_objective = generator_objective
        self.fake_objective = fake_objective
        self.conditions = conditions
        self.truncation = truncation
        self.updates = updates
        self.fake_scores = fake_scores
        self.fake_updates = fake_updates
        self.batch_size = self.runtime.local(batch_size)
        self.accumulate = accumulate
        self.fake_updates_per_rollout = fake_updates_per_rollout
        self.max_grad_norm = max_grad_norm
        self.generator = generator
        self.account = account or Account()
        self.account.ranks = self.runtime.data_ranks
        self.interval = 1 if self.runtime.device.type == "cpu" else interval
        self._verdicts: list[_Verdict] = []
        self.update = 0
        distinct = {id(e.denoiser): e.denoiser for e in self.experts}
        generators = nn.ModuleDict({str(i): d for i, d in enumerate(distinct.values())})
        self.ema = Ema(generators, ema_decay)  # before the hooks, which a copy would take along
        averages = cast("list[Denoiser]", list(self.ema.network.values()))
        self._average = dict(zip(distinct, averages, strict=True))
        for denoiser in (*distinct.values(), *averages, *(d for row in fakes for d in row)):
            self.runtime.trained(denoiser)
        self._watch(distinct.values())
        self.phase_inputs = phase_inputs or FreshPhaseInputs()
        self._begin(seed)
        scores: dict[str, nn.Module] = {
            f"{k}_{j}": d for k, row in enumerate(self.fakes) for j, d in enumerate(row)
        }
        for expert in self.experts:
            for objective in (generator_objective, fake_objective):
                for name, network in objective.networks(expert.phase).items():
                    scores[name] = self.runtime.trained(network)
        self.networks: dict[str, nn.ModuleDict] = {
            "generator": generators,
            "fake": nn.ModuleDict(scores),
        }
        self.recipes = {"generator": optimizer, "fake": fake_optimizer}
        self.optimizers = {
            role: self.runtime.optimizers(recipe, self.networks[role])
            for role, recipe in self.recipes.items()
        }
        self.schedules = {
            role: self.runtime.schedule(self.optimizers[role], recipe, updates)
            for role, recipe in self.recipes.items()
        }

    def _begin(self, seed: int) -> None:
        self.fake_updates.on_phase_start()
        denoiser = self.experts[0].denoiser
        self.phase_inputs.on_phase_start(
            PhaseInputSource(
                experts=self.earlier,
                conditions=self.conditions,
                latent_shape=denoiser.latent_shape,
                sigma=denoiser.schedule.prior_std(),
                batch=self.batch_size,
                device=self.runtime.device,
                generator=self.generator,
                seed=seed,
                account=self.account,
            )
        )
        for k, expert in enumerate(self.experts):
            for i, objective in enumerate((self.generator_objective, self.fake_objective)):
                generator = torch.Generator().manual_seed(
                    (seed * 1_000_003 + 2 * expert.phase.index + i) % 2**63
                )
                context = PhaseContext(
                    models=self.models(k, None),
                    phase=expert.phase,
                    draw_conditions=self.conditions.draw,
                )
                objective.on_phase_start(context, generator)

    def _watch(self, generators: Iterable[Denoiser]) -> None:
        self.account.watch("teacher", self.teacher)
        for denoiser in generators:
            self.account.watch("generator", denoiser)
        for scores in self.fakes:
            for denoiser in scores:
                self.account.watch("fake", denoiser)
        for denoiser in {id(e.denoiser): e.denoiser for e in self.earlier}.values():
            self.account.watch("frozen", denoiser)

    @property
    def phase(self) -> Phase:
        """The first phase in training."""
        return self.experts[0].phase

    def models(self, k: int, exit_step: int | None) -> Models:
        """Returns the denoisers of the k-th expert in training, for rollouts with a stop."""
        expert = self.experts[k]
        fake = self.fakes[k][self.fake_scores.index(exit_step)]
        return Models(real=self.teacher, fake=fake, expert=expert.denoiser)

    def finished(self) -> list[Expert]:
        """Returns the experts as they now stand: over the averages of their networks."""
        return [type(e)(self._average[id(e.denoiser)], e.phase) for e in self.experts]

    @torch.no_grad()
    def phase_input(
        self, k: int = 0, phase_inputs: PhaseInputs | None = None
    ) -> tuple[Latents, Condition]:
        r"""Returns :math:`x_{t_{k-1}}` and its condition, through the experts before the k-th."""
        x, condition = (phase_inputs or self.phase_inputs).take()
        for expert in self.experts[:k]:
            x = expert(x, condition, generator=self.generator)
        return x, condition

    def rollout(
        self, k: int = 0, *, record: bool, phase_inputs: PhaseInputs | None = None
    ) -> Rollout:
        """Makes the k-th expert's output, recording the gradient or not.

        Args:
            k: The expert.
            record: Whether to record the gradient.
            phase_inputs: Where to start; as the training does by default.
        """
        x, condition = self.phase_input(k, phase_inputs)
        expert = self.experts[k]
        exit_step = self.truncation(expert.phase, self.generator)
        with torch.set_grad_enabled(record):
            x_s = expert(x, condition, generator=self.generator, exit_step=exit_step)
        return Rollout(
            x_s=x_s, condition=condition, phase=expert.phase, phase_input=x, exit_step=exit_step
        )

    def cycle(self) -> dict[str, torch.Tensor]:
        """Runs the fake updates and the expert's update.

        Returns:
            Scalars by name, still on their device: losses and gradient norms of the last updates.

        Raises:
            NonFiniteError: If too many losses or gradients in a row are not finite; those updates
                are not applied.
        """
        k = 0
        if len(self.experts) > 1:
            k = int(torch.randint(len(self.experts), (), generator=self.generator))
        scalars: dict[str, torch.Tensor] = {}
        anchor = served = None
        if (
            self.fake_updates_per_rollout > 1
        ):  # the generator's own rollout serves the first fake updates too
            anchor = served = self.rollout(k, record=True)
        made = 0
        while self.fake_updates.more(made):
            if served is None or made and made % self.fake_updates_per_rollout == 0:
                served = self.rollout(k, record=False)
            seen = replace(served, x_s=served.x_s.detach())
            scalars.update(self._apply("fake", self.fake_objective, seen, k))
            self.fake_updates.observe(self._measures)
            made += 1
        self.networks["fake"].requires_grad_(False)
        rollout = anchor or self.rollout(k, record=True)
        scalars.update(self._apply("generator", self.generator_objective, rollout, k))
        self.networks["fake"].requires_grad_(True)
        self.ema.update(self.networks["generator"], self.update)
        self.update += 1
        for schedule in self.schedules.values():
            schedule.step()
        if self.update % self.interval == 0 or self.update == self.updates:
            self.settle()
        scalars["fake_updates"] = torch.tensor(float(made))
        return scalars

    def _apply(
        self, role: str, objective: Objective, rollout: Rollout, k: int
    ) -> dict[str, torch.Tensor]:
        optimizer = self.optimizers[role]
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        parts = self.accumulate if role == "generator" else 1
        for i in range(parts):
            if i:
                rollout = self.rollout(k, record=True)
            losses = objective.losses(self.models(k, rollout.exit_step), rollout, self.generator)
            if not losses:
                raise ValueError(
                    f"the {role}'s objective has no loss in phase {rollout.phase.index + 1}; give "
                    "it a term that counts in every phase"
                )
            values = [loss.float() for loss in losses.values()]
            total = values[0] if len(values) == 1 else torch.stack(values).sum()
            if parts > 1 or self.runtime.loss_scale != 1:
                total = total / parts * self.runtime.loss_scale
            total.backward()
            for name, loss in losses.items():
                value = loss.detach() / parts if parts > 1 else loss.detach()
                sums[name] = sums[name] + value if name in sums else value
        means = self.runtime.mean(torch.stack([loss.float() for loss in sums.values()]))
        norm = self.runtime.clip(self.networks[role], self.max_grad_norm)
        out = dict(zip((f"{role}/{name}" for name in sums), means, strict=True))
        out[f"{role}/gradient_norm"] = norm.detach()
        finite = torch.isfinite(out[f"{role}/gradient_norm"]) & torch.isfinite(means.sum())
        self.runtime.step(optimizer, finite)
        times, phase = self.account.times, rollout.phase.index + 1
        self._verdicts.append(_Verdict(finite, role, phase, self.update, out, times))
        return out

    def settle(self) -> None:
        """Waits for the device, and tells health which updates it applied and which not.

        Raises:
            NonFiniteError: If too many in a row were not.
        """
        verdicts, self._verdicts = self._verdicts, []
        if not verdicts:
            return
        flags = torch.stack([verdict.finite for verdict in verdicts]).tolist()
        for applied, verdict in zip(flags, verdicts, strict=True):
            if applied:
                self.health.applied(verdict.role)
            else:
                self.health.skipped(verdict.role, self._complaint(verdict))

    def _measures(self) -> dict[str, torch.Tensor]:
        measures = self.fake_objective.measures()
        return {name: self.runtime.mean(value) for name, value in measures.items()}

    def _complaint(self, verdict: _Verdict) -> str:
        role = verdict.role
        shown = ", ".join(
            f"{name.split('/')[1].replace('gradient_norm', 'gradient norm')} = {float(value):.4g}"
            for name, value in verdict.scalars.items()
        )
        rate = self.recipes[role].rate(verdict.update / max(self.updates, 1))
        return (
            f"phase {verdict.phase}, update {verdict.update + 1}: the {role}'s loss or gradient "
            f"is not finite ({shown}{Account.evaluated_at(verdict.times)}); the step was skipped. "
            f"Lower the learning rate (now {rate:.3g}), raise the time margin, or look at what "
            "the teacher returns in this phase."
        )


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What the device says of an update, not read yet.

    Attributes:
        finite: Whether losses and gradients are finite, and the update so applied.
        role: Whose update.
        phase: Number of the phase, from 1.
        update: Number of the cycle, from 0.
        scalars: Losses and gradient norm.
        times: Times at which each role was last asked.
    """

    finite: torch.Tensor
    role: str
    phase: int
    update: int
    scalars: dict[str, torch.Tensor]
    times: dict[str, Times]
