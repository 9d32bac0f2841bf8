"""Students of the model hub: which files are fetched, and where they are kept."""

from __future__ import annotations

from pathlib import Path

from pdmd.extras import require
from pdmd.files import is_hub_name

__all__ = ["PATTERNS", "fetch_student"]

PATTERNS = ("student.json", "expert_*.safetensors")
"""The files of a student; no others are fetched."""


def fetch_student(name: str, revision: str | None = None) -> Path:
    """Fetches a student of the hub into the local cache; one that is there is not fetched again.

    Nothing that is fetched is run, and what its ``student.json`` names is trusted no more than
    that of a local folder (``docs/security.md``).

    Args:
        name: Its name, ``user/name``.
        revision: A branch, tag or commit; the main branch by default.

    Returns:
        The folder in the cache.

    Raises:
        ValueError: If the name is not of that form, or the hub has no student of the name.
        OSError: If the hub cannot be reached.
    """
    if not is_hub_name(name):
        raise ValueError(f"{name!r} is neither a student folder nor a name on the hub, user/name")
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        path = snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS))
    except (RepositoryNotFoundError, HFValidationError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"the hub has no student {name!r} ({first})") from error
    folder = Path(path)
    if not (folder / "student.json").is_file():
        raise ValueError(
            f"{name!r} on the hub is no student: it has no student.json; an exported pipeline is "
            "loaded by diffusers, see its card"
        )
    return folder
