"""A hand-written DMD cycle for one teacher on rectified flow, as a baseline for the trainer.

It calls the networks and nothing else of the library, and does the work of a trainer's cycle: the
fake updates and the generator update of one phase from noise, guidance, gradient clipping, skipped
non-finite updates, and an EMA of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.phases import Phase
from pdmd.typing import Condition

__all__ = ["apply_update", "bare_cycle", "labels"]

MAX_GRAD_NORM, DECAY, MARGIN = 10.0, 0.99, 0.02


def labels(values: torch.Tensor | Sequence[int]) -> Condition:
    """Returns a condition of class labels, of shape :math:`(B)`."""
    from tensordict import TensorDict

    label = torch.as_tensor(values)
    return TensorDict({"label": label}, batch_size=(len(label),))


def apply_update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Takes an optimizer step with a clipped gradient, unless loss or gradient is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
    if torch.isfinite(norm) and torch.isfinite(loss):
        optimizer.step()


def bare_cycle(
    teacher: Denoiser,
    phase: Phase,
    *,
    fake_updates: int,
    batch: int,
    lr: float,
    fake_lr: float,
    guidance: float = 1.0,
    classes: int = 10,
    seed: int = 1,
) -> Callable[[], None]:
    """Returns a cycle that trains a generator and a fake score, both copies of the teacher.

    Args:
        teacher: A frozen network that predicts velocity on rectified flow from class labels; the
            label ``classes`` is unconditional.
        phase: A phase of one step from noise.
        fake_updates: Fake updates before the generator update.
        batch: Batch size of a rollout.
        lr: The learning rate of the generator.
        fake_lr: The learning rate of the fake score.
        guidance: The teacher's guidance scale; both evaluations run as one batch.
        classes: The number of classes.
        seed: The seed of all random numbers.
    """
    device = teacher.device
    generator, fake = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    average = copy.deepcopy(generator).requires_grad_(False)
    optimizers = [
        torch.optim.AdamW(n.parameters(), lr=rate, betas=(0.5, 0.99), weight_decay=0.0, fused=True)
        for n, rate in ((generator, lr), (fake, fake_lr))
    ]
    rng = torch.Generator(device).manual_seed(seed)
    s, shape = phase.t_end, teacher.latent_shape
    low, high = s + MARGIN * (1 - s), 1 - MARGIN
    ones = torch.ones(batch, dtype=torch.float64, device=device)
    null = torch.full((batch,), classes, device=device)
    column = (batch, *(1,) * len(shape))

    def real(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        if guidance == 1:
            return teacher.network(x, t, condition)
        assert condition is not None
        both = labels(torch.cat([null, condition["label"]]))
        uncond, cond = teacher.network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return uncond + guidance * (cond - uncond)

    def rollout() -> tuple[torch.Tensor, Condition]:
        condition = labels(torch.randint(classes, (batch,), generator=rng, device=device))
        x = torch.randn(batch, *shape, generator=rng, device=device)
        return x + (s - 1) * generator.network(x, ones, condition), condition

    def noised(x_s: torch.Tensor) -> tuple[torch.Tensor, ...]:
        t = torch.rand(batch, generator=rng, dtype=torch.float64, device=device)
        t = low + (high - low) * t
        a = (1 - t) / (1 - s)
        b = (t.square() - (a * s).square()).sqrt()
        eps = torch.randn(x_s.shape, generator=rng, device=device)
        a_x, b_x = a.float().reshape(column), b.float().reshape(column)
        return a_x * x_s + b_x * eps, t, eps, b_x

    def cycle() -> None:
        for _ in range(fake_updates):
            with torch.no_grad():
                x_s, condition = rollout()
            x_t, t, eps, b = noised(x_s)
            t_x = t.float().reshape(column)
            target = -x_s / (1 - s) + eps * (t_x / b + (1 - t_x) * s * s / ((1 - s) ** 2 * b))
            weight = (10 * b.square()).clamp(max=1.0)
            gap = fake.network(x_t, t, condition) - target
            apply_update(fake, optimizers[1], (weight * gap.square()).mean())
        fake.requires_grad_(False)
        x_s, condition = rollout()
        with torch.no_grad():
            x_t, t, _, _ = noised(x_s)
            t_x = t.float().reshape(column)
            m_fake = x_t - (t_x - s) * fake.network(x_t, t, condition)
            m_real = x_t - (t_x - s) * real(x_t, t, condition)
            scale = (x_s - m_real).abs().flatten(1).mean(1).reshape(column) + 1e-3
            target = x_s - (m_fake - m_real) / scale
        apply_update(generator, optimizers[0], 0.5 * (x_s - target).square().mean())
        fake.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*generator.parameters()], 1 - DECAY)  # pyright: ignore[reportPrivateImportUsage]

    return cycle
