"""The command `pdmd completion`: scripts that complete commands and options in a shell."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pdmd.cli.arguments import ALL, HELP, no_more, take_name

__all__ = ["SHELLS", "completion_command"]

SHELLS = ("bash", "zsh", "fish")
"""Shells with a script."""

USAGE = """\
usage: pdmd completion {{{shells}}}

Prints a script that completes commands, options, registered names and files. Once, for bash with
the package bash-completion:

  mkdir -p ~/.local/share/bash-completion/completions
  pdmd completion bash > ~/.local/share/bash-completion/completions/pdmd

for zsh, in a folder of its $fpath (fpath=(~/.zfunc $fpath) before compinit in ~/.zshrc):

  mkdir -p ~/.zfunc
  pdmd completion zsh > ~/.zfunc/_pdmd

and for fish:

  mkdir -p ~/.config/fish/completions
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


NAMES: Mapping[str, str] = {
    "distill": "pdmd.cli.config_files:presets()",
    "plan": "pdmd.cli.config_files:presets()",
    "bench": "pdmd.benchmarks.base:benchmarks",
    "pretrain": "pdmd.cli.pretrain:PACKAGED",
    "check": "pdmd.teachers.base:teachers",
    "completion": "pdmd.cli.completion:SHELLS",
}
"""What the first word after a command may name."""

VALUES: Mapping[str, str] = {
    "--teacher": "pdmd.teachers.base:teachers",
    "--teacher.name": "pdmd.teachers.base:teachers",
    "--train.expert": "pdmd.distillation.experts:experts",
    "--train.initializer": "pdmd.distillation.initializers:initializers",
    "--tracking.trackers": "pdmd.training.monitoring.trackers:trackers",
    "--metrics": "pdmd.evaluation.perceptual.metrics:metrics",
    "--only": "pdmd.cli.config_files:presets()",
    "--skip": "pdmd.conformance:CHECKS",
}
"""What the values of options may name, where their type does not say so."""

SPECIFICATION = re.compile(r"^COMPLETION_SPEC = .*$", re.MULTILINE)
"""The line after which names are added to the Python that the scripts of all shells contain."""

_RESULT = "get_completions(words, current_index, COMPLETION_SPEC)"
FILES = {
    _RESULT: f"{_RESULT} or ['__TYRO_COMPLETE_FILES__']",
    # bash itself completes files: the script takes the words before for parts of their names
    'COMPREPLY=($(compgen -f -- "$cur"))': "COMPREPLY=()",
    "complete -F ": "complete -o bashdefault -o default -F ",
    # fish asks for all completions of a place, and selects those that fit itself
    "complete --no-files ": "complete ",
}
"""What is replaced, so that files are completed where no name fits."""

ADDED = """
for _command in COMPLETION_SPEC['subcommands'].values():
    for _option in _command['options']:
        _option['description'] = ' '.join(_option['description'].split())
        for _flag in {values!r}.keys() & set(_option['flags']):
            _option.update(type='choice', choices={values!r}[_flag])
for _name, _names in {names!r}.items():
    _command = COMPLETION_SPEC['subcommands'][_name]
    _command['subcommands'] = {{n: {{**_command, 'description': n}} for n in _names}}
"""


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
    names, values = (
        {key: _names(place) for key, place in places.items()} for places in (NAMES, VALUES)
    )
    added = ADDED.format(names=names, values=values)
    text = SPECIFICATION.sub(lambda found: found[0] + added, printed.getvalue(), count=1)
    for old, new in FILES.items():
        text = text.replace(old, new)
    return text


def _names(place: str) -> list[str]:
    """Returns the names of a registry, of a table or, in brackets, of what a function returns."""
    module, attribute = place.split(":")
    found = getattr(importlib.import_module(module), attribute.removesuffix("()"))
    return sorted(found() if attribute.endswith("()") else found)


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
