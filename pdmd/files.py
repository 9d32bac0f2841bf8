"""Files on any fsspec file system: digests and atomic writes.

Credentials and endpoints are those of the backend, or of fsspec's configuration.
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
    """Returns the file system of a URL, and the path on it without a trailing slash.

    Raises:
        ValueError: If fsspec has no file system for the URL, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"{url} needs a package that is not installed ({error}); install it, for s3:// by "
            "`pip install 'pdmd[s3]'`"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{url} is on an unknown file system ({error}); give a path, or a URL such "
            "as s3://bucket/run"
        ) from error
    return fs, root.rstrip("/")


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of a file.

    Args:
        size: Size in bytes.
        sha256: The digest, in hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def read(cls, fs: AbstractFileSystem, path: str) -> FileDigest:
        """Digests a file, read in chunks."""
        sha256, size = hashlib.sha256(), 0
        with cast(IO[bytes], fs.open(path, "rb")) as stream:
            while piece := stream.read(CHUNK):
                sha256.update(piece)
                size += len(piece)
        return cls(size, sha256.hexdigest())

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        """Digests bytes in memory."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def damage(self, found: FileDigest) -> str | None:
        """Describes how ``found`` differs from this digest; ``None`` if it does not."""
        if found.size < self.size:
            return f"is truncated to {found.size} of {self.size} bytes"
        if found.size > self.size:
            return f"has {found.size} bytes instead of {self.size}"
        if found.sha256 != self.sha256:
            return "does not match its SHA-256"
        return None

    def damage_at(self, fs: AbstractFileSystem, path: str) -> str | None:
        """Describes the damage of the file at ``path``; ``None`` if it is intact.

        A file whose size differs is not read.
        """
        try:
            size = int(fs.info(path)["size"])
            found = FileDigest(size, "") if size != self.size else FileDigest.read(fs, path)
        except FileNotFoundError:
            return "is missing"
        return self.damage(found)


def own_digest(body: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON values, independent of the order of keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def put(fs: AbstractFileSystem, path: str, data: bytes = b"") -> None:
    """Writes a file; creates missing folders, but never a bucket."""
    try:
        fs.pipe_file(path, data)
    except FileNotFoundError:
        if not fs.exists(path.split("/", 1)[0] or "/"):
            raise
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(path, data)


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Writes a file atomically, into a folder that exists.

    On a local file system, the file is durable (fsync) when this returns.
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
    """Returns whether the file system is local, so that files can be fsynced."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


@contextmanager
def telling(url: str, what: str) -> Generator[None, None, None]:
    """Wraps any error of a file system in an ``OSError`` that names the URL.

    Args:
        url: The URL, for the message.
        what: The operation that failed, for the message.

    Raises:
        OSError: From any error other than a ``ValueError``.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise OSError(f"{url}: {what} ({say(error)})") from error


def say(error: Exception) -> str:
    """Formats an error for parentheses; with its class, unless it is a plain ``OSError``."""
    return str(error) if type(error) is OSError else f"{type(error).__name__}: {error}"
