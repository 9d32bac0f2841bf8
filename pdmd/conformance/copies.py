"""Checks of trainable copies: initial values, gradients, state."""

from __future__ import annotations

import copy

import torch

from pdmd.conformance.harness import CheckFailed, NotApplicable, TeacherHarness
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.with_schedule import WithSchedule

__all__ = ["check_copy", "check_parameters", "check_state", "without_guidance"]


def _trainable(harness: TeacherHarness) -> Denoiser:
    if not any(True for _ in harness.teacher.parameters()):
        raise NotApplicable("the teacher has no weights; students need a network")
    return harness.teacher.trainable_copy()


def check_copy(harness: TeacherHarness) -> str:
    """A trainable copy equals the teacher without guidance, on its schedule."""
    copied, unguided = _trainable(harness), without_guidance(harness.teacher)
    if not same_process(copied.schedule, unguided.schedule) or copied.kind != unguided.kind:
        raise CheckFailed(
            f"the copy predicts {copied.kind} on {copied.schedule!r}, the teacher "
            f"{unguided.kind} on "
            f"{unguided.schedule!r}"
        )
    if copied.latent_shape != unguided.latent_shape:
        raise CheckFailed(
            f"the copy's latents are {copied.latent_shape}, not {unguided.latent_shape}"
        )
    x, condition = harness.latents(harness.t), harness.condition()
    with torch.no_grad():
        expected = unguided(x, harness.t, condition).value
        found = copied(x, harness.t, condition).value
    error = harness.assert_close(found, expected, "the copy in training mode (dropout?)")
    return f"relative error to the teacher {error:.1g}"


def check_parameters(harness: TeacherHarness) -> str:
    """Gradients reach the copy's parameters, which it does not share with the teacher."""
    copied = _trainable(harness)
    own = [p for p in copied.parameters() if p.requires_grad]
    if not own:
        raise CheckFailed("no parameter of trainable_copy() requires a gradient")
    theirs = {p.data_ptr() for p in harness.teacher.parameters() if p.numel()}
    if any(p.data_ptr() in theirs for p in own if p.numel()):
        raise CheckFailed(
            "trainable_copy() shares weights with the teacher, which would train too"
        )
    x, condition = harness.latents(harness.t), harness.condition()
    copied(x, harness.t, condition).value.float().square().mean().backward()
    reached = [p for p in own if p.grad is not None and bool((p.grad != 0).any())]
    if not all(bool(p.grad.isfinite().all()) for p in own if p.grad is not None):
        raise CheckFailed("a gradient is not finite")
    if 2 * len(reached) < len(own):
        raise CheckFailed(f"the gradient reaches {len(reached)} of {len(own)} parameters")
    return f"the gradient reaches {len(reached)} of {len(own)} parameters"


@torch.no_grad()
def check_state(harness: TeacherHarness) -> str:
    """Deep copies share no weights, and the state dict contains all of them."""
    from safetensors.torch import load, save

    teacher, t, condition = harness.teacher, harness.t, harness.condition()
    x = harness.latents(t)
    expected = teacher(x, t, condition).value
    copied = copy.deepcopy(teacher)
    error = harness.assert_close(copied(x, t, condition).value, expected, "a deep copy")
    state = {k: v.detach().cpu().contiguous() for k, v in copied.state_dict().items()}
    try:
        written = save(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:120]
        raise CheckFailed(
            f"the state dict cannot be saved ({first}); clone shared tensors"
        ) from error
    weights = list(copied.parameters())
    for parameter in weights:
        parameter.mul_(0.5).add_(0.1)
    if weights:
        if not torch.equal(teacher(x, t, condition).value, expected):
            raise CheckFailed("a deep copy shares weights with the teacher")
        moved = copied(x, t, condition).value
        if torch.equal(moved, expected):
            raise CheckFailed("the value does not depend on the registered parameters")
    copied.load_state_dict(load(written))
    read = copied(x, t, condition).value
    error = max(error, harness.assert_close(read, expected, "the reloaded state dict"))
    return f"{len(state)} tensors; copied and reloaded: relative error {error:.1g}"


def without_guidance(teacher: Teacher) -> Teacher:
    """Returns a teacher without guidance, on its own schedule."""
    if isinstance(teacher, Guided):
        return without_guidance(teacher.teacher)
    if isinstance(teacher, WithSchedule):
        inner = without_guidance(teacher.teacher)
        return teacher if inner is teacher.teacher else teacher.around(inner)
    return teacher
