"""Checks of single evaluations: values, rows, the gradient in the input, precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdmd.conformance.harness import ROWS, Failed, Harness
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distributed.placement import set_precision

__all__ = [
    "check_deterministic",
    "check_input_gradient",
    "check_precision",
    "check_range",
    "check_rows",
]


@torch.no_grad()
def check_range(harness: Harness) -> str:
    """Values have the latents' shape and are finite all over the time range."""
    teacher, condition, largest = harness.teacher, harness.condition(), 0.0
    for t in harness.times:
        x = harness.latents(t)
        value = teacher(x, t, condition).value
        if value.shape != x.shape:
            raise Failed(f"at t = {t:.4g} shape {tuple(value.shape)} for {tuple(x.shape)}")
        if not bool(value.isfinite().all()):
            raise Failed(f"at t = {t:.4g} the value is not finite; state a narrower time_range")
        largest = max(largest, float(value.abs().max()))
    low, high = teacher.time_range
    return f"{len(harness.times)} times in [{low:.4g}, {high:.4g}], values up to {largest:.3g}"


@torch.no_grad()
def check_deterministic(harness: Harness) -> str:
    """The same input gives the same bits."""
    x, condition = harness.latents(harness.t), harness.condition()
    first, second = (harness.teacher(x, harness.t, condition).value for _ in range(2))
    if not torch.equal(first, second):
        apart = float((first - second).abs().max())
        raise Failed(f"two evaluations of one input are {apart:.2g} apart")
    return "two evaluations give the same bits"


@torch.no_grad()
def check_rows(harness: Harness) -> str:
    """A row of a batch is what it is alone, wherever it stands."""
    teacher, t, condition = harness.teacher, harness.t, harness.condition()
    x = harness.latents(t)
    whole = teacher(x, t, condition).value
    order = torch.tensor([2, 0, 1], device=x.device)
    turned = None if condition is None else condition[order]
    worst = harness.same(teacher(x[order], t[order], turned).value, whole[order], "rows permuted")
    for i in range(ROWS):
        row = None if condition is None else condition[i : i + 1]
        alone = teacher(x[i : i + 1], float(t[i]), row).value
        worst = max(worst, harness.same(alone, whole[i : i + 1], f"row {i} alone"))
    return f"alone and permuted {worst:.1g} apart"


def check_input_gradient(harness: Harness) -> str:
    r"""The gradient in x_t is the slope that differences show, along itself."""
    teacher, t, condition = harness.teacher, float(harness.t[1]), harness.condition()
    x, weight = harness.latents(t), harness.noise()

    def loss(x: Tensor) -> Tensor:
        return (teacher(x, t, condition).value.double() * weight).sum()

    asked = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(asked), asked)
    length = float(gradient.double().norm())
    if not (math.isfinite(length) and length > 0):
        raise Failed(f"the gradient's length is {length:.3g}; does the network detach its input?")
    if harness.narrow:
        return f"length {length:.3g}; weights are too narrow for differences"
    step = 0.03 * float(torch.hypot(*teacher.schedule(t)))
    direction = gradient / length
    with torch.no_grad():
        rise = float(loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    if not abs(rise / length - 1) < 0.1:
        raise Failed(f"the gradient says a slope of {length:.4g}, differences say {rise:.4g}")
    return f"a slope of {length:.4g}, by differences {rise:.4g}"


@torch.no_grad()
def check_precision(harness: Harness) -> str:
    """Under autocast to bfloat16, values stay near those of full precision."""
    teacher, condition = harness.teacher, harness.condition()
    denoisers = [module for module in teacher.modules() if isinstance(module, Denoiser)]
    before = [module.precision for module in denoisers]
    x = harness.latents(harness.t)
    try:
        set_precision(teacher, torch.float32)
        full = teacher(x, harness.t, condition).value.float()
        set_precision(teacher, torch.bfloat16)
        half = teacher(x, harness.t, condition).value.float()
    finally:
        for module, precision in zip(denoisers, before, strict=True):
            module.precision = precision
    apart = float((half - full).norm() / full.norm().clamp(min=1e-30))
    if not apart < 0.1:
        raise Failed(f"bfloat16 autocast is {apart:.2g} off, relative in the mean; allowed is 0.1")
    return f"bfloat16 autocast {apart:.1g} off, relative in the mean"
