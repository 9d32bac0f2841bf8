"""The command `pdmd recipes`: the presets, and what each of them takes.

Planning a large model takes a minute or more, so the figures ship in ``presets/plans.json``,
written by ``pdmd recipes --plan --json pdmd/cli/presets/plans.json``. Each has the digest of the
preset that it was planned from, and is left out where the preset has changed since.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdmd.cli.arguments import no_more, parse
from pdmd.documents import read_toml
from pdmd.files import local_path, write_file

if TYPE_CHECKING:
    from pdmd.cli.config import DistillConfig

__all__ = ["FIGURES", "digest_recipe", "plan_recipe", "recipes_command"]

FIGURES = "plans.json"
"""The file with the figures, beside the presets."""
GPUS = (1, 8, 16, 32, 64)
"""The numbers of GPUs that are tried: the first one on which a recipe fits is listed."""
MEMORY = 72.0
"""GiB of a GPU that a recipe may take, of 80."""


@dataclass(kw_only=True)
class RecipesOptions:
    """Lists the presets: model, phases and steps, and the GPUs, memory and hours that each takes.

    GPUs are the fewest of 1, 8, 16, 32 and 64 of 80 GiB on which the recipe fits into 72 GiB, at
    0.4 PFLOP/s each; memory is the peak of one of them. Another cluster: see 'pdmd plan --help'.
    """

    plan: bool = False
    """Plan the presets again, in place of the figures that ship; takes minutes."""
    only: tuple[str, ...] = ()
    """Only these presets."""
    json: str = ""
    """Also write the figures to this JSON file."""


def recipes_command(words: list[str]) -> int:
    """Runs ``pdmd recipes``."""
    from pdmd.cli.config_files import load_config, presets

    if words and not words[0].startswith("-"):
        no_more(words)
    options = parse(RecipesOptions, words, "pdmd recipes", flat=True)
    files = presets()
    for name in options.only:
        if name not in files:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(files)}")
    out = local_path(options.json, "the figures") if options.json else None
    configs = {name: load_config(name) for name in options.only or files}
    folder = next(iter(files.values())).parent
    if options.plan:
        found: dict[str, Any] = {}
        for name, config in configs.items():
            print(f"planning {name}", file=sys.stderr, flush=True)
            found[name] = {"digest": digest_recipe(files[name]), **plan_recipe(config)}
    else:
        found = json.loads((folder / FIGURES).read_text())
        found = {name: found[name] for name in configs if name in found}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(found, indent=1) + "\n")
    rows: list[list[str]] = []
    for name, config in configs.items():
        known = found.get(name, {})
        current = known.get("digest") == digest_recipe(files[name])
        rows.append(_row(name, config, known if current else None))
    print(_table(rows))
    print(f"\n'pdmd distill NAME' distills one; where its numbers come from is in {folder}")
    return 0


def plan_recipe(config: DistillConfig) -> dict[str, Any]:
    """Plans a recipe on the fewest GPUs of ``GPUS`` on which it fits.

    Args:
        config: The recipe.

    Returns:
        The numbers of GPUs and parameters, bytes of memory and disk, and hours.

    Raises:
        ValueError: If it fits on none.
    """
    from pdmd.cli.plan import measure_run
    from pdmd.planning.clusters import Cluster

    measured = measure_run(config)
    for gpus in GPUS:
        try:
            plan = measured.on(Cluster(gpus=gpus, memory=MEMORY))
        except ValueError:  # no degrees divide the batch
            continue
        if plan.fitting:
            totals = plan.totals()
            return {
                "parameters": measured.roles[0].teacher.parameters,
                "gpus": gpus,
                "bytes": plan.best.memory.total,
                "hours": totals.seconds / 3600,
                "disk": totals.disk,
            }
    raise ValueError(f"the recipe of {config.teacher.name} fits on none of {GPUS} GPUs")


def digest_recipe(path: Path) -> str:
    """Returns a digest of what a preset's file states; comments do not count."""
    content = json.dumps(read_toml(path)[1], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _row(name: str, config: DistillConfig, figures: Mapping[str, Any] | None) -> list[str]:
    from pdmd.planning.tables import format_bytes, format_count

    plan, arguments = config.plan.build(), config.teacher.arguments
    size = [str(arguments[key]) for key in ("width", "height", "frames") if key in arguments]
    steps = "+".join(str(phase.steps) for phase in plan)
    row = [name, config.teacher.name, " x ".join(size) or "-", str(len(plan)), steps]
    if figures is None:
        return [*row, *["-"] * 4]
    hours = figures["hours"]
    return [
        *row,
        format_count(figures["parameters"]),
        f"{figures['gpus']} x 80 GiB",
        format_bytes(figures["bytes"]),
        f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}",
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = ["preset", "teacher", "size", "phases", "steps"]
    head += ["parameters", "GPUs", "memory", "hours"]
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
