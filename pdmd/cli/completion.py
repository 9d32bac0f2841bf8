"""The command `pdmd completion`: scripts that complete commands and options in a shell."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
from collections.abc import Mapping
from typing import Annotated, Any

from pdmd.cli.arguments import ALL, HELP, no_more, take_name

__all__ = ["SHELLS", "completion_command"]

SHELLS = ("bash", "zsh", "fish")
"""Shells with a script."""

USAGE = """\
usage: pdmd completion {{{shells}}}

Prints a script that completes commands and options. Once, for bash:

  pdmd completion bash > ~/.local/share/bash-completion/completions/pdmd

for zsh, in a folder of its $fpath:

  pdmd completion zsh > ~/.zfunc/_pdmd

and for fish:

  pdmd completion fish > ~/.config/fish/completions/pdmd.fish
"""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "distill": ("pdmd.cli.distill:RunOptions", "pdmd.cli.config:DistillConfig"),
    "plan": ("pdmd.cli.plan:PlanOptions", "pdmd.cli.config:DistillConfig"),
    "embed": ("pdmd.cli.embed:EmbedOptions",),
    "sample": ("pdmd.cli.sample:SampleOptions",),
    "evaluate": ("pdmd.cli.evaluate:EvaluateOptions",),
    "doctor": ("pdmd.cli.doctor:DoctorOptions",),
    "export": ("pdmd.cli.export:ExportOptions",),
    "push": ("pdmd.cli.push:PushOptions",),
    "bench": ("pdmd.cli.bench:BenchOptions",),
    "report": (),
    "recipes": ("pdmd.cli.recipes:RecipesOptions",),
    "verify": (),
    "pretrain": ("pdmd.cli.pretrain:PretrainOptions",),
    "check": ("pdmd.cli.check:CheckOptions",),
    "teachers": ("pdmd.cli.check:TeachersOptions",),
    "objectives": (),
    "completion": (),
}
"""The options of each command, as dataclasses."""


def completion_command(words: list[str]) -> int:
    """Prints the completion script of a shell.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    shell, rest = take_name(words, f"the shell: one of {', '.join(SHELLS)}")
    no_more([word for word in rest if word not in (*HELP, ALL)])
    if not shell:
        print(USAGE.format(shells=",".join(SHELLS)), end="")
        return 0
    if shell not in SHELLS:
        raise ValueError(f"no completion for {shell!r}; choose one of {', '.join(SHELLS)}")
    print(_script(shell), end="")
    return 0


def _script(shell: str) -> str:
    from tyro.extras import SubcommandApp

    app, printed = SubcommandApp(), io.StringIO()
    for name, places in OPTIONS.items():
        app.command(_options(name, places), name=name)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed):
        app.cli(prog="pdmd", args=["--tyro-print-completion", shell])
    return printed.getvalue()


def _options(name: str, places: tuple[str, ...]) -> Any:
    """Returns a dataclass of a command's options, without their section's name for one class."""
    import tyro

    fields: list[tuple[str, Any, Any]] = []
    for place in places:
        module, attribute = place.split(":")
        cls = getattr(importlib.import_module(module), attribute)
        flat = (tyro.conf.OmitArgPrefixes,) if len(places) == 1 else ()
        kind = Annotated[(cls, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands, *flat)]
        fields.append((attribute.lower(), kind, dataclasses.field(default_factory=cls)))
    return dataclasses.make_dataclass(name, fields, kw_only=True)
