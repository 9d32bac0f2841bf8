"""Manifests: the files and JSON content of a checkpoint.

A manifest lists every file of the folder with its size and SHA-256, and contains the checkpoint's
JSON content. It is written last, so a folder is a whole checkpoint if and only if its manifest is
valid. It contains the digest of its own text, so damage to the manifest is detected too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pdmd.files import FileDigest, own_digest, write_whole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["MANIFEST", "METADATA", "DamagedCheckpoint", "Manifest"]

FORMAT = 1
MANIFEST = "manifest.json"
METADATA = ".metadata"


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written.

    Args:
        url: The store.
        name: The checkpoint.
        file: The damaged file.
        damage: Description of the damage.
        before: The newest earlier checkpoint that is whole, if any.
    """

    def __init__(
        self, url: str, name: str, file: str, damage: str, before: str | None = None
    ) -> None:
        super().__init__(url, name, file, damage, before)
        self.url, self.name, self.file, self.damage, self.before = url, name, file, damage, before

    def __str__(self) -> str:
        remedy = (
            f"the one before it that is whole is {self.before}: go on from there"
            if self.before is not None
            else "there is no whole one before it: start again"
        )
        return (
            f"the checkpoint {self.name} in {self.url} is damaged: {self.file} {self.damage}; "
            f"{remedy}"
        )


@dataclass(frozen=True)
class Manifest:
    """The name, content and files of one checkpoint.

    Args:
        name: The checkpoint, which is also its folder.
        content: JSON values.
        files: The digest of every file of the folder except the manifest.
    """

    name: str
    content: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, FileDigest] = field(repr=False)

    def dumps(self) -> bytes:
        """Returns the manifest as JSON text with its own digest."""
        files = {name: asdict(digest) for name, digest in self.files.items()}
        body = {
            "format": FORMAT,
            "name": self.name,
            "content": dict(self.content),
            "files": files,
        }
        return json.dumps({**body, "sha256": own_digest(body)}, indent=1).encode()

    @classmethod
    def read(cls, fs: AbstractFileSystem, folder: str, url: str) -> Manifest:
        """Reads a folder's manifest.

        Args:
            fs: The file system.
            folder: The checkpoint's folder in it.
            url: The store, for error messages.

        Raises:
            DamagedCheckpoint: If the manifest is missing or not what was written.
            ValueError: If another version of pdmd wrote it.
        """
        name = os.path.basename(folder)
        try:
            body = json.loads(fs.cat_file(f"{folder}/{MANIFEST}"))
            if body.pop("sha256") != own_digest(body):
                raise DamagedCheckpoint(url, name, MANIFEST, "holds other bytes than were written")
            if body["format"] != FORMAT:
                raise ValueError(
                    f"the checkpoint {name} in {url} has format {body['format']}, and this "
                    f"version of pdmd reads {FORMAT}; read it with the version that wrote it"
                )
            files = {name: FileDigest(**digest) for name, digest in body["files"].items()}
            if METADATA not in files or not isinstance(body["content"], dict):
                raise KeyError(METADATA)
            for file, digest in files.items():
                if "/" in file or type(digest.size) is not int or type(digest.sha256) is not str:
                    raise KeyError(file)
            return cls(body["name"], body["content"], files)
        except FileNotFoundError:
            raise DamagedCheckpoint(url, name, MANIFEST, "is missing") from None
        except (
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            raise DamagedCheckpoint(url, name, MANIFEST, "is not a manifest") from None

    def commit(self, fs: AbstractFileSystem, folder: str) -> None:
        """Writes the manifest into its folder atomically.

        On a local file system, it survives a power loss once this returns.
        """
        write_whole(fs, f"{folder}/{MANIFEST}", self.dumps())
