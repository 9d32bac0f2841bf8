"""The commands `pdmd check` and `pdmd teachers`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from pdmd.cli.arguments import no_more, parse, take_name
from pdmd.cli.values import Arguments, Table

__all__ = ["check_command", "teachers_command"]


@dataclass(kw_only=True)
class CheckOptions:
    """Checks that a teacher has the properties that distillation relies on.

    Prints one line per check; the exit code is 1 if one fails.
    """

    arguments: Arguments = field(default_factory=dict)
    """Arguments of the teacher by name, for example folder and height."""
    guidance: tuple[float, ...] = (1.0,)
    """Guidance scale, 1 for none: one number, or one per network of the teacher."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The lowest and highest time with guidance."""
    negative_prompt: str = ""
    """Text that guidance leads away from; by default no text."""
    schedule: str = ""
    """Check it on this schedule: rectified_flow, cosine or linear; the teacher's by default."""
    schedule_end: Literal["noise", "teacher"] = "noise"
    """Where that schedule ends: at pure noise, or at the teacher's noisiest level."""
    router: Table = field(default_factory=dict)
    """Check its networks behind this router; the teacher's own by default."""
    prompts: tuple[str, ...] = ()
    """Prompts to evaluate it with; the teacher's by default."""
    seed: int = 0
    """Seed of the checks."""
    skip: tuple[str, ...] = ()
    """Checks to leave out, for example score, which samples the teacher."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the teacher."""


@dataclass(kw_only=True)
class TeachersOptions:
    """Lists the registered teachers."""

    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register teachers."""


def check_command(words: list[str]) -> int:
    """Checks one teacher, as :func:`pdmd.conformance.check` does.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code: 0 if no check fails, else 1.
    """
    name, rest = take_name(words, "the teacher: see 'pdmd teachers'")
    options = parse(CheckOptions, rest, "pdmd check TEACHER", flat=True)
    from pdmd.cli.config import TeacherConfig
    from pdmd.conformance import check

    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed is in [0, 2^63), got {options.seed}")
    others = {"name", "check_score", "buckets"}
    shared = {f.name for f in dataclasses.fields(TeacherConfig)} - others
    chosen = {key: getattr(options, key) for key in shared}
    teacher = TeacherConfig(name=name, **chosen).build()
    report = check(teacher, options.prompts or None, seed=options.seed, skip=options.skip)
    print(report)
    passed = sum(outcome.passed is True for outcome in report.outcomes)
    idle = sum(outcome.passed is None for outcome in report.outcomes)
    print(f"{name}: {passed} passed, {len(report.failed)} failed, {idle} do not apply")
    return 0 if report.passed else 1


def teachers_command(words: list[str]) -> int:
    """Lists the registered teachers, built without their weights.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    import warnings

    if words and not words[0].startswith("-"):
        no_more(words)
    options = parse(TeachersOptions, words, "pdmd teachers", flat=True)
    from pdmd.cli.config import TeacherConfig
    from pdmd.cli.plan import outlined
    from pdmd.extras import MissingExtra
    from pdmd.teachers.base import import_plugins, teachers

    import_plugins(options.plugins)
    head = ("name", "parameters", "predicts", "schedule", "latents", "times")
    rows: list[tuple[str, ...]] = [head]
    left: dict[str, str] = {}
    for name in teachers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows.append(_row(name, outlined(TeacherConfig(name=name))))
        except Exception as error:  # whatever a teacher's code raises without arguments
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            missing = isinstance(error, MissingExtra)
            left[name] = why if missing else f"not built without arguments: {why[:160]}"
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        cells[1] = row[1].rjust(widths[1])
        print("  ".join(cells).rstrip())
    for name, why in left.items():
        print(f"{name.ljust(widths[0])}  {why}")
    return 0


def _row(name: str, teacher: Any) -> tuple[str, ...]:
    low, high = teacher.time_range
    count = sum(p.numel() for p in teacher.parameters())
    return (
        name,
        _human(count) if count else "exact",
        teacher.kind,
        type(teacher.schedule).__name__,
        "x".join(map(str, teacher.latent_shape)),
        f"[{low:g}, {high:g}]",
    )


def _human(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            return f"{count / size:.1f}{unit}"
    return str(count)
