"""Atomic exports: a folder is written completely or not at all.

An export lists its files and their digests in ``pdmd_export.json``. An existing folder is replaced
only if it contains no other files, and only once the new export is complete. Until then it is a
draft beside the folder, with a name of its own and a lock, so that two exports never mix.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdmd.distillation.student_sizes import checksum
from pdmd.files import own_digest
from pdmd.locks import LOCKS, Lock

__all__ = ["LISTING", "check_destination", "atomic_folder"]

LISTING = "pdmd_export.json"


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Checks that an export may be written to a folder.

    Args:
        folder: The folder, which need not exist.
        overwrite: Whether to replace an earlier export.

    Raises:
        ValueError: If it is a file or a URL, contains files that no export wrote or an earlier
            export without ``overwrite``, or if an export is written there or was interrupted.
    """
    scheme = folder.parts[0] if folder.parts else ""
    if len(scheme) > 2 and scheme.endswith(":"):
        raise ValueError(f"{folder} is a URL; export to a local folder, and copy that")
    for draft in _drafts(folder):
        _lock(draft, folder).check()
    _check_content(folder, overwrite=overwrite)


@contextlib.contextmanager
def atomic_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder, which is moved to ``folder`` if the block succeeds.

    Args:
        folder: The folder of the export.
        overwrite: Whether to replace an earlier export.

    Raises:
        ValueError: As in :func:`check_destination`.
    """
    check_destination(folder, overwrite=overwrite)
    folder = folder.resolve()
    for stale in _drafts(folder):  # of exports that were killed
        with _lock(stale, folder):
            shutil.rmtree(stale, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    draft.mkdir(parents=True)
    try:
        with _lock(draft, folder):
            yield draft
            _write_listing(draft)
            _check_content(folder, overwrite=overwrite)  # another may have been written meanwhile
            _place(draft, folder, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _check_content(folder: Path, *, overwrite: bool) -> None:
    old = _replaced(folder)
    if old.exists():
        raise ValueError(f"{old} was left by an interrupted export; move or remove it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder")
    present = _files(folder) if folder.exists() else set()
    if not present:
        return
    ours = _listed(folder)
    if ours is None:
        raise ValueError(
            f"{folder} is not empty and was not written by an export, so it is not replaced; "
            "choose another folder"
        )
    foreign = sorted(present - ours)
    if foreign:
        raise ValueError(
            f"{folder} contains {foreign[0]}, which no export wrote, so it is not replaced; "
            "move that file or choose another folder"
        )
    if not overwrite:
        raise ValueError(f"{folder} contains an export; choose another folder or pass --overwrite")


def _write_listing(draft: Path) -> None:
    files = sorted(_files(draft) | {LISTING})
    digests = {name: checksum(draft / name) for name in files if name != LISTING}
    content: dict[str, Any] = {"format": 1, "files": files, "digests": digests}
    content["sha256"] = own_digest(content)
    (draft / LISTING).write_text(json.dumps(content, indent=2) + "\n")


def _place(draft: Path, folder: Path, *, overwrite: bool) -> None:
    """Moves a draft to its folder, and removes the export that it replaces."""
    old, replaced = _replaced(folder), overwrite and folder.exists()
    if replaced:
        folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        if replaced:
            old.rename(folder)
        raise
    for name in LOCKS:  # held until here
        (folder / name).unlink(missing_ok=True)
    if replaced:
        shutil.rmtree(old)


def _replaced(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.replaced")


def _drafts(folder: Path) -> list[Path]:
    """Returns the drafts of exports to a folder, those being written and those that were left."""
    folder = folder.resolve()
    name = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{12}}\.partial")
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [p for p in beside if name.fullmatch(p.name) and (p / LOCKS[1]).exists()]


def _lock(draft: Path, folder: Path) -> Lock:
    return Lock(folder, draft / LOCKS[0])


def _listed(folder: Path) -> set[str] | None:
    try:
        files = json.loads((folder / LISTING).read_text())["files"]
        return {str(name) for name in files}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _files(folder: Path) -> set[str]:
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    return found - {*LOCKS}
