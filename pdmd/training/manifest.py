"""Manifests: what a checkpoint's folder must hold for the checkpoint to be whole.

A manifest names every file of the folder with its size and SHA-256, and carries the checkpoint's
JSON content. It is written last, so that a folder with a valid manifest is a whole checkpoint and
any other is not. It holds the digest of its own text too: a manifest that was damaged says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["MANIFEST", "METADATA", "DamagedCheckpoint", "FileDigest", "Manifest", "is_local"]

FORMAT = 1
MANIFEST = "manifest.json"
METADATA = ".metadata"
CHUNK = 1 << 22


class DamagedCheckpoint(ValueError):
    """A checkpoint is not what was written.

    Args:
        url: The store it is in.
        name: The checkpoint.
        file: The file at fault.
        damage: What is wrong with it.
        before: The newest checkpoint before it that is whole, if there is one.
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
class FileDigest:
    """A file's size and SHA-256.

    Args:
        size: Bytes.
        sha256: In hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def read(cls, fs: AbstractFileSystem, path: str) -> FileDigest:
        """Reads a file through, a piece at a time."""
        sha256, size = hashlib.sha256(), 0
        with cast(IO[bytes], fs.open(path, "rb")) as stream:
            while piece := stream.read(CHUNK):
                sha256.update(piece)
                size += len(piece)
        return cls(size, sha256.hexdigest())

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        """Digests bytes at hand."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def damage(self, found: FileDigest) -> str | None:
        """Says what sets the file that was found apart from this one."""
        if found.size < self.size:
            return f"is truncated to {found.size} of {self.size} bytes"
        if found.size > self.size:
            return f"holds {found.size} bytes instead of {self.size}"
        if found.sha256 != self.sha256:
            return "holds other bytes than were written"
        return None

    def damage_at(self, fs: AbstractFileSystem, path: str) -> str | None:
        """Says what is wrong with the file at a path; one of another size isn't read through."""
        try:
            size = int(fs.info(path)["size"])
            found = FileDigest(size, "") if size != self.size else FileDigest.read(fs, path)
        except FileNotFoundError:
            return "is missing"
        return self.damage(found)


@dataclass(frozen=True)
class Manifest:
    """The name, content and files of one checkpoint.

    Args:
        name: The checkpoint, which is also its folder.
        content: JSON values.
        files: The digest of every file of the folder but the manifest.
    """

    name: str
    content: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, FileDigest] = field(repr=False)

    def dumps(self) -> bytes:
        """Writes the manifest as JSON text that holds its own digest."""
        files = {name: asdict(digest) for name, digest in self.files.items()}
        body = {
            "format": FORMAT,
            "name": self.name,
            "content": dict(self.content),
            "files": files,
        }
        return json.dumps({**body, "sha256": _own_digest(body)}, indent=1).encode()

    @classmethod
    def read(cls, fs: AbstractFileSystem, folder: str, url: str) -> Manifest:
        """Reads a folder's manifest.

        Args:
            fs: The file system.
            folder: The checkpoint's folder in it.
            url: The store, for what an error says.

        Raises:
            DamagedCheckpoint: If the manifest is missing or not what was written.
            ValueError: If another version of pdmd wrote it.
        """
        name = os.path.basename(folder)
        try:
            body = json.loads(fs.cat_file(f"{folder}/{MANIFEST}"))
            if body.pop("sha256") != _own_digest(body):
                raise DamagedCheckpoint(url, name, MANIFEST, "holds other bytes than were written")
            if body["format"] != FORMAT:
                raise ValueError(
                    f"the checkpoint {name} in {url} has format {body['format']}, and this "
                    f"version of pdmd reads {FORMAT}; read it with the version that wrote it"
                )
            files = {name: FileDigest(**digest) for name, digest in body["files"].items()}
            return cls(body["name"], body["content"], files)
        except FileNotFoundError:
            raise DamagedCheckpoint(url, name, MANIFEST, "is missing") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise DamagedCheckpoint(url, name, MANIFEST, "is not a manifest") from None

    def commit(self, fs: AbstractFileSystem, folder: str) -> None:
        """Writes the manifest into its folder: there whole from one moment to the next.

        Where the file system is local, it outlasts a loss of power once this returns.
        """
        path = f"{folder}/{MANIFEST}"
        with cast(IO[bytes], fs.open(f"{path}.tmp", "wb")) as stream:
            stream.write(self.dumps())
            if is_local(fs):
                stream.flush()
                os.fsync(stream.fileno())
        fs.mv(f"{path}.tmp", path)
        if is_local(fs):
            for place in (folder, os.path.dirname(folder)):
                descriptor = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def is_local(fs: AbstractFileSystem) -> bool:
    """Says whether files can be forced to the disk."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def _own_digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
