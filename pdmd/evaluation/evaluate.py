"""Evaluation of a student against its teacher."""

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

Sampler = Callable[[torch.Generator], Latents]


def evaluate(
    student: Student,
    teacher: Teacher,
    *,
    samples: int = 2000,
    seed: int = 1234,
    teacher_steps: int = 50,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a student against its teacher's many-step and few-step samples.

    Args:
        student: The student.
        teacher: Its teacher, guided or not, which selects the evaluator
            (:mod:`pdmd.evaluation.evaluators`).
        samples: Samples of each method, distributed evenly over the prompts.
        seed: The seed of all random numbers.
        teacher_steps: Steps of the teacher's samples.
        progress: Whether to show a progress bar.

    Returns:
        ``{"rows": [{"method": ..., "nfe": ..., metrics}, ...]}`` with the methods ``real`` (if
        there are real data), ``teacher``, ``teacher_euler_N`` at the student's N steps, and
        ``student``, and ``quality`` and ``diversity``, the names of the metrics that a report
        plots. Distances are to reference samples of the teacher; on digits, coverage and
        precision of ``real`` compare one half of the images with the other.

    Raises:
        ValueError: If the steps leave the teacher's time range.
    """
    from tqdm import tqdm

    few = student.plan.nfe
    for steps in (teacher_steps, few):
        ode_times(teacher, steps)  # raises before any work
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(samples)]
    condition = teacher.encode(prompts)

    def ode(steps: int) -> Sampler:
        return lambda g: sample_ode(teacher, condition, steps=steps, batch=samples, generator=g)

    samplers: dict[str, tuple[int, Sampler]] = {
        "reference": (teacher_steps * teacher.evaluations, ode(teacher_steps)),
        "teacher": (teacher_steps * teacher.evaluations, ode(teacher_steps)),
        f"teacher_euler_{few}": (few * teacher.evaluations, ode(few)),
        "student": (few, lambda g: sample(student, condition, batch=samples, generator=g)),
    }
    sampled = {}
    for i, (name, (_, draw)) in enumerate(
        tqdm(samplers.items(), "evaluate", disable=not progress)
    ):
        sampled[name] = draw(torch.Generator().manual_seed(seed + i))
    evaluator = evaluator_for(teacher, condition, sampled.pop("reference"), seed, prompts=prompts)
    real = evaluator.real()
    rows = [] if real is None else [{"method": "real", "nfe": 0, **real}]
    rows += [
        {"method": name, "nfe": samplers[name][0], **evaluator(x)} for name, x in sampled.items()
    ]
    return {"rows": rows, "quality": evaluator.quality, "diversity": evaluator.diversity}


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
