"""The command `pdmd distill`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from pdmd.cli.arguments import one_line, parse_config
from pdmd.cli.streams import write_line
from pdmd.files import shell_word

if TYPE_CHECKING:
    from pdmd.cli.config import DistillConfig
    from pdmd.distributed.runtime import Runtime

__all__ = ["distill_command"]


@dataclass(kw_only=True)
class RunOptions:
    """Options of a run."""

    resume: bool = False
    """Resume from the newest checkpoint of the run."""
    checkpoint: str = ""
    """Resume from this checkpoint instead of the newest."""
    overwrite: bool = False
    """Replace the files of an earlier run in the folder."""
    allow_changed: bool = False
    """Resume although prompts, embeddings or weights have changed since the checkpoint."""
    progress: bool = True
    """Show progress: bars in a terminal, else lines."""
    dry_run: bool = False
    """Build and check everything, print the plan, and stop; nothing is written."""
    tiny: bool = False
    """Walk the recipe of a model family over small random networks, with few updates."""


def distill_command(words: list[str]) -> int:
    """Distills a teacher as configured by a preset or TOML file.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.cli.config import DistillConfig
    from pdmd.cli.tiny import shrink, tiny_folder

    if words[:1] == ["--resume"] and words[1:] and not words[1].startswith("-"):
        words = [words[1], "--resume", *words[2:]]  # the run to resume
    prepare = shrink if "--tiny" in words else None
    parsed = parse_config(words, "distill", RunOptions(), DistillConfig.__doc__, prepare=prepare)
    if prepare is not None:
        tiny_folder(parsed.config)
    return _run(parsed.config, parsed.options)


def _restarted() -> bool:
    """Returns whether torchrun has started this rank again after a failure.

    Raises:
        ValueError: If the ranks would meet in the store of those before, and read their addresses.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "torchrun restarted the ranks with the store of those that died; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or resume the run with --resume"
        )
    return True


def _run(config: DistillConfig, options: RunOptions) -> int:
    config.check()
    _restarted()
    runtime = config.build_runtime()
    try:
        code = _run_on(runtime, config, options)
    except RuntimeError as error:
        failed = runtime.ranks.failed_rank()
        if not failed:
            runtime.ranks.close(error)
            raise
        why = f"{failed} ({one_line(error)[:200]})"
        print(f"pdmd: error: {why}", file=sys.stderr)
        runtime.ranks.close(RuntimeError(why))
        return 1
    except BaseException as error:
        runtime.ranks.close(error)
        raise
    return code


def _run_on(runtime: Runtime, config: DistillConfig, options: RunOptions) -> int:
    from pdmd.cli.dry_runs import describe_run
    from pdmd.cli.runs import Run
    from pdmd.cli.tiny import write_tiny_teacher
    from pdmd.evaluation.evaluate import format_table
    from pdmd.training.checkpoints.checkpointer import Interrupted
    from pdmd.training.monitoring.health import NonFiniteError

    if options.tiny:
        with runtime.ranks.consensus():
            if runtime.main:
                print(f"pdmd: {write_tiny_teacher(config)}", file=sys.stderr)
    run = Run(
        config,
        runtime=runtime,
        resume=options.resume or bool(options.checkpoint),
        checkpoint=options.checkpoint,
        overwrite=options.overwrite,
        restarted=runtime.ranks.any(_restarted()),  # also where a new node has joined the others
        allow_changed=options.allow_changed,
        progress=options.progress,
    )
    plan, folder = run.plan, run.folder
    if options.dry_run:
        if runtime.main:
            print(describe_run(run))
        runtime.ranks.close()
        return 0
    again = f"pdmd distill {shell_word(folder / 'config.toml')} --resume"

    def say(text: str, file: TextIO | None = None) -> None:
        if runtime.main:
            write_line(text, file or sys.stdout)  # a closed terminal ends no run

    say(f"distilling {config.teacher.name} into {len(plan)} experts, {plan.nfe} steps -> {folder}")
    try:
        with run.stop_on(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), run.locked():
            rows = run.evaluate(run.distill())
            if not runtime.main:
                return 0
    except Interrupted as stop:
        say(f"pdmd: {stop}; resume with: {again}", sys.stderr)
        runtime.ranks.close()
        return 130
    except KeyboardInterrupt as error:
        runtime.ranks.close(error)
        whole = run.checkpointer.store.sees_whole()
        how = f"resume with: {again}" if whole else "start again with --overwrite"
        say(f"pdmd: stopped; {how}", sys.stderr)
        return 130
    except NonFiniteError as error:
        say(f"pdmd: error: {one_line(error)}", sys.stderr)
        runtime.ranks.close(error)
        return 1
    if rows:
        say(format_table(rows))
    say(f"student  {folder / 'student'}")
    say(f"report   {folder / 'report.html'}")
    return 0
