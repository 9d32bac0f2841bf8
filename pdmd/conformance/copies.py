"""Checks of copies: where they start, what trains, what is saved."""

from __future__ import annotations

import copy

import torch

from pdmd.conformance.harness import Failed, Harness, NotApplicable
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.schedules import same_process
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.teachers.with_schedule import WithSchedule

__all__ = ["check_copy", "check_parameters", "check_state", "without_guidance"]


def _trainable(harness: Harness) -> Denoiser:
    if not any(True for _ in harness.teacher.parameters()):
        raise NotApplicable("no weights; students take a network of their own")
    return harness.teacher.trainable_copy()


def check_copy(harness: Harness) -> str:
    """A trainable copy starts as the teacher without guidance, on its schedule."""
    copied, twin = _trainable(harness), without_guidance(harness.teacher)
    if not same_process(copied.schedule, twin.schedule) or copied.kind != twin.kind:
        raise Failed(
            f"the copy predicts {copied.kind} on {copied.schedule!r}, the teacher {twin.kind} on "
            f"{twin.schedule!r}"
        )
    if copied.latent_shape != twin.latent_shape:
        raise Failed(f"the copy's latents are {copied.latent_shape}, not {twin.latent_shape}")
    x, condition = harness.latents(harness.t), harness.condition()
    with torch.no_grad():
        expected = twin(x, harness.t, condition).value
        found = copied(x, harness.t, condition).value
    apart = harness.same(found, expected, "the copy, as it trains (dropout?)")
    return f"starts {apart:.1g} from the teacher"


def check_parameters(harness: Harness) -> str:
    """Gradients reach the copy's parameters, which are its own, and leave the teacher alone."""
    copied = _trainable(harness)
    own = [p for p in copied.parameters() if p.requires_grad]
    if not own:
        raise Failed("no parameter of trainable_copy() trains")
    theirs = {p.data_ptr() for p in harness.teacher.parameters() if p.numel()}
    if any(p.data_ptr() in theirs for p in own if p.numel()):
        raise Failed("trainable_copy() shares weights with the teacher, which would train too")
    x, condition = harness.latents(harness.t), harness.condition()
    copied(x, harness.t, condition).value.float().square().mean().backward()
    reached = [p for p in own if p.grad is not None and bool((p.grad != 0).any())]
    if not all(bool(p.grad.isfinite().all()) for p in own if p.grad is not None):
        raise Failed("a gradient is not finite")
    if 2 * len(reached) < len(own):
        raise Failed(f"the gradient reaches {len(reached)} of {len(own)} parameters")
    return f"the gradient reaches {len(reached)} of {len(own)} parameters"


@torch.no_grad()
def check_state(harness: Harness) -> str:
    """Copies hold their own weights, and all of them are in the state that students save."""
    from safetensors.torch import load, save

    teacher, t, condition = harness.teacher, harness.t, harness.condition()
    x = harness.latents(t)
    expected = teacher(x, t, condition).value
    copied = copy.deepcopy(teacher)
    apart = harness.same(copied(x, t, condition).value, expected, "a deep copy")
    state = {k: v.detach().cpu().contiguous() for k, v in copied.state_dict().items()}
    try:
        written = save(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:120]
        raise Failed(f"the state cannot be saved ({first}); clone shared tensors") from error
    weights = list(copied.parameters())
    for parameter in weights:
        parameter.mul_(0.5).add_(0.1)
    if weights:
        if not torch.equal(teacher(x, t, condition).value, expected):
            raise Failed("a deep copy shares weights with the teacher")
        moved = copied(x, t, condition).value
        if torch.equal(moved, expected):
            raise Failed("the value does not depend on the registered parameters")
    copied.load_state_dict(load(written))
    read = copied(x, t, condition).value
    apart = max(apart, harness.same(read, expected, "the state read back"))
    return f"{len(state)} tensors; copied and read back {apart:.1g} apart"


def without_guidance(teacher: Teacher) -> Teacher:
    """Returns a teacher without guidance, on the schedule that it is on."""
    if isinstance(teacher, Guided):
        return without_guidance(teacher.teacher)
    if isinstance(teacher, WithSchedule):
        inner = without_guidance(teacher.teacher)
        return teacher if inner is teacher.teacher else teacher.around(inner)
    return teacher
