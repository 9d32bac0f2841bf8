"""The command `pdmd evaluate`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pdmd.cli.arguments import UsageError, check_numbers, parse, take_name
from pdmd.cli.evaluation_options import NETWORKS, EvaluateOptions
from pdmd.cli.sample import STUDENT
from pdmd.files import local_path, write_file

if TYPE_CHECKING:
    from pdmd.cli.placed_students import PlacedStudent
    from pdmd.distributed.runtime import Runtime

__all__ = ["evaluate_command"]

WITH_METRICS = ("seeds", "prompts", "fps", "folder", "overwrite")
"""Options that apply with ``--metrics`` only, with those that name their networks."""


def evaluate_command(words: list[str]) -> int:
    """Compares a student with its teacher.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    name, rest = take_name(words, STUDENT)
    options = parse(EvaluateOptions, rest, "pdmd evaluate STUDENT", flat=True)
    check_numbers(
        options,
        samples=(1 if options.metrics else 100, 10**9),
        seeds=(2, 10**4),
        teacher_steps=(1, 10**4),
        batch=(0, 10**6),
        seed=(0, 2**63 - 1),
    )
    for option in () if options.metrics else (*WITH_METRICS, *NETWORKS):
        if getattr(options, option) != getattr(EvaluateOptions(), option):
            raise UsageError(f"--{option} is for --metrics; add some or leave it out")
    out = local_path(options.out, "an evaluation")
    if options.out:  # for its errors, before the work
        out.parent.mkdir(parents=True, exist_ok=True)
    if options.metrics:
        from pdmd.cli.comparisons import check_metrics

        check_metrics(options)  # for its errors, before the ranks meet
    options.choose_precision(name)
    runtime = options.parallel.build(options.seed)
    try:
        found = _evaluate(name, options, runtime)
    except KeyboardInterrupt as stop:
        runtime.ranks.close(stop)
        if runtime.main:
            print("pdmd: stopped; run the same command to go on", file=sys.stderr)
        return 130
    except BaseException as error:
        runtime.ranks.close(error)
        raise
    runtime.ranks.close()
    if runtime.main and options.out:
        write_file(out, json.dumps(found, indent=2) + "\n")
    return 0


def _evaluate(name: str, options: EvaluateOptions, runtime: Runtime) -> dict[str, Any]:
    """Returns the result, on the main rank, and prints its table."""
    from pdmd.cli.placed_students import PlacedStudent
    from pdmd.evaluation.evaluate import euler_notice, format_table
    from pdmd.training.monitoring.outputs import say

    placed = PlacedStudent.load(
        name,
        runtime,
        plugins=options.plugins,
        arguments=options.arguments,
        guidance=options.guidance,
        trust_source=options.trust_source,
        decoding=bool(options.metrics),
    )
    if options.metrics:
        from pdmd.cli.comparisons import compare

        return compare(placed, options)
    found = _compare_latents(placed, options)
    if runtime.main:
        print(format_table(found["rows"]))
        if notice := euler_notice(found["rows"], [found["quality"]]):
            say(f"pdmd: warning: {notice}")
    return found


def _compare_latents(placed: PlacedStudent, options: EvaluateOptions) -> dict[str, Any]:
    from pdmd.evaluation import evaluate

    runtime, steps = placed.runtime, options.teacher_steps
    drawn = evaluate.draw_samples(
        placed.student,
        placed.teacher,
        samples=options.samples,
        seed=options.seed,
        teacher_steps=steps,
        batch=options.batch,
        progress=options.progress and runtime.main,
        real=placed.real,
        ranks=runtime.ranks,
    )
    placed.release()
    if not runtime.main:
        return {}
    return evaluate.score(
        placed.student, placed.teacher, drawn, seed=options.seed, teacher_steps=steps
    )
