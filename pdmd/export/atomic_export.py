"""Drafts: folders that appear whole or not at all, and replace only what an export wrote.

An export lists its files in ``pdmd_export.json``. A folder is replaced if it holds those and no
others; until the new one is whole, the old one stands.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LISTING", "check_place", "drafted"]

LISTING = "pdmd_export.json"


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Checks that an export may be written to a folder.

    Args:
        folder: The folder, which need not exist.
        overwrite: Whether an earlier export there may be replaced.

    Raises:
        ValueError: If it is a file or a URL, holds anything that is not to be replaced, or an
            export was interrupted there.
    """
    scheme = folder.parts[0] if folder.parts else ""
    if len(scheme) > 2 and scheme.endswith(":"):
        raise ValueError(f"{folder} is a URL; export to a local folder, and copy that")
    old = _beside(folder, "replaced")
    if old.exists():
        raise ValueError(f"{old} is what an interrupted export left; move it away")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder")
    held = _files(folder) if folder.exists() else set()
    if not held:
        return
    ours = _listed(folder)
    if ours is None:
        raise ValueError(
            f"{folder} is not empty and no export wrote it, so it is not replaced; choose another "
            "folder"
        )
    more = sorted(held - ours)
    if more:
        raise ValueError(
            f"{folder} holds {more[0]}, which no export wrote, so it is not replaced; move it "
            "away or choose another folder"
        )
    if not overwrite:
        raise ValueError(f"{folder} holds an export; choose another folder or pass --overwrite")


@contextlib.contextmanager
def drafted(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to write to, which takes its place once the block has ended well.

    Args:
        folder: Where the export goes in the end.
        overwrite: Whether an earlier export there may be replaced.

    Raises:
        ValueError: As :func:`check_place`.
    """
    check_place(folder, overwrite=overwrite)
    folder = folder.resolve()
    draft = _beside(folder, "partial")
    if draft.exists() and _listed(draft) is None:
        raise ValueError(f"{draft} is in the way; move it away")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    listing = draft / LISTING
    listing.write_text(json.dumps({"format": 1, "files": [LISTING]}) + "\n")
    try:
        yield draft
        content = {"format": 1, "files": sorted(_files(draft))}
        listing.write_text(json.dumps(content, indent=2) + "\n")
        old = _beside(folder, "replaced")
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


def _beside(folder: Path, ending: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.{ending}")


def _listed(folder: Path) -> set[str] | None:
    try:
        files = json.loads((folder / LISTING).read_text())["files"]
        return {str(name) for name in files}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
