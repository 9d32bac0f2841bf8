"""Files: located by URL, digested, and written whole or not at all.

Every URL that reaches fsspec passes :func:`locate`, which accepts the protocols of
:data:`PROTOCOLS` and no chains (``::``): among fsspec's others are some that render templates or
unpack archives, which is to say run what a URL contains. Credentials and endpoints come from where
a backend looks for them, or fsspec's own configuration.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shlex
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from torch import Tensor

__all__ = [
    "PROTOCOLS",
    "FileDigest",
    "allow_protocol",
    "check_url",
    "is_hub_name",
    "is_local",
    "is_url",
    "local_path",
    "locate",
    "locating_only_protocols",
    "own_digest",
    "put",
    "save_tensors",
    "say",
    "shell_word",
    "telling",
    "write_file",
    "write_whole",
]

CHUNK = 1 << 22

PROTOCOLS = {
    **dict.fromkeys(("file", "local", "memory", "s3", "s3a", "gs", "gcs"), True),
    **dict.fromkeys(("az", "abfs", "abfss", "hf"), True),
    **dict.fromkeys(("http", "https"), False),
}
"""The protocols of URLs, and whether files may be written by them."""
DECOMPRESSORS = ("zip", "gzip", "bz2", "lz4", "xz", "zstd")
"""File systems within a file, which data sets are packed in."""


def allow_protocol(name: str, *, writing: bool = True) -> None:
    """Allows URLs of another protocol, one that is registered with fsspec.

    Args:
        name: The protocol, such as ``sftp``.
        writing: Whether files may be written by it.

    Raises:
        ValueError: If it is not a protocol's name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", name):
        raise ValueError(f"a protocol is a name such as 'sftp', got {name!r}")
    PROTOCOLS[name] = writing


@contextmanager
def locating_only_protocols() -> Generator[None, None, None]:
    """Hides all file systems of fsspec but those of :data:`PROTOCOLS` and its decompressors.

    For libraries that open URLs which a file of theirs names, such as the data files in the
    ``README.md`` of a data set. It holds for the process, until the block ends.
    """
    registry: Any = importlib.import_module("fsspec.registry")
    known = {*PROTOCOLS, *DECOMPRESSORS}
    tables: list[dict[str, Any]] = [registry.known_implementations, registry._registry]
    hidden = [{name: t[name] for name in t if name not in known} for t in tables]
    for table, names in zip(tables, hidden, strict=True):
        for name in names:
            del table[name]
    try:
        yield
    finally:
        for table, names in zip(tables, hidden, strict=True):
            table.update(names)


def is_url(text: str) -> bool:
    """Returns whether a text is a URL, a chain of them, or would be read as one by fsspec."""
    return bool("::" in text or re.match(r"[^/]*://|data:", text))


def check_url(url: str, *, writing: bool = False) -> None:
    """Checks that a path or URL is one of the file systems that are used.

    Args:
        url: The path or URL.
        writing: Whether files will be written there.

    Raises:
        ValueError: If it is a chain of URLs, or its protocol is not in :data:`PROTOCOLS` or only
            reads where files will be written.
    """
    if not isinstance(url, str) or not url or "\0" in url:
        raise ValueError(f"a path or URL is text, got {url!r}; give a path such as runs/a")
    shown = url if len(url) <= 100 else f"{url[:97]}..."
    if "::" in url:
        raise ValueError(
            f"{shown!r} chains file systems (::), which is not supported: a file system may run "
            "code; give a plain path or URL"
        )
    protocol = "data" if url.startswith("data:") else ""
    if "://" in url:
        protocol = url.split("://", 1)[0]
    if not protocol:
        if re.match(r"[a-z][a-z0-9+.-]+:/", url):
            raise ValueError(
                f"{shown!r} looks like a URL that lost a slash, as in a pathlib.Path; pass it as "
                "text with two"
            )
        return
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{shown} is on an unknown file system (protocol {protocol[:20]!r}; supported "
            f"are {', '.join(PROTOCOLS)}); give a path, or a URL such as s3://bucket/run (others "
            "after pdmd.files.allow_protocol)"
        )
    if writing and not PROTOCOLS[protocol]:
        raise ValueError(
            f"{shown!r} can be read but not written; give a path, or a URL such as s3://bucket/run"
        )


def local_path(path: str | Path, what: str) -> Path:
    """Returns a local path, for files that cannot be written by URL.

    Args:
        path: A path, or a URL of the protocol ``file``.
        what: What is written there, such as ``"a run"``, for the error.

    Raises:
        ValueError: If it is a URL of another protocol.
    """
    text = str(path).removeprefix("file://") if isinstance(path, str) else str(path)
    if is_url(text) or re.match(r"[a-z][a-z0-9+.-]+:/", text):  # Path("s3://b") is s3:/b
        raise ValueError(
            f"{what} is written to a local path, got {text!r}; give a path and copy it from "
            "there (checkpoints and prompt embeddings can be written to URLs)"
        )
    return Path(text)


def is_hub_name(text: str) -> bool:
    """Returns whether a text has the form of a name on the model hub, ``user/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII) is not None


def shell_word(path: str | Path) -> str:
    """Returns a path as a word of a printed command, quoted where a shell would split it."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)  # no option


def locate(url: str, *, writing: bool = False) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it without a trailing slash.

    Args:
        url: A path or URL.
        writing: Whether files will be written there.

    Raises:
        ValueError: If :func:`check_url` rejects the URL, or a package for it is missing.
    """
    from fsspec.core import url_to_fs

    check_url(url, writing=writing)
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
        """Digests a file, read in chunks.

        Raises:
            FileNotFoundError: If it is missing, or a device or pipe, which might never end.
        """
        if is_local(fs) and not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
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


def write_file(path: str | Path, data: str | bytes) -> None:
    """Writes a local file whole: what was there before stays until the new file is complete.

    The draft has a name of its own beside the file, and is removed if writing fails. What is no
    regular file, such as ``/dev/stdout``, is written to directly.

    Args:
        path: The file; its folder exists.
        data: Its content; text is encoded in UTF-8.

    Raises:
        OSError: If writing fails.
    """
    path, data = Path(path), data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    try:
        with _draft(path) as draft, draft.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:  # writing does not name the file, as on a full disk
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a local safetensors file whole, as :func:`write_file` does.

    Args:
        tensors: The tensors by name.
        path: The file; its folder exists.
        metadata: Texts for its header.

    Raises:
        OSError: If writing fails.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    try:
        with _draft(path) as draft:
            save_file(dict(tensors), draft, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # of any failure to write
        raise OSError(f"{path.name} could not be written ({error})") from error


@contextmanager
def _draft(path: Path) -> Generator[Path, None, None]:
    """Yields a path beside a file, which takes the file's place if the block succeeds."""
    draft = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


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
    """Returns an error in one line, for a sentence's brackets, with its class if it adds to it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 400 else f"{text[:399]}\u2026"
    return text if type(error) is OSError else f"{type(error).__name__}: {text}"
