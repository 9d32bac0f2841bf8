"""The command `pdmd doctor`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdmd.cli.arguments import parse, take_name
from pdmd.files import local_path

if TYPE_CHECKING:
    from pdmd.verification.diagnosis import Diagnosis

__all__ = ["doctor_command"]


@dataclass(kw_only=True)
class DoctorOptions:
    """Says what went wrong in a run, when, why, and what to change.

    Reads the files of a run folder, while it trains or afterwards. Exits with 0 for a healthy run,
    and with 1 if there are findings.
    """

    json: bool = False
    """Print JSON instead of text."""


def doctor_command(words: list[str]) -> int:
    """Diagnoses a run folder.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code: 1 if something went wrong.
    """
    from pdmd.verification.diagnosis import diagnose_run

    name, rest = take_name(words, "a run folder, for example runs/digits")
    options = parse(DoctorOptions, rest, "pdmd doctor RUN", flat=True)
    found = diagnose_run(local_path(name, "a run"))
    print(json.dumps(found.as_dict(), indent=2) if options.json else _text(name, found))
    return 1 if found.findings else 0


def _text(name: str, found: Diagnosis) -> str:
    lines = [f"{name}: {found.state}, {found.measured} health measurements"]
    for finding in found.findings:
        keys = [key for key in found.settings if re.search(rf"\b{key}\b", finding.remedy)]
        now = ", ".join(f"{key} = {found.settings[key]}" for key in keys)
        where = f"since phase {finding.phase}, update {finding.update}"
        lines += [
            "",
            f"{finding.name}, {where}",
            f"  what    {finding.evidence}",
            f"  why     {finding.cause}",
            f"  remedy  {finding.remedy}",
        ]
        lines += [f"  now     {now}"] if now else []
    if not found.findings:
        why = "nothing went wrong" if found.measured else "nothing was measured (health.every = 0)"
        lines.append(why)
    return "\n".join(lines)
