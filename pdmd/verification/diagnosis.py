"""The diagnosis of a run: what went wrong in it, when, why, and what to change.

It is read from the files of the run folder alone: the health records that were measured while it
trained, its history, its metrics, and its configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdmd.documents import naming, read_json, read_toml
from pdmd.training.monitoring.detectors import Finding, diagnose
from pdmd.training.monitoring.health_records import read_health
from pdmd.training.monitoring.recorder import read_history

__all__ = ["Diagnosis", "diagnose_run"]

REMEDY = "restore it from the run"
SKIPPED = 0.01
"""Share of the updates that may be skipped before it is a finding."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a run folder says about the run.

    Attributes:
        state: How far the run came, in a line.
        findings: What went wrong, in the order in which it began.
        settings: The current values of the settings that remedies name.
        measured: The number of health records.
    """

    state: str
    findings: list[Finding] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    measured: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "healthy": not self.findings,
            "state": self.state,
            "measurements": self.measured,
            "findings": [finding.as_dict() for finding in self.findings],
            "settings": self.settings,
        }


def diagnose_run(folder: str | Path) -> Diagnosis:
    """Diagnoses a run folder, of a finished run or of one that still trains.

    Args:
        folder: The run folder.

    Raises:
        ValueError: If it is not a run folder, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.toml")
    config = read_toml(folder / "config.toml")[1]
    phases = 0
    if (folder / "plan.json").is_file():
        with naming(folder / "plan.json", REMEDY):
            phases = len(read_json(folder / "plan.json")["phases"])
    path = folder / "history.jsonl"
    with naming(path, REMEDY):
        history = read_history(path) if path.is_file() else []
    with naming(folder / "health.jsonl", REMEDY):
        records, warnings = read_health(folder / "health.jsonl")
    finished = (folder / "metrics.json").is_file()
    findings = diagnose(records)
    findings += _skipped(history, warnings)
    if finished:
        with naming(folder / "metrics.json", REMEDY):
            findings += _metrics(read_json(folder / "metrics.json")["rows"], phases)
    findings.sort(key=lambda finding: (finding.phase, finding.update))
    return Diagnosis(
        state=_state(history, phases, finished),
        findings=findings,
        settings=_settings(config, findings),
        measured=len(records),
    )


def _skipped(
    history: Sequence[Mapping[str, Any]], warnings: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Returns the finding of skipped steps, if they are more than a few or the last there is."""
    if not warnings:
        return []
    ends = {int(row["phase"]): int(row["update"]) for row in history}
    first, last = warnings[0], warnings[-1]
    few = len(warnings) <= max(1, SKIPPED * sum(ends.values()))
    after = (last["phase"], last["update"]) >= max(ends.items(), default=(0, 0))
    if few and not after:
        return []
    return [
        Finding(
            name="skipped steps",
            phase=first["phase"],
            update=first["update"] + 1,
            evidence=f"{len(warnings)} steps were skipped; the last: {last['warning'][:300]}",
            cause="a loss or a gradient was not finite",
            remedy="lower train.lr and train.fake_lr, or inspect the teacher with 'pdmd check'",
        )
    ]


def _metrics(rows: Sequence[Mapping[str, Any]], phases: int) -> list[Finding]:
    """Returns the finding of metrics that are not finite."""
    student = next((row for row in rows if row.get("method") == "student"), {})
    broken = [
        name
        for name, value in student.items()
        if value is None or (isinstance(value, float) and not math.isfinite(value))
    ]
    if not broken:
        return []
    return [
        Finding(
            name="broken samples",
            phase=max(phases, 1),
            update=0,
            evidence=f"the student's {', '.join(broken)} in metrics.json are not finite",
            cause="the student samples values that are not finite, or out of every range",
            remedy="lower train.lr, and look at grids/samples.png",
        )
    ]


def _state(history: Sequence[Mapping[str, Any]], phases: int, finished: bool) -> str:
    if finished:
        return f"finished, {phases} phases" if phases else "finished"
    if not history:
        return "no update is recorded yet"
    last = history[-1]
    of = f" of {phases}" if phases else ""
    return f"unfinished: phase {last['phase']}{of}, update {last['update']}"


def _settings(config: Mapping[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    """Returns the run's values of the keys that remedies name."""
    named: dict[str, Any] = {}
    for finding in findings:
        for section, key in re.findall(r"\b(train|plan|teacher)\.(\w+)", finding.remedy):
            table = config.get(section, {})
            if isinstance(table, dict) and key in table:
                named[f"{section}.{key}"] = table[key]
    return named
