"""The command line: a thin skin over the library.

Every command ends with exit code 0, 2 for bad input (one line, with the remedy), 1 for a run that
failed, or 130 for one that was stopped on request.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from pdmd.arguments import UsageError, parse, take_name

if TYPE_CHECKING:
    from pdmd.training.config import DistillConfig
    from pdmd.training.runtime import Runtime

__all__ = ["main"]

USAGE = """\
usage: pdmd COMMAND [options]

Distills diffusion and flow models into few-step mixtures of experts by Phased DMD.

commands:
  distill [PRESET_OR_TOML]  distill a teacher (presets: {presets}; default digits)
  plan [PRESET_OR_TOML]     say what a run costs and on how many GPUs it fits
  embed PROMPTS             encode prompts, so that training needs no text encoder
  sample STUDENT            draw samples from a student folder
  evaluate STUDENT          compare a student with its teacher
  export STUDENT DIR        write a student for diffusers, or its adapters
  bench NAME                compare methods: toy1d, mixture, digits; cost; overhead
  report PATH               write the HTML report of a run folder or a results file
  teach NAME                train a shipped network again: digits, glyphs, ...
  check TEACHER             check that a teacher keeps what distillation needs
  teachers                  list the registered teachers
  objectives                list the registered objectives and their weights

'pdmd COMMAND --help' describes a command. Start with: pdmd distill digits
"""


@dataclass(kw_only=True)
class _RunOptions:
    """How to run."""

    resume: bool = False
    """Go on from the run's newest checkpoint."""
    checkpoint: str = ""
    """Go on from this checkpoint instead of the newest."""
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
        from pdmd.training.config_files import presets

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
        if os.environ.get("RANK", "0") == "0":  # all ranks say the same
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

    from pdmd.training.config import DistillConfig
    from pdmd.training.config_files import load_config

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
    config.check()
    runtime = config.parallel.build(config.train.seed)
    try:
        code = _run_on(runtime, config, options)
    except RuntimeError as error:
        blamed = runtime.blame()
        if not blamed:
            runtime.close(error)
            raise
        why = f"{blamed} ({_one_line(error)[:200]})"
        print(f"pdmd: error: {why}", file=sys.stderr)
        runtime.close(RuntimeError(why))
        return 1
    except BaseException as error:
        runtime.close(error)
        raise
    return code


def _run_on(runtime: Runtime, config: DistillConfig, options: _RunOptions) -> int:
    from pdmd.evaluation.evaluate import format_table
    from pdmd.runs import Run
    from pdmd.training.checkpoint import Interrupted
    from pdmd.training.health import NonFiniteError

    run = Run(
        config,
        runtime=runtime,
        resume=options.resume or bool(options.checkpoint),
        checkpoint=options.checkpoint,
        overwrite=options.overwrite,
        progress=options.progress,
    )
    plan, folder = run.plan, run.folder
    again = f"pdmd distill {folder / 'config.toml'} --resume"

    def say(text: str, file: TextIO | None = None) -> None:
        if runtime.main:
            print(text, file=file or sys.stdout, flush=True)

    say(f"distilling {config.teacher.name} into {len(plan)} experts, {plan.nfe} steps -> {folder}")
    try:
        with run.stop_on(signal.SIGINT, signal.SIGTERM):
            student = run.distill()
            run.leave()
            if not runtime.main:
                return 0
            rows = run.evaluate(student)
    except Interrupted as stop:
        say(f"pdmd: {stop}; go on with: {again}", sys.stderr)
        runtime.close()
        return 130
    except KeyboardInterrupt as error:
        runtime.close(error)
        whole = run.checkpointer.store.sees_whole()
        how = f"go on with: {again}" if whole else "start again with --overwrite"
        say(f"pdmd: stopped; {how}", sys.stderr)
        return 130
    except NonFiniteError as error:
        say(f"pdmd: error: {_one_line(error)}", sys.stderr)
        runtime.close(error)
        return 1
    say(format_table(rows))
    say(f"student  {folder / 'student'}")
    say(f"report   {folder / 'report.html'}")
    return 0


# --------------------------------------------------------------------------------------- plan


def _plan(words: list[str]) -> int:
    """Builds the networks without their weights, and prints what a run would take."""
    import json

    from pdmd.planning import plan_run, tables

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
    )
    if options.json:
        out = Path(options.json)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plan.figures(), indent=2) + "\n")
    print(tables(plan, show=options.show))
    return 0
