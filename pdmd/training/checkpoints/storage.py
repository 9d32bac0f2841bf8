"""Storage: torch's Distributed Checkpoint, with a manifest.

Digests are computed while the files are written, so nothing is read back. This is correct because
the writer is sequential: a stream being written raises on a seek. Importing this module loads
``torch.distributed.checkpoint``.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from pdmd.files import FileDigest, is_local
from pdmd.training.checkpoints.folders import Folders
from pdmd.training.checkpoints.manifest import METADATA, Manifest
from pdmd.training.checkpoints.metadata import parse_metadata

if TYPE_CHECKING:
    from os import PathLike

    from fsspec import AbstractFileSystem

__all__ = ["ManifestReader", "ManifestWriter", "read_metadata"]


class DigestingStream(io.RawIOBase):
    """A stream that digests what is written through it.

    It keeps its first error: torch's archive writer continues after one, and raises another that
    hides it.

    Args:
        stream: Where the bytes go, open for writing.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.size, self.sha256 = stream, 0, hashlib.sha256()
        self.error: BaseException | None = None

    @property
    def digest(self) -> FileDigest:
        """The digest of the bytes written so far."""
        return FileDigest(self.size, self.sha256.hexdigest())

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.error is not None:
            raise self.error
        with memoryview(data).cast("B") as view:
            try:
                self.stream.write(view)
            except BaseException as error:
                self.error = error
                raise
            self.sha256.update(view)
            self.size += len(view)
            return len(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        if not self.stream.closed:
            self.stream.flush()

    def fileno(self) -> int:
        self.flush()
        return self.stream.fileno()

    def close(self) -> None:
        self.stream.close()


class DigestingFileSystem(FileSystem):
    """DCP's view of a file system, with the digest of every file written through it.

    Args:
        fs: The file system.
    """

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.fs = fs
        self.digests: dict[str, FileDigest] = {}

    @contextmanager
    def create_stream(
        self, path: str | PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as stream:
            if mode == "rb":
                yield stream
                return
            digesting = DigestingStream(stream)
            try:
                yield digesting
            except BaseException:
                if digesting.error is not None:
                    raise digesting.error from None
                raise
        self.digests[posixpath.basename(path)] = digesting.digest

    def mkdir(self, path: str | PathLike[str]) -> None:
        """Does nothing: the folder exists, and creating it could create a bucket."""

    def rename(self, path: str | PathLike[str], new_path: str | PathLike[str]) -> None:
        super().rename(path, new_path)
        digest = self.digests.pop(posixpath.basename(path))
        self.digests[posixpath.basename(new_path)] = digest


class Written(list[WriteResult]):
    """DCP's results of one rank's writes, with the digests of its files."""

    digests: Mapping[str, FileDigest]


class ManifestWriter(FsspecWriter):
    """Writes tensors by DCP and, last, the manifest.

    Args:
        fs: The file system.
        folder: The checkpoint's folder in it.
        name: The checkpoint.
        content: Its JSON content; that of rank 0 is written.
    """

    def __init__(
        self, fs: AbstractFileSystem, folder: str, name: str, content: Mapping[str, Any]
    ) -> None:
        # Syncing files that aren't local would sync every disk of the machine.
        super().__init__(folder, sync_files=is_local(fs))
        self.digesting = DigestingFileSystem(fs)
        self.fs, self.path = self.digesting, folder
        self.backend, self.name, self.content = fs, name, content

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _plain_errors():
            written = Written(super().write_data(plan, planner).wait())
        written.digests = self.digesting.digests
        future: Future[list[WriteResult]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with _plain_errors():
            super().finish(metadata, results)
            files = {METADATA: self.digesting.digests[METADATA]}
            for written in results:
                assert isinstance(written, Written)
                files |= written.digests
            manifest = Manifest(self.name, self.content, dict(sorted(files.items())))
            manifest.commit(self.backend, self.path)


class ManifestReader(FsspecReader):
    """Reads tensors by DCP, with metadata that was read before.

    Args:
        fs: The file system.
        folder: The checkpoint's folder in it.
        metadata: The checkpoint's metadata, from :func:`read_metadata`.
    """

    def __init__(self, fs: AbstractFileSystem, folder: str, metadata: Metadata) -> None:
        super().__init__(folder)
        self.fs, self.path, self.metadata = DigestingFileSystem(fs), folder, metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


def read_metadata(folders: Folders, manifest: Manifest) -> Metadata | str:
    """Reads DCP's metadata, if its bytes are those of the manifest and index tensors alone.

    Returns:
        The metadata, or a description of the damage to its file.
    """
    with folders.telling(f"the checkpoint {manifest.name} could not be read"):
        try:
            data = folders.fs.cat_file(folders.path(manifest.name, METADATA))
        except FileNotFoundError:
            return "is missing"
        damage = manifest.files[METADATA].damage(FileDigest.of(data))
    if damage is not None:
        return damage
    try:
        return parse_metadata(data, manifest.files)
    except ValueError as error:
        return str(error)


@contextmanager
def _plain_errors() -> Generator[None, None, None]:
    # DCP pickles errors to send them between ranks, which fails for some libraries' errors.
    try:
        yield
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
