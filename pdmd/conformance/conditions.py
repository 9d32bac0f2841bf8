"""Checks of what goes around the network: prompts, guidance, decoding."""

from __future__ import annotations

import torch

from pdmd.conformance.harness import ROWS, Failed, Harness, NotApplicable
from pdmd.teachers.guided import Guided, unguided
from pdmd.teachers.with_schedule import WithSchedule

__all__ = ["check_conditions", "check_decode", "check_guidance"]


@torch.no_grad()
def check_conditions(harness: Harness) -> str:
    """Prompts encode one at a time as together, and no prompt is what no condition is."""
    teacher, t = harness.teacher, harness.t
    prompts = [*harness.prompts[: ROWS - 1], None]
    condition = harness.placed(teacher.encode(prompts))
    alone = [harness.placed(teacher.encode([prompt])) for prompt in prompts]
    if condition is None:
        if any(row is not None for row in alone):
            raise Failed("encode() returns a condition for one prompt and none for several")
        raise NotApplicable("takes no conditions")
    for rows, found in ((ROWS, condition), *((1, row) for row in alone)):
        size = tuple(getattr(found, "batch_size", ()))
        if size != (rows,):
            raise Failed(f"encode() of {rows} prompts has batch size {size}")
    x = harness.latents(t)
    together = teacher(x, t, condition).value
    worst = 0.0
    for i, row in enumerate(alone):
        value = teacher(x[i : i + 1], t[i : i + 1], row).value
        what = f"prompt {prompts[i]!r} encoded alone"
        worst = max(worst, harness.same(value, together[i : i + 1], what))
    last = slice(ROWS - 1, ROWS)
    value = teacher(x[last], t[last], None).value
    worst = max(worst, harness.same(value, together[last], "no condition against encode([None])"))
    return f"alone, together and without {worst:.1g} apart"


@torch.no_grad()
def check_guidance(harness: Harness) -> str:
    """A scale of 1 is no guidance, and one batch of two evaluations is the two apart."""
    teacher = harness.teacher
    if isinstance(teacher, Guided):
        teacher = teacher.teacher
    if isinstance(teacher, WithSchedule) and not teacher.uses_standard_guidance:
        raise NotApplicable("guided within the change of schedule")
    t, condition = harness.t, harness.condition()
    no_prompt = harness.placed(teacher.encode([None]))
    if no_prompt is None or condition is None:
        raise NotApplicable("takes no conditions")
    null = teacher.unconditional(condition, no_prompt)
    x = harness.latents(t)
    with_prompt = teacher(x, t, condition).value
    without = teacher(x, t, null).value
    one = harness.same(teacher.guide(with_prompt, without, 1.0), with_prompt, "guide() at 1")
    expected = teacher.guide(with_prompt, without, 3.0)
    found = Guided(teacher, 3.0)(x, t, condition).value
    two = harness.same(found, expected, "Guided(teacher, 3) and two evaluations")
    return f"at 1 {one:.1g} off; one batch and two evaluations {two:.1g} apart"


@torch.no_grad()
def check_decode(harness: Harness) -> str:
    """Decoded latents are images or videos in [0, 1], one for each."""
    decode = getattr(unguided(harness.teacher), "decode", None)
    if decode is None:
        raise NotApplicable("has no decode()")
    pictures = decode(harness.noise())
    if len(pictures) != ROWS or pictures.ndim < 4:
        raise Failed(f"{ROWS} latents decode to shape {tuple(pictures.shape)}")
    low, high = (float(v) for v in torch.aminmax(pictures.float()))
    if not (low >= 0 and high <= 1):
        raise Failed(f"decoded values are in [{low:.3g}, {high:.3g}], not in [0, 1]")
    return f"latents of {tuple(harness.teacher.latent_shape)} to {tuple(pictures.shape[1:])}"
