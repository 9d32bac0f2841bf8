"""Checks of single evaluations: values, batching, input gradient, precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdmd.conformance.harness import BATCH, CheckFailed, TeacherHarness
from pdmd.diffusion.checks import inputs_kept
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.validation import check_own_type
from pdmd.distributed.placement import set_precision

__all__ = [
    "check_deterministic",
    "check_input_gradient",
    "check_precision",
    "check_range",
    "check_rows",
]


@torch.no_grad()
def check_range(harness: TeacherHarness) -> str:
    """Predictions have the latents' shape and are finite over the whole time range."""
    teacher, condition, largest = harness.teacher, harness.condition(), 0.0
    for t in harness.times:
        x = harness.latents(t)
        value = teacher(x, t, condition).value
        if value.shape != x.shape:
            raise CheckFailed(f"at t = {t:.4g} shape {tuple(value.shape)} for {tuple(x.shape)}")
        if value.itemsize > x.itemsize:
            check_own_type(teacher, value, t, condition)
        if not bool(value.isfinite().all()):
            raise CheckFailed(
                f"at t = {t:.4g} the prediction is not finite; narrow the time_range"
            )
        largest = max(largest, float(value.abs().max()))
    low, high = teacher.time_range
    return f"{len(harness.times)} times in [{low:.4g}, {high:.4g}], largest value {largest:.3g}"


@torch.no_grad()
def check_deterministic(harness: TeacherHarness) -> str:
    """Two evaluations of one input are bit-identical, and leave it as it is."""
    x, t, condition = harness.latents(harness.t), harness.t.clone(), harness.condition()
    with inputs_kept(x, t, condition):
        first, second = (harness.teacher(x, t, condition).value for _ in range(2))
    if not torch.equal(first, second):
        error = float((first - second).abs().max())
        raise CheckFailed(f"two evaluations of one input differ by {error:.2g}")
    return "two evaluations are bit-identical"


@torch.no_grad()
def check_rows(harness: TeacherHarness) -> str:
    """A prediction does not depend on the other rows of the batch or on their order."""
    teacher, t, condition = harness.teacher, harness.t, harness.condition()
    x = harness.latents(t)
    whole = teacher(x, t, condition).value
    order = torch.tensor([2, 0, 1], device=x.device)
    turned = None if condition is None else condition[order]
    worst = harness.assert_close(
        teacher(x[order], t[order], turned).value, whole[order], "rows permuted"
    )
    for i in range(BATCH):
        row = None if condition is None else condition[i : i + 1]
        alone = teacher(x[i : i + 1], float(t[i]), row).value
        worst = max(worst, harness.assert_close(alone, whole[i : i + 1], f"row {i} alone"))
    return f"alone and permuted: relative error {worst:.1g}"


def check_input_gradient(harness: TeacherHarness) -> str:
    """The gradient in x_t agrees with finite differences along its direction."""
    teacher, t, condition = harness.teacher, float(harness.t[1]), harness.condition()
    x, weight = harness.latents(t), harness.noise()

    def loss(x: Tensor) -> Tensor:
        return (teacher(x, t, condition).value.double() * weight).sum()

    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    length = float(gradient.double().norm())
    if not (math.isfinite(length) and length > 0):
        raise CheckFailed(
            f"the gradient's norm is {length:.3g}; does the network detach its input?"
        )
    if harness.half_precision:
        return f"norm {length:.3g}; no finite differences in half precision"
    step = 0.03 * float(torch.hypot(*teacher.schedule(t)))
    direction = gradient / length
    with torch.no_grad():
        rise = float(loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    if not abs(rise / length - 1) < 0.1:
        raise CheckFailed(f"the gradient's norm is {length:.4g}, by finite differences {rise:.4g}")
    return f"norm {length:.4g}, by finite differences {rise:.4g}"


@torch.no_grad()
def check_precision(harness: TeacherHarness) -> str:
    """Under bfloat16 autocast, predictions are close to full precision."""
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
    error = float((half - full).norm() / full.norm().clamp(min=1e-30))
    if not error < 0.1:
        raise CheckFailed(
            f"bfloat16 autocast has relative error {error:.2g} in norm, tolerance 0.1"
        )
    return f"bfloat16 autocast: relative error {error:.1g} in norm"
