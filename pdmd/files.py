"""Files: on any file system that fsspec knows, digested, and written whole or not at all.

Credentials and endpoints come from where a backend looks for them, or fsspec's own configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "FileDigest",
    "is_local",
    "locate",
    "own_digest",
    "put",
    "say",
    "telling",
    "write_whole",
]

CHUNK = 1 << 22


def locate(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it without a trailing slash.

    Raises:
        ValueError: If no file system is known for the URL, or a package for it is missing.
    """
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"{url} needs a package that is not installed ({error}); what s3:// needs comes "
            "with `pip install 'pdmd[s3]'`"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{url} is on no file system that is known ({error}); give a path, or a URL such "
            "as s3://bucket/run"
        ) from error
    return fs, root.rstrip("/")


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


def own_digest(body: Mapping[str, Any]) -> str:
    """Digests JSON values, whatever the order of their keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def put(fs: AbstractFileSystem, path: str, data: bytes = b"") -> None:
    """Writes a file; a folder is made where one is missing, but never a bucket."""
    try:
        fs.pipe_file(path, data)
    except FileNotFoundError:
        if not fs.exists(path.split("/", 1)[0] or "/"):
            raise
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Writes a file into its folder: there whole from one moment to the next.

    Where the file system is local, it outlasts a loss of power once this returns.
    """
    with cast(IO[bytes], fs.open(f"{path}.tmp", "wb")) as stream:
        stream.write(data)
        if is_local(fs):
            stream.flush()
            os.fsync(stream.fileno())
    fs.mv(f"{path}.tmp", path)
    if is_local(fs):
        folder = os.path.dirname(path)
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


@contextmanager
def telling(url: str, what: str) -> Generator[None, None, None]:
    """Turns the errors of file systems, which are of any class, into one that says where.

    Raises:
        OSError: In the place of any error but a ``ValueError``.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise OSError(f"{url}: {what} ({say(error)})") from error


def say(error: Exception) -> str:
    """Says an error in a sentence's brackets, with its class where that tells more."""
    return str(error) if type(error) is OSError else f"{type(error).__name__}: {error}"
