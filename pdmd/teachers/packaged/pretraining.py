r"""Teaching: flow matching of a denoiser, on images or on another denoiser.

The loss is :math:`\| f_\theta(x_t, t, c) - y^* \|^2` with :math:`y^*` the target of the network's
kind, given :math:`x_0` and :math:`\varepsilon`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
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
    "pretrained_network",
    "pretrain",
    "pretrain_digits",
]

D = TypeVar("D", bound=Denoiser)

Source = Callable[[int, torch.Generator], tuple[Latents, Condition]]


def pretrain(
    denoiser: D,
    source: Source,
    *,
    updates: int,
    batch_size: int = 256,
    lr: float = 2e-3,
    ema: float = 0.995,
    seed: int = 0,
    progress: bool = True,
) -> D:
    """Trains a denoiser by denoising score matching.

    Args:
        denoiser: The network to train, in place.
        source: Draws clean samples and their conditions, given their number and a generator.
        updates: Optimizer updates; the rate falls as a cosine.
        batch_size: Samples in each.
        lr: Highest learning rate of Adam.
        ema: Decay of the average that is returned.
        seed: Seed of every draw.
        progress: Whether to show a progress bar.

    Returns:
        The average of the network's weights, frozen.
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
    """Minimises a loss by Adam at a rate that rises over 2 % of the updates and falls to 0.

    Args:
        loss: Draws a batch and returns its loss, a scalar.
        network: The network to train, in place; its gradient is held to a norm of 1.
        updates: Optimizer updates.
        lr: Highest learning rate.
        name: What the progress bar says.
        progress: Whether to show one.
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
    """Returns what a registered network is made with, in the place of a teacher without weights.

    Args:
        teacher: The teacher, guided or not.
        condition: A condition of its.
        teacher_name: The teacher's registered name, for errors.
        name: The network's.
        arguments: Arguments that do not follow from the teacher.

    Raises:
        ValueError: If the network cannot take the teacher's latents or conditions.
    """
    remedy = "give the teacher parameters, or distill it in Python with init=FromDenoiser(network)"
    if len(teacher.latent_shape) != 1:
        raise ValueError(
            f"{teacher_name} has no weights, and the network {name!r} in their place takes "
            f"vectors, not latents of shape {teacher.latent_shape}; {remedy}"
        )
    labelled = condition is not None and "label" in condition
    if condition is not None and not (labelled and hasattr(unguided(teacher), "classes")):
        raise ValueError(
            f"{teacher_name} has no weights, and the network {name!r} in their place knows "
            "prompts by a condition 'label' and the teacher's number of 'classes' alone; "
            f"{remedy}"
        )
    return {
        "kind": "x0" if teacher.kind == "score" else teacher.kind,  # it diverges at clean data
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
    """Teaches a registered network on a teacher's exact samples.

    Args:
        teacher: A teacher with a ``sample`` method, guided or not.
        name: The network's registered name.
        arguments: Its arguments; the teacher's schedule is added.
        updates: Flow-matching updates.
        seed: Seed of the weights and of every draw.
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
    """Returns what draws scikit-learn's digits with their labels, and their standard deviation.

    Args:
        dropout: The share of labels that are left out, for guidance.
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
    """Trains the digits teacher from scikit-learn's images.

    Arguments are those of :func:`teach`; the network and the label dropout of 0.1 are those of the
    weights that ship.

    Returns:
        A :class:`~pdmd.teachers.packaged.digits.DigitsTeacher`.
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
