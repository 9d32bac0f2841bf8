r"""The training of one phase.

One cycle is several updates of the fake score on the student's samples :math:`x_{t_k}`, then one
update of the expert. Earlier experts make the phase's entry states without a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pdmd.denoisers import Denoiser
from pdmd.experts import Expert, Truncation
from pdmd.objectives.base import Objective, Players, Rollout
from pdmd.phases import Phase
from pdmd.training.data import ConditionStream
from pdmd.training.ema import Ema
from pdmd.training.optimizers import AdamRecipe
from pdmd.typing import Condition, Latents

__all__ = ["NonFiniteError", "PhaseTrainer"]


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite; the update was not applied."""


class PhaseTrainer:
    """Trains one expert and its fake score.

    Args:
        expert: The expert to train, over a trainable denoiser.
        earlier: The frozen experts of the phases before it.
        teacher: The real score.
        fake: The fake score, a trainable denoiser.
        generator_objective: What the expert minimises.
        fake_objective: What the fake score minimises.
        conditions: Draws the conditions.
        truncation: Chooses where a rollout stops inside the phase.
        updates: Updates of the expert in the phase, for the learning rate.
        fake_updates: Updates of the fake score before each of the expert's.
        batch_size: Samples in each update.
        optimizer: The expert's optimizer.
        fake_optimizer: The fake score's.
        ema_decay: Decay of the average that becomes the expert.
        clip: Largest gradient norm of either network.
        generator: The source of all randomness.
    """

    def __init__(
        self,
        *,
        expert: Expert,
        earlier: Sequence[Expert],
        teacher: Denoiser,
        fake: Denoiser,
        generator_objective: Objective,
        fake_objective: Objective,
        conditions: ConditionStream,
        truncation: Truncation,
        updates: int,
        fake_updates: int,
        batch_size: int,
        optimizer: AdamRecipe,
        fake_optimizer: AdamRecipe,
        ema_decay: float,
        clip: float,
        generator: torch.Generator,
    ) -> None:
        self.expert = expert
        self.earlier = tuple(earlier)
        self.players = Players(real=teacher, fake=fake, generator=expert.denoiser)
        self.generator_objective = generator_objective
        self.fake_objective = fake_objective
        self.conditions = conditions
        self.truncation = truncation
        self.updates = updates
        self.fake_updates = fake_updates
        self.batch_size = batch_size
        self.recipes = {"generator": optimizer, "fake": fake_optimizer}
        self.networks: dict[str, nn.Module] = {"generator": expert.denoiser, "fake": fake}
        self.optimizers = {
            role: recipe.build(self.networks[role].parameters())
            for role, recipe in self.recipes.items()
        }
        self.ema = Ema(expert.denoiser, ema_decay)
        self.clip = clip
        self.generator = generator
        self.update = 0

    @property
    def phase(self) -> Phase:
        """The phase in training."""
        return self.expert.phase

    @torch.no_grad()
    def entry(self) -> tuple[Latents, Condition]:
        r"""Draws conditions and :math:`x_{t_{k-1}}`, through the frozen experts."""
        denoiser = self.expert.denoiser
        condition = self.conditions.draw(self.batch_size, self.generator)
        _, sigma = denoiser.schedule(1.0)
        x = float(sigma) * torch.randn(
            self.batch_size, *denoiser.latent_shape, generator=self.generator
        )
        for expert in self.earlier:
            x = expert(x, condition, generator=self.generator)
        return x, condition

    def rollout(self, *, record: bool) -> Rollout:
        """Makes the phase's output, recording the gradient or not."""
        x, condition = self.entry()
        stop = self.truncation(self.phase, self.generator)
        with torch.set_grad_enabled(record):
            x_s = self.expert(x, condition, generator=self.generator, stop=stop)
        return Rollout(x_s=x_s, condition=condition, phase=self.phase)

    def cycle(self) -> dict[str, torch.Tensor]:
        """Runs the fake updates and the expert's update.

        Returns:
            Scalars by name, still on their device: losses and gradient norms of the last updates.

        Raises:
            NonFiniteError: If a loss or gradient is not finite; that update is not applied.
        """
        scalars: dict[str, torch.Tensor] = {}
        for _ in range(self.fake_updates):
            rollout = self.rollout(record=False)
            scalars.update(self._apply("fake", self.fake_objective, rollout))
        self.networks["fake"].requires_grad_(False)
        rollout = self.rollout(record=True)
        scalars.update(self._apply("generator", self.generator_objective, rollout))
        self.networks["fake"].requires_grad_(True)
        self.ema.update(self.expert.denoiser, self.update)
        self.update += 1
        return scalars

    def _apply(self, role: str, objective: Objective, rollout: Rollout) -> dict[str, torch.Tensor]:
        optimizer = self.optimizers[role]
        rate = self.recipes[role].rate(self.update / max(self.updates, 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = objective.losses(self.players, rollout, self.generator)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.networks[role].parameters(), self.clip)
        if not math.isfinite(float(norm)) or not math.isfinite(float(total.detach())):
            optimizer.zero_grad(set_to_none=True)
            values = ", ".join(
                f"{name} = {float(loss.detach()):.4g}" for name, loss in losses.items()
            )
            raise NonFiniteError(
                f"phase {self.phase.index + 1}, update {self.update + 1}: the {role}'s loss or "
                f"gradient is not finite ({values}, gradient norm {float(norm):.4g}); the update "
                f"was not applied. Lower the learning rate (now {rate:.3g}) or raise the time "
                "margin."
            )
        optimizer.step()
        out = {f"{role}/{name}": loss.detach() for name, loss in losses.items()}
        return {**out, f"{role}/gradient_norm": norm.detach()}
