r"""The trainer of one phase, or of several phases jointly.

A cycle is several updates of the fake score on the student's samples :math:`x_{t_k}`, then one
update of the expert (Phased DMD, arXiv:2510.27684, Algorithm 1). Earlier experts compute the phase
inputs without a gradient. Where several phases train jointly, each cycle samples one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.objectives.base import Models, Objective, PhaseContext, Rollout
from pdmd.training.checks import check_own_parameters, check_same_process, check_update
from pdmd.training.conditions import ConditionStream
from pdmd.training.ema import Ema
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining, FakeUpdates
from pdmd.training.monitoring.health import Health, Step
from pdmd.training.monitoring.monitors import Cycle
from pdmd.training.monitoring.throughput import RoleClock
from pdmd.training.phase_inputs import PhaseInputs, PhaseInputSource
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.typing import Condition, Latents

__all__ = ["PhaseTrainer"]


class PhaseTrainer:
    """Trains the experts of one or more phases and their fake scores.

    Args:
        experts: The experts to train, of consecutive phases, noisiest first. Their denoisers are
            trainable, and may be shared.
        earlier: The frozen experts of earlier phases, placed by the runtime.
        teacher: The real score, placed by the runtime.
        fakes: The fake scores of each expert, as trainable denoisers.
        generator_objective: Objective of the experts.
        fake_objective: Objective of the fake scores.
        conditions: Samples the conditions.
        updates: Total number of updates of the experts.
        generator: The random generator.
        expert_training: How the experts train.
        rollouts: How the experts are rolled out.
        fake_training: How the fake scores train.
        session: Devices, recorder and checkpoints.
        health: Counts skipped steps; by default a new counter of the session.
        seed: Seed of the objectives' ``on_phase_start``.

    Attributes:
        networks: The networks in training by role, ``generator`` and ``fake``.
        parameters: Their parameters by role.
        optimizers: Their optimizers.
        rates: Their learning-rate schedules.
        ema: The weight averages that become the finished experts.
        update: Number of updates of the experts so far.

    Raises:
        ValueError: If the batch size is not divisible by the data ranks, an expert has parameters
            of its own, or an expert or fake score has another schedule or latent shape than the
            teacher.
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
        updates: int,
        generator: torch.Generator,
        expert_training: ExpertTraining,
        rollouts: Rollouts,
        fake_training: FakeScoreTraining,
        session: Session,
        health: Health | None = None,
        seed: int = 0,
    ) -> None:
        self.experts, self.earlier = tuple(experts), tuple(earlier)
        self.teacher = teacher
        self.fakes = tuple(tuple(scores) for scores in fakes)
        self.generator_objective, self.fake_objective = generator_objective, fake_objective
        self.conditions, self.updates, self.generator = conditions, updates, generator
        self.expert_training, self.fake_training = expert_training, fake_training
        self.rollouts, self.session = rollouts, session
        self.buckets = rollouts.buckets or Buckets.of_shape(teacher.latent_shape)
        phases = [expert.phase for expert in self.experts]
        self.fake_updates = fake_training.schedule(phases)
        self._observes = type(self.fake_updates).observe is not FakeUpdates.observe
        self._measured: list[Mapping[str, Tensor]] = []  # by rollout of the last fake update
        self.health = health or session.health()
        runtime = session.runtime
        self.batch_size = runtime.ranks.local_batch(rollouts.batch_size)
        session.account.ranks = runtime.ranks.data_ranks
        self.interval = 1 if runtime.device.type == "cpu" else session.recorder.interval
        self.update = 0
        self._pending_steps: list[Step] = []
        self.clock = RoleClock(runtime.device)

        trained = {id(e.denoiser): e.denoiser for e in self.experts}
        scores = [d for row in self.fakes for d in row]
        check_same_process([*trained.values(), *scores], teacher)
        check_own_parameters(self.experts)
        generators = nn.ModuleDict({str(i): d for i, d in enumerate(trained.values())})
        self.ema = Ema(
            generators, expert_training.ema
        )  # before hooks are registered, which a copy would keep
        averages = cast("list[Denoiser]", list(self.ema.network.values()))
        self._average = dict(zip(trained, averages, strict=True))
        types = runtime.types
        for denoiser in trained.values():
            runtime.placement.trained(denoiser, precision=types.generator)
        for denoiser in scores:
            runtime.placement.trained(denoiser, precision=types.fake)
        for average in averages:
            runtime.placement.trained(
                average,
                offload=runtime.offload.averages,
                precision=types.generator,
                storage=types.average,
            )
        self._count_evaluations([*trained.values()], scores)
        self._start_phase(seed)
        self.networks: dict[str, nn.ModuleDict] = {
            "generator": generators,
            "fake": nn.ModuleDict(self._fake_networks()),
        }
        self.parameters = {role: list(n.parameters()) for role, n in self.networks.items()}
        recipe = expert_training.recipe(phases)
        self.recipes = {"generator": recipe, "fake": fake_training.recipe(recipe, phases)}
        self.max_grad_norms = {
            "generator": expert_training.max_grad_norm,
            "fake": fake_training.max_grad_norm,
        }
        self.optimizers = {
            role: runtime.optimization.optimizers(recipe, self.networks[role])
            for role, recipe in self.recipes.items()
        }
        self.rates = {
            role: runtime.optimization.rates(self.optimizers[role], recipe, updates)
            for role, recipe in self.recipes.items()
        }

    def _count_evaluations(self, trained: Sequence[Denoiser], fakes: Sequence[Denoiser]) -> None:
        account = self.session.account
        account.count("teacher", self.teacher)
        for denoiser in trained:
            account.count("generator", denoiser)
        for denoiser in fakes:
            account.count("fake", denoiser)
        for denoiser in {id(e.denoiser): e.denoiser for e in self.earlier}.values():
            account.count("frozen", denoiser)

    def _start_phase(self, seed: int) -> None:
        self.fake_updates.on_phase_start()
        denoiser = self.experts[0].denoiser
        self.phase_inputs.on_phase_start(
            PhaseInputSource(
                experts=self.earlier,
                conditions=self.conditions,
                buckets=self.buckets,
                sigma=denoiser.schedule.prior_std(),
                batch=self.batch_size,
                device=self.session.runtime.device,
                generator=self.generator,
                seed=seed,
                account=self.session.account,
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

    def _fake_networks(self) -> dict[str, nn.Module]:
        """Returns the fake scores, and the trainable networks of the objectives."""
        networks: dict[str, nn.Module] = {
            f"{k}_{j}": d for k, row in enumerate(self.fakes) for j, d in enumerate(row)
        }
        for expert in self.experts:
            for objective in (self.generator_objective, self.fake_objective):
                for name, network in objective.networks(expert.phase).items():
                    networks[name] = self.session.runtime.placement.trained(network)
        return networks

    @property
    def phase(self) -> Phase:
        """The first phase that trains."""
        return self.experts[0].phase

    @property
    def phase_inputs(self) -> PhaseInputs:
        """Supplies the latents at which rollouts start."""
        return self.rollouts.phase_inputs

    def models(self, k: int, exit_step: int | None) -> Models:
        """Returns the denoisers of the k-th expert, for rollouts with this exit step."""
        fake = self.fakes[k][self.fake_training.scores.index(exit_step)]
        return Models(real=self.teacher, fake=fake, expert=self.experts[k].denoiser)

    def finished(self) -> list[Expert]:
        """Returns the experts over the current averages of their networks."""
        self.ema.wait()
        self.session.runtime.synchronize()
        return [type(e)(self._average[id(e.denoiser)], e.phase) for e in self.experts]

    @torch.no_grad()
    def phase_input(
        self, k: int = 0, phase_inputs: PhaseInputs | None = None
    ) -> tuple[Latents, Condition]:
        r"""Returns :math:`x_{t_{k-1}}` and its condition, through the experts before the k-th."""
        x, condition = (phase_inputs or self.phase_inputs).take()
        for expert in self.experts[:k]:
            x = self.buckets.expert(expert, x)(x, condition, generator=self.generator)
        return x, condition

    def rollout(
        self, k: int = 0, *, record: bool, phase_inputs: PhaseInputs | None = None
    ) -> Rollout:
        """Rolls out the k-th expert.

        Args:
            k: Index of the expert.
            record: Whether to record gradients.
            phase_inputs: Supplies the starting latents; those of training by default.
        """
        x, condition = self.phase_input(k, phase_inputs)
        expert = self.buckets.expert(self.experts[k], x)
        exit_step = self.rollouts.truncation(expert.phase, self.generator)
        with torch.set_grad_enabled(record):
            x_s = expert(x, condition, generator=self.generator, exit_step=exit_step)
        return Rollout(
            x_s=x_s, condition=condition, phase=expert.phase, phase_input=x, exit_step=exit_step
        )

    def cycle(self) -> dict[str, Tensor]:
        """Runs the fake updates and the expert's update.

        Returns:
            Losses and gradient norms of the last updates by name, on their device.

        Raises:
            NonFiniteError: If too many losses or gradients in a row are not finite; those steps
                are skipped.
        """
        k = 0
        if len(self.experts) > 1:
            k = int(torch.randint(len(self.experts), (), generator=self.generator))
        scalars: dict[str, Tensor] = {}
        reuse, parts = self.fake_training.updates_per_rollout, self.fake_training.accumulate
        recorded: list[Rollout] = []
        if reuse > 1:  # the expert's first rollout is reused by the first fake updates
            recorded = [self.rollout(k, record=True)]
        current = [replace(rollout, x_s=rollout.x_s.detach()) for rollout in recorded]
        done = 0
        while self.fake_updates.more(done):
            if done and done % reuse == 0:
                current = []
            rollouts = self._rollouts(k, current, parts, record=False)
            if reuse > 1:
                rollouts = current = list(rollouts)
            with self.clock.role("fake"):
                scalars.update(self._apply("fake", self.fake_objective, rollouts, parts, k))
            self.fake_updates.observe(self._diagnostics)
            done += 1
        for parameter in self.parameters["fake"]:
            parameter.requires_grad_(False)
        parts = self.expert_training.accumulate
        rollouts = self._rollouts(k, recorded, parts, record=True)
        with self.clock.role("generator"):
            scalars.update(self._apply("generator", self.generator_objective, rollouts, parts, k))
        for parameter in self.parameters["fake"]:
            parameter.requires_grad_(True)
        self.ema.update(self.networks["generator"], self.update)
        self.update += 1
        for rates in self.rates.values():
            rates.step()
        if self.update % self.interval == 0 or self.update == self.updates:
            self.settle()
        scalars["fake_updates"] = torch.tensor(float(done))
        return scalars

    def _rollouts(
        self, k: int, first: Sequence[Rollout], number: int, *, record: bool
    ) -> Iterable[Rollout]:
        """Yields rollouts of the k-th expert: those given, then new ones, each when needed."""
        yield from first
        for _ in range(number - len(first)):
            yield self.rollout(k, record=record)

    def _apply(
        self, role: str, objective: Objective, rollouts: Iterable[Rollout], parts: int, k: int
    ) -> dict[str, Tensor]:
        """Updates a role's networks by the mean gradient over a number of rollouts."""
        runtime, optimizer = self.session.runtime, self.optimizers[role]
        sums: dict[str, Tensor] = {}
        self._measured.clear()
        phase = self.experts[k].phase.index
        for rollout in rollouts:
            losses = objective.losses(self.models(k, rollout.exit_step), rollout, self.generator)
            losses = check_update(objective, losses, role, self.experts[k].phase)
            values = [loss.float() for loss in losses.values()]
            total = values[0] if len(values) == 1 else torch.stack(values).sum()
            if parts > 1 or runtime.loss_scale != 1:
                total = total / parts * runtime.loss_scale
            total.backward()
            if role == "fake" and self._observes:
                self._measured.append(objective.diagnostics())
            for name, loss in losses.items():
                value = loss.detach() / parts if parts > 1 else loss.detach()
                sums[name] = sums[name] + value if name in sums else value
        means = runtime.ranks.mean(torch.stack([loss.float() for loss in sums.values()]))
        norm = runtime.optimization.clip_gradients(
            self.networks[role], self.parameters[role], self.max_grad_norms[role]
        )
        scalars = dict(zip((f"{role}/{name}" for name in sums), means, strict=True))
        scalars[f"{role}/gradient_norm"] = norm
        finite = torch.isfinite(norm + means.sum())
        if role == "generator":
            self.ema.wait()
        runtime.optimization.step(optimizer, finite)
        for parameter in self.parameters[role]:
            parameter.grad = None  # memory for what the other role computes next
        self._pending_steps.append(
            Step(
                finite=finite,
                role=role,
                phase=phase + 1,
                update=self.update,
                scalars=scalars,
                times=self.session.account.times,
                lr=self.recipes[role].rate(self.update, self.updates),
            )
        )
        return scalars

    def settle(self) -> None:
        """Synchronizes with the device, and counts applied and skipped steps.

        Raises:
            NonFiniteError: If too many in a row were skipped.
        """
        steps, self._pending_steps = self._pending_steps, []
        self.health.settle(steps)

    def observed(self, phases: int) -> Cycle:
        """Returns the last cycle as monitors see it.

        Args:
            phases: Number of phases in the plan.
        """
        last = len(self.experts) - 1
        return Cycle(
            phase=self.phase,
            phases=phases,
            update=self.update,
            updates=self.updates,
            measure=self.fake_objective.diagnostics,
            experts=lambda: [*self.earlier, *self.finished()],
            teacher=self.teacher,
            fake=self.models(last, self.experts[last].phase.steps - 1).fake,
            conditions=self.conditions,
            batch=self.batch_size,
            samples=self.rollouts.batch_size * self.expert_training.accumulate,
            evaluations=lambda: self.session.account.equivalents,
            clock=self.clock,
            runtime=self.session.runtime,
            recorder=self.session.recorder,
        )

    def _diagnostics(self) -> dict[str, Tensor]:
        """Returns the measurements of the last fake update: means over its rollouts and ranks."""
        ranks = self.session.runtime.ranks
        return {
            name: ranks.mean(torch.stack([values[name] for values in self._measured]).mean(0))
            for name in (self._measured[-1] if self._measured else ())
        }
