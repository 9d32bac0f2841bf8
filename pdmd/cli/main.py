"""The command line: a thin skin over the library.

Exit codes: 0 for success, 2 for invalid input (one line, with the remedy), 1 for a run that
failed, 130 for one that was interrupted, and 141 where nobody reads the output.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence

from pdmd.cli.arguments import HelpPrinted, UsageError, one_line
from pdmd.cli.log_levels import take_log_level
from pdmd.cli.streams import standard_streams

__all__ = ["main"]

USAGE = """\
usage: pdmd COMMAND [options]

Distills diffusion and flow models into few-step mixtures of experts by Phased DMD.

commands:
  distill [PRESET_OR_TOML]  distill a teacher; the preset digits by default
  plan [PRESET_OR_TOML]     estimate the cost of a run, and on how many GPUs it fits
  recipes                   list the presets, with the GPUs, memory and hours they take
  embed PROMPTS             encode prompts, so that training needs no text encoder
  sample STUDENT            draw samples from a student folder
  evaluate STUDENT          compare a student with its teacher
  export STUDENT DIR        write a student for diffusers, or its adapters
  push STUDENT USER/NAME    upload a student or an export to the model hub
  bench NAME                compare methods: toy1d, digits, cost, memory, speed and more
  report PATH               write the HTML report of a run folder or a results file
  doctor RUN                say what went wrong in a run, why, and what to change
  verify FOLDER             check a run, student, store or export against its digests
  pretrain NAME             pretrain a packaged network: digits, fashion, glyphs, ...
  check TEACHER             check that a teacher meets the needs of distillation
  teachers                  list the registered teachers
  objectives                list the registered objectives and their arguments
  completion SHELL          print a script that completes commands, options and names

'pdmd COMMAND --help' describes a command, and --log-level (debug, info, warning or error) of any
shows more or fewer messages of libraries. Start with: pdmd distill digits
"""


COMMANDS = {
    "distill": "pdmd.cli.distill:distill_command",
    "plan": "pdmd.cli.plan:plan_command",
    "recipes": "pdmd.cli.recipes:recipes_command",
    "embed": "pdmd.cli.embed:embed_command",
    "sample": "pdmd.cli.sample:sample_command",
    "evaluate": "pdmd.cli.evaluate:evaluate_command",
    "export": "pdmd.cli.export:export_command",
    "push": "pdmd.cli.push:push_command",
    "bench": "pdmd.cli.bench:bench_command",
    "report": "pdmd.cli.report:report_command",
    "doctor": "pdmd.cli.doctor:doctor_command",
    "verify": "pdmd.cli.verify:verify_command",
    "pretrain": "pdmd.cli.pretrain:pretrain_command",
    "check": "pdmd.cli.check:check_command",
    "teachers": "pdmd.cli.check:teachers_command",
    "objectives": "pdmd.cli.objectives:objectives_command",
    "completion": "pdmd.cli.completion:completion_command",
}
"""The commands by name: each takes the words after its name and returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The words after ``pdmd``; those of this process by default.

    Returns:
        The exit code.
    """
    with standard_streams():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(words: list[str]) -> int:
    try:
        code = _command(words)
        sys.stdout.flush()  # at the exit of Python its errors would be lost
        return code
    except SystemExit as stop:  # raised by the code of a plugin or teacher
        if os.environ.get("RANK", "0") == "0":
            print(
                f"pdmd: error: the code of a plugin or teacher exited ({stop.code!r}); let it "
                "raise an error instead",
                file=sys.stderr,
            )
        return 1
    except BrokenPipeError:  # whoever read the output has left
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks raise the same
            print(f"pdmd: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        reason = one_line(error)
        full = isinstance(error, MemoryError) or re.search(
            "(allocate|out of) memory", reason, re.I
        )
        if not full or words[:1] == ["distill"]:  # whose traceback says where the memory went
            raise
        print(
            f"pdmd: error: out of memory ({reason:.200}); use smaller batches, or a device with "
            "more memory",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("pdmd: stopped", file=sys.stderr)
        return 130


def _command(words: list[str]) -> int:
    words = take_log_level(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from pdmd import __version__

        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        raise UsageError(f"unknown command {words[0]!r}; choose one of {', '.join(COMMANDS)}")
    module, name = COMMANDS[words[0]].split(":")
    try:
        return getattr(importlib.import_module(module), name)(words[1:])
    except HelpPrinted:
        return 0
