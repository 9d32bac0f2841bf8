"""The command `pdmd evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pdmd.cli.arguments import check_numbers, parse, take_name
from pdmd.cli.sample import STUDENT, load_student
from pdmd.files import local_path, write_file

__all__ = ["evaluate_command"]


@dataclass(kw_only=True)
class EvaluateOptions:
    """Compares a student with its teacher and prints a table."""

    samples: int = 2000
    """Samples of each method."""
    teacher_steps: int = 50
    """Steps with which the teacher is sampled."""
    seed: int = 1234
    """Seed of the samples."""
    guidance: tuple[float, ...] = ()
    """Guidance scale of the teacher; by default that of the distillation."""
    out: str = ""
    """Also write the rows to this JSON file."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of the teacher in the place of those that it was distilled with."""
    trust_source: bool = False
    """Use the URLs and cache folders that the student's folder names."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the student's teacher."""


def evaluate_command(words: list[str]) -> int:
    """Compares a student with its teacher.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.distillation.student_folders import schedule_of
    from pdmd.evaluation.evaluate import evaluate, format_table
    from pdmd.teachers.guided import guided, unguided
    from pdmd.teachers.with_schedule import on_schedule

    name, rest = take_name(words, STUDENT)
    options = parse(EvaluateOptions, rest, "pdmd evaluate STUDENT", flat=True)
    check_numbers(options, samples=(100, 10**6), teacher_steps=(1, 10**4), seed=(0, 2**63 - 1))
    out = local_path(options.out, "an evaluation")
    if options.out:
        out.parent.mkdir(parents=True, exist_ok=True)
    student, teacher = load_student(
        name,
        options.plugins,
        arguments=options.arguments,
        trust_source=options.trust_source,
    )
    source = student.source or {}
    scales = tuple(options.guidance or source.get("guidance") or (1.0,))
    negative = source.get("negative_prompt", "") if set(scales) != {1.0} else ""
    low, high = source.get("guidance_interval", (0.0, 1.0))
    teacher = guided(unguided(teacher), scales, negative_prompt=negative, interval=(low, high))
    teacher = on_schedule(teacher, *schedule_of(source))
    metrics = evaluate(
        student,
        teacher,
        samples=options.samples,
        seed=options.seed,
        teacher_steps=options.teacher_steps,
    )
    print(format_table(metrics["rows"]))
    if options.out:
        write_file(out, json.dumps(metrics, indent=2) + "\n")
    return 0
