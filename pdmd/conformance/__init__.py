r"""Conformance: checks that a teacher satisfies the assumptions of distillation.

Every check evaluates the teacher on random latents, scaled by its schedule, and its own prompts.
The checks do not measure the quality of the weights. A wrong sign, time, kind or schedule of a
trained network is found on the teacher's own samples (:mod:`pdmd.conformance.scores`), and for a
teacher with exact samples (a method ``sample``) also by :math:`\mathbb E[x_0 \cdot \hat x_0] =
\mathbb E[\hat x_0 \cdot \hat x_0]` for :math:`\hat x_0 = \mathbb E[x_0 | x_t]`.

Networks are evaluated on batches of three and copied twice, so the teacher's device needs memory
for three copies of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from pdmd.arguments import checked
from pdmd.conformance.conditions import check_conditions, check_decode, check_guidance
from pdmd.conformance.copies import check_copy, check_parameters, check_state
from pdmd.conformance.evaluations import (
    check_deterministic,
    check_input_gradient,
    check_precision,
    check_range,
    check_rows,
)
from pdmd.conformance.harness import (
    BATCH,
    CheckFailed,
    NotApplicable,
    Outcome,
    Report,
    TeacherHarness,
)
from pdmd.conformance.processes import check_oracle, check_plans, check_samples, check_schedule
from pdmd.conformance.scores import check_score
from pdmd.diffusion.modes import check_gradients_on
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.prompts import check_prompts

__all__ = ["CHECKS", "Outcome", "Report", "check"]


@checked
def check(
    teacher: Teacher,
    prompts: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    skip: Collection[str] = (),
) -> Report:
    """Runs :data:`CHECKS` on a teacher, which is not modified.

    Args:
        teacher: The teacher, guided or not, on any device.
        prompts: Prompts to evaluate it on; its own by default. A few suffice, of different lengths
            if they are texts.
        seed: The seed of all random numbers.
        skip: Names of checks to leave out. ``score`` is the one that samples: it evaluates the
            network some 30 times on 12 to 63 rows, and some 500 times where the first finds fault.

    Returns:
        The report.

    Raises:
        ValueError: If gradients are off, there are no prompts, the teacher cannot encode one, or
            there is no check of a name.
    """
    check_gradients_on("check")
    for name in skip:
        if name not in CHECKS:
            raise ValueError(f"unknown check {name!r} to skip; known are {', '.join(CHECKS)}")
    check_prompts(prompts)
    known = list(teacher.prompts[:BATCH] if prompts is None else prompts)
    if not known:
        raise ValueError("the teacher has no prompts; pass prompts=[...]")
    if prompts is not None:
        teacher.encode(known)  # raises for unknown prompts
    flags = [(p, p.requires_grad) for p in teacher.parameters()]
    modes = [(module, module.training) for module in teacher.modules()]
    teacher.requires_grad_(False).eval()
    outcomes = []
    try:
        for name, run in CHECKS.items():
            if name in skip:
                continue
            harness = TeacherHarness(teacher, [known[i % len(known)] for i in range(BATCH)], seed)
            try:
                passed, detail = True, run(harness)
            except NotApplicable as reason:
                passed, detail = None, str(reason)
            except CheckFailed as finding:
                passed, detail = False, str(finding)
            except Exception as error:  # the teacher's code may raise any class
                first = (str(error).strip().splitlines() or [""])[0][:200]
                passed, detail = False, f"raised {type(error).__name__}: {first}"
            outcomes.append(Outcome(name=name, passed=passed, detail=detail))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
    return Report(tuple(outcomes))


CHECKS: dict[str, Callable[[TeacherHarness], str]] = {
    "range": check_range,
    "deterministic": check_deterministic,
    "rows": check_rows,
    "input gradient": check_input_gradient,
    "precision": check_precision,
    "copy": check_copy,
    "parameters": check_parameters,
    "state": check_state,
    "conditions": check_conditions,
    "guidance": check_guidance,
    "schedule": check_schedule,
    "oracle": check_oracle,
    "score": check_score,
    "plans": check_plans,
    "samples": check_samples,
    "decode": check_decode,
}
"""The checks by name, in order."""
