"""Evaluation of a student against its teacher."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.modes import evaluation_mode
from pdmd.diffusion.sampling import ode_times, sample_ode
from pdmd.distillation.sampling import sample
from pdmd.distillation.students import Student
from pdmd.distributed.communicator import Communicator
from pdmd.evaluation.batches import batch_size_of, sampled_rows
from pdmd.evaluation.evaluators import evaluator_for, needs_condition, reduction_for
from pdmd.teachers.base import Teacher
from pdmd.training.monitoring.bars import progress_bar
from pdmd.typing import Condition, Latents

__all__ = ["draw_samples", "euler_notice", "evaluate", "format_table", "score"]

Sampler = Callable[[int, Condition, torch.Generator], Latents]


@checked
def evaluate(
    student: Student,
    teacher: Teacher,
    *,
    samples: int = 2000,
    seed: int = 1234,
    teacher_steps: int = 50,
    batch: int = 0,
    progress: bool = True,
    real: Denoiser | None = None,
    ranks: Communicator | None = None,
) -> dict[str, Any]:
    """Evaluates a student against its teacher's many-step and few-step samples.

    Args:
        student: The student.
        teacher: Its teacher, guided or not, which selects the evaluator
            (:mod:`pdmd.evaluation.evaluators`).
        samples: Samples of each method, distributed evenly over the prompts.
        seed: The seed of all random numbers.
        teacher_steps: Steps of the teacher's samples.
        batch: Samples that a rank draws together; by default as many as have about a million
            latent values.
        progress: Whether to show a progress bar.
        real: As for :func:`draw_samples`.
        ranks: As for :func:`draw_samples`.

    Returns:
        ``{"rows": [{"method": ..., "nfe": ..., metrics}, ...]}`` with the methods ``real`` (if
        there are real data), ``teacher``, ``teacher_euler_N`` at the student's N steps, and
        ``student``, and ``quality`` and ``diversity``, the names of the metrics that a report
        plots. Distances are to reference samples of the teacher; on digits, coverage and
        precision of ``real`` compare one half of the images with the other.

    Raises:
        ValueError: If the steps leave the teacher's time range.
    """
    drawn = draw_samples(
        student,
        teacher,
        samples=samples,
        seed=seed,
        teacher_steps=teacher_steps,
        batch=batch,
        progress=progress,
        real=real,
        ranks=ranks,
    )
    found = score(student, teacher, drawn, seed=seed, teacher_steps=teacher_steps)
    if notice := euler_notice(found["rows"], [found["quality"]]):
        warnings.warn(notice, stacklevel=3)  # above the check of arguments
    return found


@checked
def draw_samples(
    student: Student,
    teacher: Teacher,
    *,
    samples: int,
    seed: int,
    teacher_steps: int,
    batch: int = 0,
    progress: bool = True,
    real: Denoiser | None = None,
    ranks: Communicator | None = None,
) -> dict[str, Latents]:
    """Samples what :func:`evaluate` compares, without dropout.

    Args:
        student: The student, over sharded networks on several ranks, which sample together.
        teacher: Its teacher, which encodes the prompts.
        samples: As for :func:`evaluate`.
        seed: As for :func:`evaluate`.
        teacher_steps: As for :func:`evaluate`.
        batch: As for :func:`evaluate`.
        progress: As for :func:`evaluate`.
        real: The network from which the teacher is sampled, for example the sharded one; the
            teacher itself by default.
        ranks: The ranks, each of which samples its share; this process alone by default.

    Returns:
        The samples by method, ``reference`` among them, on the CPU; the same on every rank. Where
        they are compared in latents, large ones are projected
        (:class:`~pdmd.evaluation.evaluators.LatentProjection`).

    Raises:
        ValueError: If the steps leave the teacher's time range.
    """
    few = student.plan.nfe
    for steps in (teacher_steps, few):
        ode_times(teacher, steps)  # raises before any work
    denoiser = real or teacher
    reduce = reduction_for(teacher, seed)

    def ode(steps: int) -> Sampler:
        def draw(rows: int, condition: Condition, generator: torch.Generator) -> Latents:
            own = None if condition is None else condition.to(denoiser.device)
            return sample_ode(denoiser, own, steps=steps, batch=rows, generator=generator)

        return draw

    def few_step(rows: int, condition: Condition, generator: torch.Generator) -> Latents:
        own = None if condition is None else condition.to(student.device)
        return sample(student, own, batch=rows, generator=generator)

    samplers: dict[str, Sampler] = {
        "reference": ode(teacher_steps),
        "teacher": ode(teacher_steps),
        f"teacher_euler_{few}": ode(few),
        "student": few_step,
    }
    drawn = {}
    total = samples * len(samplers)
    shown = progress_bar("evaluate", total, unit="sample", shown=progress)
    with evaluation_mode(teacher), evaluation_mode(denoiser), shown as bar:
        for i, (name, sampler) in enumerate(samplers.items()):

            def draw(rows: range, generator: torch.Generator, sampler: Sampler = sampler) -> Any:
                condition = teacher.encode(_prompts(teacher, rows))
                return reduce(sampler(len(rows), condition, generator))

            drawn[name] = sampled_rows(
                draw,
                samples,
                batch=batch_size_of(teacher.latent_shape, batch),
                seed=seed + i,
                ranks=ranks,
                on_batch=bar.update,
            )
    return drawn


def _prompts(teacher: Teacher, rows: range) -> list[Any]:
    return [teacher.prompts[i % len(teacher.prompts)] for i in rows]


@checked
def score(
    student: Student,
    teacher: Teacher,
    drawn: Mapping[str, Latents],
    *,
    seed: int = 1234,
    teacher_steps: int = 50,
) -> dict[str, Any]:
    """Evaluates the result of :func:`draw_samples`.

    Args:
        student: The student.
        teacher: Its teacher, which selects the evaluator.
        drawn: The samples by method.
        seed: The seed of all random numbers.
        teacher_steps: Steps of the teacher's samples.

    Returns:
        As :func:`evaluate`.
    """
    few = student.plan.nfe
    nfe = {
        "teacher": teacher_steps * teacher.evaluations,
        f"teacher_euler_{few}": few * teacher.evaluations,
        "student": few,
    }
    reference = drawn["reference"]
    prompts = _prompts(teacher, range(len(reference)))
    condition = teacher.encode(prompts) if needs_condition(teacher) else None
    evaluator = evaluator_for(teacher, condition, reference, seed, prompts=prompts)
    real = evaluator.real()
    rows = [] if real is None else [{"method": "real", "nfe": 0, **real}]
    rows += [{"method": name, "nfe": n, **evaluator(drawn[name])} for name, n in nfe.items()]
    return {"rows": rows, "quality": evaluator.quality, "diversity": evaluator.diversity}


def euler_notice(rows: Sequence[Mapping[str, Any]], distances: Sequence[str]) -> str:
    """Returns a line if the student is worse than the teacher in as many Euler steps, else ``""``.

    Args:
        rows: The table, a row a method, with ``student`` and ``teacher_euler_N`` among them.
        distances: The columns that are compared; lower is better. The line names those in which
            the student is worse.
    """
    found = {row["method"]: row for row in rows}
    euler = next((name for name in found if name.startswith("teacher_euler_")), "")
    worse = []
    for name in distances:
        own, other = (found.get(method, {}).get(name) for method in ("student", euler))
        if isinstance(own, float) and isinstance(other, float) and own > other:
            worse.append(f"{name.replace('_', ' ')} {own:.3g} and {other:.3g}")
    if not worse:
        return ""
    return (
        f"the student is no better than the teacher's own {found['student']['nfe']} Euler steps "
        f"({', '.join(worse)}, lower is better); train longer, move the plan, or lower train.lr"
    )


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows of one benchmark as an aligned table; ``None`` is a dash."""
    names = list(rows[0])
    cells = [names]
    for row in rows:
        cells.append([_cell(row[name]) for name in names])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = []
    for line in cells:
        aligned = [
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}"
