"""Run folders: what a run writes, and which folder it may write to."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from pathlib import Path

from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.student_folders import describe_plan
from pdmd.documents import read_json, read_toml
from pdmd.files import write_file
from pdmd.locks import LOCKS

__all__ = [
    "BEFORE",
    "check_folder",
    "check_writable",
    "clear_folder",
    "is_finished",
    "mark_finished",
    "write_plan",
]

BEFORE = (*LOCKS, "tiny_pipeline")
"""What may be in the folder before a run: its lock, and the teacher of a tiny recipe."""

FOLDERS = ("student", "tensorboard", "grids", "validation/*x*", "validation", "checkpoint")
"""The folders of a run; those of a validation are of the teacher's size, and of others."""

OUTPUTS = re.compile(
    r"student/(student\.json|expert_\d+\.safetensors)"
    r"|tensorboard/events\.out\.tfevents\.\d+\..+\.\d+"
    r"|grids/(samples|prompts|phase_\d+)\.png"
    r"|validation/(\d+(x\d+)+/)?"
    r"(phase_\d+_update_\d+\.(png|mp4|gif)|metrics\.jsonl|teacher\.safetensors)"
    r"|(history|health|throughput)\.jsonl"
    r"|wandb_id|report\.html"
    r"|(calibration|notices|metrics|summary|plan)\.json"
)
"""The files of a run, which a run that replaces it removes; other files in its folder stay."""


def check_folder(
    folder: Path, *, resume: bool, overwrite: bool, occupied: bool, unfinished: bool
) -> None:
    """Checks that a run may write to its folder.

    Args:
        folder: The folder.
        resume: Whether the run resumes from a checkpoint.
        overwrite: Whether it may replace an earlier run.
        occupied: Whether it had files before the run.
        unfinished: Whether there is a checkpoint to resume from.

    Raises:
        ValueError: If it may not, or cannot resume.
    """
    if resume:
        if not unfinished:
            raise ValueError(
                f"{folder} has no checkpoint to resume; start again without --resume, over an "
                "earlier run with --overwrite"
            )
        return
    if overwrite:
        if occupied and not _is_run(folder):
            raise ValueError(
                f"{folder} is not a run folder, so it is not overwritten; choose another --out"
            )
        return
    if unfinished and is_finished(folder):
        raise ValueError(
            f"{folder} holds a finished run and is not empty; choose another --out, replace it "
            "with --overwrite, or train it longer with --resume and more --train.updates"
        )
    if unfinished:
        raise ValueError(
            f"{folder} holds an unfinished run; use --resume to continue it or --overwrite to "
            "start again"
        )
    if occupied:
        raise ValueError(
            f"{folder} is not empty; choose another --out, or replace it with --overwrite"
        )


def is_finished(folder: Path) -> bool:
    """Returns whether the last run in a folder came to its end, with or without an evaluation."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        finished = read_json(folder / "summary.json").get("finished")
        if finished is not None:
            return bool(finished)
    return (folder / "metrics.json").is_file()  # of a version that did not write it


def mark_finished(folder: Path, finished: bool) -> None:
    """Writes into the summary of a run, if there is one, whether it came to its end."""
    path = folder / "summary.json"
    with contextlib.suppress(ValueError, OSError):  # none yet, or damaged
        summary = read_json(path)
        if isinstance(summary, dict):
            write_file(path, json.dumps({**summary, "finished": finished}, indent=2) + "\n")


def check_writable(folder: Path) -> None:
    """Writes a nameless file to a folder, or to where it will be created.

    Args:
        folder: The folder.

    Raises:
        OSError: If it cannot be written.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error}); choose another --out, or make room for it"
        ) from error


def clear_folder(folder: Path) -> None:
    """Removes the files of a run, and folders that are then empty."""
    for place in ("", *FOLDERS):
        for path in folder.glob(f"{place}/*" if place else "*"):
            if OUTPUTS.fullmatch(path.relative_to(folder).as_posix()):
                path.unlink()
    for name in FOLDERS:
        for path in folder.glob(name):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def write_plan(path: Path, plan: PhasePlan, schedule: Schedule) -> None:
    """Writes a phase plan as JSON, with the log-SNR of its times."""
    phases = describe_plan(plan)
    for phase, entry in zip(plan, phases, strict=True):
        values = [float(schedule.log_snr(t)) for t in (*phase.timesteps, phase.t_end)]
        entry["log_snr"] = [v if math.isfinite(v) else None for v in values]
    content = {"schedule": repr(schedule), "phases": phases}
    write_file(path, json.dumps(content, indent=2) + "\n")


def _is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run, or of one that ended before it had a plan."""
    config = folder / "config.toml"
    if config.is_file() and (folder / "plan.json").is_file():
        return True
    drafts = r"\.(config\.toml|plan\.json|\.lock\.json)\.[0-9a-f]{12}\.tmp"
    others = [path for path in folder.iterdir() if path.name not in LOCKS and path != config]
    if not all(path.is_file() and re.fullmatch(drafts, path.name) for path in others):
        return False
    if not config.exists():
        return True
    with contextlib.suppress(ValueError):  # one of the user's own may have another name for it
        return Path(str(read_toml(config)[1].get("out"))).absolute() == folder.absolute()
    return False
