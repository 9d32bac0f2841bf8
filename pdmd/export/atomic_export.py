"""Atomic exports: a folder is written completely or not at all.

An export lists its files and their digests in ``pdmd_export.json``. An existing folder is replaced
only if it contains no other files, and only once the new export is complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdmd.distillation.student_sizes import checksum
from pdmd.files import own_digest

__all__ = ["LISTING", "check_destination", "atomic_folder"]

LISTING = "pdmd_export.json"


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Checks that an export may be written to a folder.

    Args:
        folder: The folder, which need not exist.
        overwrite: Whether to replace an earlier export.

    Raises:
        ValueError: If it is a file or a URL, contains files that no export wrote or an earlier
            export without ``overwrite``, or if an export was interrupted there.
    """
    scheme = folder.parts[0] if folder.parts else ""
    if len(scheme) > 2 and scheme.endswith(":"):
        raise ValueError(f"{folder} is a URL; export to a local folder, and copy that")
    old = _sibling(folder, "replaced")
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
    draft = _sibling(folder, "partial")
    if draft.exists() and _listed(draft) is None:
        raise ValueError(f"{draft} exists and was not written by an export; move it")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    listing = draft / LISTING
    listing.write_text(json.dumps({"format": 1, "files": [LISTING]}) + "\n")
    try:
        yield draft
        files = sorted(_files(draft))
        digests = {name: checksum(draft / name) for name in files if name != LISTING}
        content: dict[str, Any] = {"format": 1, "files": files, "digests": digests}
        content["sha256"] = own_digest(content)
        listing.write_text(json.dumps(content, indent=2) + "\n")
        old = _sibling(folder, "replaced")
        replaced = folder.exists()
        if replaced:
            folder.rename(old)
        try:
            draft.rename(folder)
        except BaseException:
            if replaced:
                old.rename(folder)
            raise
        if replaced:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _sibling(folder: Path, suffix: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.{suffix}")


def _listed(folder: Path) -> set[str] | None:
    try:
        files = json.loads((folder / LISTING).read_text())["files"]
        return {str(name) for name in files}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
