"""The command line: a thin skin over the library.

Every command ends with exit code 0, 2 for bad input (one line, with the remedy), 1 for a run that
failed, or 130 for one that was stopped on request.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pdmd.arguments import UsageError, parse, take_name

if TYPE_CHECKING:
    from pdmd.training.config import DistillConfig

__all__ = ["main"]

USAGE = """\
usage: pdmd COMMAND [options]

Distills diffusion and flow models into few-step mixtures of experts by Phased DMD.

commands:
  distill [PRESET_OR_TOML]  distill a teacher (presets: {presets}; default digits)
  plan [PRESET_OR_TOML]     say what a run costs and on how many GPUs it fits
  sample STUDENT            draw samples from a student folder
  evaluate STUDENT          compare a student with its teacher
  bench NAME                compare methods: toy1d, mixture, digits
  report PATH               write the HTML report of a run folder or a results file
  teach NAME                train a shipped network again: digits, digits-classifier
  teachers                  list the registered teachers
  objectives                list the registered objectives and their weights

'pdmd COMMAND --help' describes a command. Start with: pdmd distill digits
"""


@dataclass(kw_only=True)
class _RunOptions:
    """How to run."""

    resume: bool = False
    """Go on from the run folder's checkpoint."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder."""
    progress: bool = True
    """Show progress bars."""


@dataclass(kw_only=True)
class _PlanOptions:
    """On what to run, and how."""

    gpus: int = 1
    """GPUs."""
    memory: float = 80.0
    """Memory of each GPU, in GiB."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What networks compute in; parameters that train are held in fp32."""
    frozen: Literal["fp32", "bf16"] = "fp32"
    """What the teacher and finished experts are held in."""
    checkpointing: bool = False
    """Keep the inputs of blocks alone, and compute the rest again in the backward pass."""
    show: int = 10
    """Choices of degrees to list."""
    json: str = ""
    """Also write all figures to this JSON file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after ``pdmd``; the process's own by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        from pdmd.training.config import presets

        print(USAGE.format(presets=", ".join(presets())), end="")
        return 0
    if words[0] == "--version":
        from pdmd import __version__

        print(__version__)
        return 0
    from pdmd.commands import COMMANDS

    commands = {"distill": _distill, "plan": _plan, **COMMANDS}
    try:
        if words[0] not in commands:
            raise UsageError(f"unknown command {words[0]!r}; choose one of {', '.join(commands)}")
        return commands[words[0]](words[1:])
    except SystemExit:  # help was printed
        return 0
    except (ValueError, OSError) as error:
        print(f"pdmd: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pdmd: stopped", file=sys.stderr)
        return 130


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _configured(words: list[str], name: str, options: Any, doc: str | None) -> Any:
    """Reads a configuration's name and overrides, beside options of a command's own."""
    import tyro

    from pdmd.training.config import DistillConfig, load_config

    chosen, rest = take_name(words, "a preset or TOML file", "digits")
    config = load_config(chosen)
    command = dataclasses.make_dataclass(
        name.capitalize(),
        [
            ("options", Annotated[type(options), tyro.conf.arg(name="")]),
            ("config", Annotated[DistillConfig, tyro.conf.arg(name="")]),
        ],
    )
    command.__doc__ = doc
    return parse(command, rest, f"pdmd {name} [PRESET_OR_TOML]", command(options, config))


# ------------------------------------------------------------------------------------ distill


def _distill(words: list[str]) -> int:
    from pdmd.training.config import DistillConfig

    parsed = _configured(words, "distill", _RunOptions(), DistillConfig.__doc__)
    return _run(parsed.config, parsed.options)


def _run(config: DistillConfig, options: _RunOptions) -> int:
    from pdmd.evaluation.evaluate import format_table
    from pdmd.runs import Run
    from pdmd.training.checkpoint import Interrupted
    from pdmd.training.phase_trainer import NonFiniteError

    run = Run(
        config, resume=options.resume, overwrite=options.overwrite, progress=options.progress
    )
    plan, folder = run.plan, run.folder
    print(
        f"distilling {config.teacher.name} into {len(plan)} experts, {plan.nfe} steps -> {folder}"
    )
    again = f"pdmd distill {folder / 'config.toml'} --resume"
    try:
        with run.stop_on(signal.SIGINT, signal.SIGTERM):
            student = run.distill()
        rows = run.evaluate(student)
    except Interrupted as stop:
        print(f"pdmd: {stop}; go on with: {again}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        how = (
            f"go on with: {again}" if run.checkpointer.exists() else "start again with --overwrite"
        )
        print(f"pdmd: stopped; {how}", file=sys.stderr)
        return 130
    except NonFiniteError as error:
        print(f"pdmd: error: {_one_line(error)}", file=sys.stderr)
        return 1
    print(format_table(rows))
    print(f"student  {folder / 'student'}")
    print(f"report   {folder / 'report.html'}")
    return 0


# --------------------------------------------------------------------------------------- plan


def _plan(words: list[str]) -> int:
    """Builds the networks without their weights, and prints what a run would take."""
    import json

    from pdmd.planning import PRECISIONS, Precision, plan_run, tables

    parsed = _configured(words, "plan", _PlanOptions(), _plan.__doc__)
    options: _PlanOptions = parsed.options
    if options.show < 1:
        raise ValueError(f"--show is at least 1, got {options.show}")
    if options.json and Path(options.json).suffix != ".json":
        raise ValueError(f"--json ends in .json, got {options.json!r}")
    plan = plan_run(
        parsed.config,
        gpus=options.gpus,
        memory=options.memory,
        precision=Precision(
            compute=PRECISIONS[options.precision], frozen=PRECISIONS[options.frozen]
        ),
        checkpointing=options.checkpointing,
    )
    if options.json:
        out = Path(options.json)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plan.figures(), indent=2) + "\n")
    print(tables(plan, show=options.show))
    return 0
