r"""Pretraining of denoisers on images or on samples of another denoiser.

.. math:: \min_\theta \; \mathbb E_{t, x_0, \varepsilon}
    \| f_\theta(x_t, t, c) - (c_x x_0 + c_\varepsilon \varepsilon) \|^2,
    \qquad t \sim \mathcal U(0, 1)

with the coefficients of the network's kind of prediction; for the velocity of rectified flow this
is flow matching.

References:
    Lipman et al., Flow Matching, arXiv:2210.02747, Eq. 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import shift_times
from pdmd.diffusion.solvers import diffuse
from pdmd.objectives.score_matching import subinterval_target
from pdmd.randomness import randn_like
from pdmd.teachers.base import Teacher, networks
from pdmd.teachers.guided import unguided
from pdmd.training.ema import Ema
from pdmd.typing import Condition, Latents

if TYPE_CHECKING:
    from pdmd.teachers.packaged.digits import DigitsTeacher

__all__ = [
    "digit_source",
    "minimise",
    "network_arguments",
    "pretrain",
    "pretrain_digits",
    "pretrained_network",
]

D = TypeVar("D", bound=Denoiser)

Source = Callable[[int, torch.Generator], tuple[Latents, Condition]]
"""Samples clean data and its condition, given the number of samples and a generator."""


def pretrain(
    denoiser: D,
    source: Source,
    *,
    updates: int,
    batch_size: int = 256,
    lr: float = 2e-3,
    ema: float = 0.995,
    shift: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> D:
    """Trains a denoiser by regression on clean samples.

    Args:
        denoiser: The network, trained in place.
        source: Samples clean data and its conditions, given their number and a generator.
        updates: Number of optimizer updates; the learning rate has a cosine schedule.
        batch_size: Number of samples per update.
        lr: Peak learning rate of Adam.
        ema: Decay of the exponential moving average of the weights.
        shift: Shift of the times towards noise; 1 for uniform times.
        seed: Random seed.
        progress: Whether to show a progress bar.

    Returns:
        The network with averaged weights, frozen.
    """
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=lr, fused=True)
    average = Ema(denoiser, ema)
    bar = tqdm(range(updates), desc="pretrain", disable=not progress, dynamic_ncols=True)
    for i in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * i / updates))
        x_0, condition = source(batch_size, generator)
        t = torch.rand(len(x_0), generator=generator, dtype=torch.float64).clamp(1e-6, 1)
        t = shift_times(t, shift)
        epsilon = randn_like(x_0, generator)
        x_t = diffuse(x_0, epsilon, 0.0, t, denoiser.schedule)
        target = subinterval_target(x_0, epsilon, 0.0, t, denoiser.schedule, denoiser.kind)
        loss = (denoiser(x_t, t, condition).value - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update(denoiser, i)
        if i % 50 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    return average.network


def minimise(
    loss: Callable[[], Tensor],
    network: nn.Module,
    *,
    updates: int,
    lr: float,
    name: str,
    progress: bool = True,
) -> None:
    """Minimises a loss by Adam, with linear warmup over 2 % of the updates and cosine decay to 0.

    Args:
        loss: Samples a batch and returns its loss, a scalar.
        network: The network, trained in place; gradients are clipped to a norm of 1.
        updates: Number of optimizer updates.
        lr: Peak learning rate.
        name: Label of the progress bar.
        progress: Whether to show a progress bar.
    """
    from tqdm import tqdm

    optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99))
    for i in (bar := tqdm(range(updates), name, disable=not progress, dynamic_ncols=True)):
        warm = min(1.0, (i + 1) / (0.02 * updates))
        optimizer.param_groups[0]["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * i / updates))
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if i % 50 == 0:
            bar.set_postfix(loss=f"{float(value.detach()):.4f}", refresh=False)


def network_arguments(
    teacher: Teacher,
    condition: Condition,
    *,
    teacher_name: str,
    name: str,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the arguments of the student network for a teacher without weights.

    Args:
        teacher: The teacher, guided or not.
        condition: A condition of the teacher.
        teacher_name: Registered name of the teacher, for error messages.
        name: Registered name of the network, for error messages.
        arguments: Arguments that do not follow from the teacher.

    Raises:
        ValueError: If the network does not support the teacher's latents or conditions.
    """
    remedy = "give the teacher parameters, or distill it in Python with init=FromDenoiser(network)"
    if len(teacher.latent_shape) != 1:
        raise ValueError(
            f"{teacher_name} has no weights to copy, and the network {name!r} takes vectors, not "
            f"latents of shape {teacher.latent_shape}; {remedy}"
        )
    labelled = condition is not None and "label" in condition
    if condition is not None and not (labelled and hasattr(unguided(teacher), "classes")):
        raise ValueError(
            f"{teacher_name} has no weights to copy, and the network {name!r} requires a "
            f"condition 'label' and a teacher with a number of 'classes'; {remedy}"
        )
    return {
        "kind": "x0" if teacher.kind == "score" else teacher.kind,  # scores diverge at t = 0
        "dim": teacher.latent_shape[0],
        "classes": getattr(unguided(teacher), "classes", 0),
        **arguments,
    }


def pretrained_network(
    teacher: Teacher,
    name: str,
    arguments: dict[str, Any],
    *,
    updates: int,
    seed: int,
    progress: bool,
) -> Any:
    """Pretrains a registered network on exact samples of a teacher.

    Args:
        teacher: A teacher with a ``sample`` method, guided or not.
        name: Registered name of the network.
        arguments: Arguments of the network, without the schedule, which is the teacher's.
        updates: Number of optimizer updates.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        The network, frozen.
    """
    base: Any = unguided(teacher)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks[name](**arguments, schedule=teacher.schedule)
    prompts = base.encode(base.prompts)

    def source(n: int, generator: torch.Generator) -> tuple[Any, Any]:
        condition = None
        if prompts is not None:
            condition = prompts[torch.randint(len(base.prompts), (n,), generator=generator)]
        return base.sample(n, condition, generator=generator), condition

    return pretrain(network, source, updates=updates, seed=seed, progress=progress)


def digit_source(dropout: float = 0.1) -> tuple[Source, float]:
    """Returns a source of scikit-learn's digits with labels, and their standard deviation.

    Args:
        dropout: Probability of replacing a label by the null class, for guidance.
    """
    from pdmd.teachers.packaged.digits import load_digit_images

    images, labels, std = load_digit_images()

    def source(n: int, generator: torch.Generator) -> tuple[Latents, Condition]:
        from tensordict import TensorDict

        rows = torch.randint(len(images), (n,), generator=generator)
        dropped = torch.rand(n, generator=generator) < dropout
        label = labels[rows].masked_fill(dropped, 10)
        return images[rows], TensorDict({"label": label}, batch_size=[n])

    return source, std


def pretrain_digits(
    *,
    updates: int = 4000,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> DigitsTeacher:
    """Pretrains the digits teacher on scikit-learn's images.

    With default arguments, the network, the label dropout of 0.1 and the training are those of
    the packaged weights.

    Args:
        updates: Number of optimizer updates.
        batch_size: Number of images per update.
        lr: Peak learning rate of Adam.
        seed: Seed of the weights and of the samples.
        progress: Whether to show a progress bar.

    Returns:
        The teacher, frozen.
    """
    from pdmd.teachers.packaged.digits import DigitsTeacher
    from pdmd.teachers.packaged.transformer import ImageTransformer

    source, std = digit_source()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = DigitsTeacher(ImageTransformer(), std)
    return pretrain(
        teacher,
        source,
        updates=updates,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        progress=progress,
    )
