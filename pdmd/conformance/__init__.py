r"""Conformance: whether a teacher keeps what distillation takes for granted.

Every check asks the teacher itself, with random latents of the scale that its schedule gives them
and prompts of its own. What a check cannot see is whether the weights are good, or a time or a
sign is off inside a network that was never trained; for a teacher with exact samples (a method
``sample``) that is seen too, since :math:`\mathbb E[x_0 \cdot \hat x_0] = \mathbb E[\hat x_0 \cdot
\hat x_0]` for :math:`\hat x_0 = \mathbb E[x_0 | x_t]`.

Networks are evaluated in rows of three and copied twice, so a teacher's weights must fit three
times where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pdmd.conformance.conditions import check_conditions, check_decode, check_guidance
from pdmd.conformance.copies import check_copy, check_parameters, check_state
from pdmd.conformance.evaluations import (
    check_deterministic,
    check_input_gradient,
    check_precision,
    check_range,
    check_rows,
)
from pdmd.conformance.harness import ROWS, Failed, Harness, NotApplicable, Outcome, Report
from pdmd.conformance.processes import check_oracle, check_plans, check_samples, check_schedule
from pdmd.teachers.base import Teacher

__all__ = ["CHECKS", "Outcome", "Report", "check"]


def check(teacher: Teacher, prompts: Sequence[Any] | None = None, *, seed: int = 0) -> Report:
    """Checks a teacher against all of :data:`CHECKS`.

    It is left as it was.

    Args:
        teacher: The teacher, guided or not, on any device.
        prompts: Prompts to ask it with; its own by default. A few are enough, of different
            lengths if they are texts.
        seed: Seed of every draw.

    Returns:
        The report.

    Raises:
        ValueError: If there are no prompts, or one that was given is none of the teacher's.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts are a sequence of prompts, got the text {prompts!r}")
    known = list(teacher.prompts[:ROWS] if prompts is None else prompts)
    if not known:
        raise ValueError("there are no prompts to ask the teacher with; give prompts=[...]")
    if prompts is not None:
        teacher.encode(known)  # for its errors
    flags = [(p, p.requires_grad) for p in teacher.parameters()]
    modes = [(module, module.training) for module in teacher.modules()]
    teacher.requires_grad_(False).eval()
    outcomes = []
    try:
        for name, run in CHECKS.items():
            harness = Harness(teacher, [known[i % len(known)] for i in range(ROWS)], seed)
            try:
                passed, figures = True, run(harness)
            except NotApplicable as reason:
                passed, figures = None, str(reason)
            except Failed as finding:
                passed, figures = False, str(finding)
            except Exception as error:  # whatever the teacher's own code raises
                first = (str(error).strip().splitlines() or [""])[0][:200]
                passed, figures = False, f"raised {type(error).__name__}: {first}"
            outcomes.append(Outcome(name=name, passed=passed, figures=figures))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
    return Report(tuple(outcomes))


CHECKS: dict[str, Callable[[Harness], str]] = {
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
    "plans": check_plans,
    "samples": check_samples,
    "decode": check_decode,
}
"""The checks by name, in order."""
