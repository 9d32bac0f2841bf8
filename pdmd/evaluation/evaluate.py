"""Comparison of a student with its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pdmd.diffusion.sampling import ode_times, sample_ode
from pdmd.distillation.sampling import sample
from pdmd.distillation.students import Student
from pdmd.evaluation.evaluators import evaluator_for
from pdmd.teachers.base import Teacher
from pdmd.typing import Latents

__all__ = ["evaluate", "format_table"]

Draw = Callable[[torch.Generator], Latents]


def evaluate(
    student: Student,
    teacher: Teacher,
    *,
    samples: int = 2000,
    seed: int = 1234,
    teacher_steps: int = 50,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the student against the teacher's many-step and few-step samples.

    Args:
        student: The student.
        teacher: Its teacher, guided or not. Digits, glyphs and mixtures are measured by what is
            known of them, any other teacher in latents (:mod:`pdmd.evaluation.evaluators`).
        samples: Samples of each method, spread evenly over the prompts.
        seed: Seed of every draw.
        teacher_steps: Steps of the teacher's own sampling.
        progress: Whether to show a progress bar.

    Returns:
        ``{"rows": [{"method": ..., "nfe": ..., metrics}, ...]}`` with the methods ``real`` (where
        there are real data), ``teacher``, ``teacher_euler_N`` at the student's N steps, and
        ``student``; beside it ``quality`` and ``diversity``, the names of the metrics that a
        report plots. Distances are to a reference draw of the teacher; on digits, coverage and
        precision of ``real`` are one half of the images against the other.

    Raises:
        ValueError: If the teacher would be asked outside its time range.
    """
    from tqdm import tqdm

    few = student.plan.nfe
    for steps in (teacher_steps, few):
        ode_times(teacher, steps)  # for its errors, before any work
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(samples)]
    condition = teacher.encode(prompts)

    def ode(steps: int) -> Draw:
        return lambda g: sample_ode(teacher, condition, steps=steps, batch=samples, generator=g)

    draws: dict[str, tuple[int, Draw]] = {
        "reference": (teacher_steps * teacher.evaluations, ode(teacher_steps)),
        "teacher": (teacher_steps * teacher.evaluations, ode(teacher_steps)),
        f"teacher_euler_{few}": (few * teacher.evaluations, ode(few)),
        "student": (few, lambda g: sample(student, condition, batch=samples, generator=g)),
    }
    drawn = {}
    for i, (name, (_, draw)) in enumerate(tqdm(draws.items(), "evaluate", disable=not progress)):
        drawn[name] = draw(torch.Generator().manual_seed(seed + i))
    measure = evaluator_for(teacher, condition, drawn.pop("reference"), seed, prompts=prompts)
    real = measure.real()
    rows = [] if real is None else [{"method": "real", "nfe": 0, **real}]
    rows += [{"method": name, "nfe": draws[name][0], **measure(x)} for name, x in drawn.items()]
    return {"rows": rows, "quality": measure.quality, "diversity": measure.diversity}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows of one benchmark as an aligned table."""
    names = list(rows[0])
    cells = [names]
    for row in rows:
        values = [row[name] for name in names]
        cells.append([f"{v:.3f}" if isinstance(v, float) else str(v) for v in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = []
    for line in cells:
        aligned = [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
