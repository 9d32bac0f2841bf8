"""Checks of prompts, guidance and decoding."""

from __future__ import annotations

import torch

from pdmd.conformance.harness import BATCH, CheckFailed, NotApplicable, TeacherHarness
from pdmd.teachers.guided import Guided, unguided
from pdmd.teachers.with_schedule import WithSchedule

__all__ = ["check_conditions", "check_decode", "check_guidance"]


@torch.no_grad()
def check_conditions(harness: TeacherHarness) -> str:
    """Encoding is independent of the batch, ``None`` equals no condition, and prompts matter."""
    teacher, t = harness.teacher, harness.t
    prompts = [*harness.prompts[: BATCH - 1], None]
    condition = harness.to_device(teacher.encode(prompts))
    alone = [harness.to_device(teacher.encode([prompt])) for prompt in prompts]
    if condition is None:
        if any(row is not None for row in alone):
            raise CheckFailed("encode() returns a condition for one prompt and none for several")
        raise NotApplicable("takes no conditions")
    for rows, found in ((BATCH, condition), *((1, row) for row in alone)):
        size = tuple(getattr(found, "batch_size", ()))
        if size != (rows,):
            raise CheckFailed(f"encode() of {rows} prompts has batch size {size}")
    x = harness.latents(t)
    together = teacher(x, t, condition).value
    worst = 0.0
    for i, row in enumerate(alone):
        value = teacher(x[i : i + 1], t[i : i + 1], row).value
        what = f"prompt {prompts[i]!r} encoded alone"
        worst = max(worst, harness.assert_close(value, together[i : i + 1], what))
    last = slice(BATCH - 1, BATCH)
    value = teacher(x[last], t[last], None).value
    worst = max(
        worst, harness.assert_close(value, together[last], "no condition against encode([None])")
    )
    others = condition[torch.tensor([*range(1, BATCH), 0], device=x.device)]
    changed = any(not torch.equal(others[key], condition[key]) for key in condition.keys())
    if changed and torch.equal(teacher(x, t, others).value, together):
        raise CheckFailed(
            f"the predictions of {prompts!r:.200} are the same with each other's conditions; does "
            "the network use its condition?"
        )
    return f"alone, batched and unconditional: relative error {worst:.1g}"


@torch.no_grad()
def check_guidance(harness: TeacherHarness) -> str:
    """A scale of 1 is no guidance, and one batched evaluation equals two separate ones."""
    teacher = harness.teacher
    if isinstance(teacher, Guided):
        teacher = teacher.teacher
    if isinstance(teacher, WithSchedule) and not teacher.uses_standard_guidance:
        raise NotApplicable("guided within the change of schedule")
    t, condition = harness.t, harness.condition()
    no_prompt = harness.to_device(teacher.encode([None]))
    if no_prompt is None or condition is None:
        raise NotApplicable("takes no conditions")
    null = teacher.unconditional(condition, no_prompt)
    x = harness.latents(t)
    with_prompt = teacher(x, t, condition).value
    without = teacher(x, t, null).value
    one = harness.assert_close(
        teacher.guide(with_prompt, without, 1.0), with_prompt, "guide() at 1"
    )
    expected = teacher.guide(with_prompt, without, 3.0)
    found = Guided(teacher, 3.0)(x, t, condition).value
    two = harness.assert_close(found, expected, "Guided(teacher, 3) and two evaluations")
    return f"at scale 1: relative error {one:.1g}; batched against separate: {two:.1g}"


@torch.no_grad()
def check_decode(harness: TeacherHarness) -> str:
    """Each latent decodes to an image or a video in [0, 1]."""
    decode = getattr(unguided(harness.teacher), "decode", None)
    if decode is None:
        raise NotApplicable("has no decode()")
    pictures = decode(harness.noise())
    if len(pictures) != BATCH or pictures.ndim < 4:
        raise CheckFailed(f"{BATCH} latents decode to shape {tuple(pictures.shape)}")
    low, high = (float(v) for v in torch.aminmax(pictures.float()))
    if not (low >= 0 and high <= 1):
        raise CheckFailed(f"decoded values are in [{low:.3g}, {high:.3g}], not in [0, 1]")
    return f"latents of {tuple(harness.teacher.latent_shape)} to {tuple(pictures.shape[1:])}"
