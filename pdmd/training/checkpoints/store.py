"""Stores: checkpoints on any file system, written by one process or by many ranks.

A store is a folder, and a checkpoint a folder in it: the files of torch's Distributed Checkpoint
(DCP), which stores the tensors and reshards them for any number of ranks, and a manifest with
everything else. The manifest is written last and removed first, so at any moment a folder with a
valid manifest is a whole checkpoint, and a run that is killed leaves the previous one.

It is kept at a path or a URL of :data:`pdmd.files.PROTOCOLS` that can be written: ``file://``,
``s3://bucket/run`` (with the package's ``s3`` extra), ``gs://``, ``az://``, ``hf://``. Credentials
and endpoints come from where the backend looks for them: for S3 the usual ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, and ``AWS_ENDPOINT_URL`` for a server other than
Amazon's; or fsspec's own configuration. Each run needs a store of its own.

DCP keeps its index of tensors as a pickle. It is read by an unpickler that knows DCP's own classes
and nothing else (:mod:`.metadata`), so that a checkpoint of someone else runs no code; that its
numbers are those of a training is for whoever loads it to know.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from pdmd.training.checkpoints.folders import Folders
from pdmd.training.checkpoints.manifest import METADATA, DamagedCheckpoint, Manifest
from pdmd.training.checkpoints.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.api import CheckpointException

__all__ = ["DamagedCheckpoint", "Store"]

T = TypeVar("T")


class Store:
    """Keeps the newest checkpoints of a run.

    All ranks of a process group create the store and call its methods together; rank 0 decides for
    all. Tensors may have different names on different ranks, or be sharded (DTensors); a plain
    tensor under the same name on several ranks must be equal on all of them, and is stored once.

    Args:
        url: The folder, a path or URL (:data:`pdmd.files.PROTOCOLS`).
        keep: How many checkpoints to keep.
        asynchronous: Whether :meth:`save` returns once tensors are copied to CPU memory, and
            writes in the background; one save at a time, the next waits.
        process_group: The ranks that share the store; by default all, or this process alone where
            ``torch.distributed`` is not in use.
        probe: Whether to :meth:`check` at once that the folder can be written.

    Raises:
        ValueError: If ``keep`` is below 1, or checkpoints can't be kept at this URL, see
            :meth:`check`.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        keep: int = 2,
        asynchronous: bool = False,
        process_group: ProcessGroup | None = None,
        probe: bool = True,
    ) -> None:
        if keep < 1:
            raise ValueError(f"a store keeps 1 or more checkpoints, got keep = {keep}")
        self.url, self.keep = str(url), keep
        self._folders = Folders(self.url)
        self._ranks = Ranks(process_group)
        self._executor = ThreadPoolExecutor(1, "pdmd-store") if asynchronous else None
        self._pending: Future[None] | None = None
        if probe:
            self.check()

    def within(self, folder: str) -> Store:
        """Returns a store in a folder of this one, of the same ranks, which keeps all it holds.

        The two share the ranks' connections: neither is used while the other saves in the
        background.

        Args:
            folder: The folder's name, which no checkpoint has.
        """
        inner = copy.copy(self)
        inner.url = f"{self.url.rstrip('/')}/{folder}"
        inner._folders = Folders(inner.url)
        inner.keep, inner._executor, inner._pending = sys.maxsize, None, None
        return inner

    def check(self) -> None:
        """Writes a small file, looks for it from every rank, and removes it.

        Raises:
            ValueError: If the URL can't be reached or written, or a rank doesn't see the file.
        """
        self._settle()
        probe = self._ranks.first(self._folders.probe)
        seen = self._ranks.each(lambda: self._folders.sees(probe))
        self._ranks.first(lambda: self._folders.remove_probe(probe))
        if not all(seen):
            raise ValueError(
                f"rank {seen.index(False)} does not see what rank 0 wrote to {self.url}; ranks "
                "need a file system that all of them share"
            )

    def save(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Writes a checkpoint, then removes the oldest ones beyond ``keep``.

        Args:
            name: Must sort after earlier names, like a number with leading zeros.
            tensors: Tensors and DTensors of any shape and dtype.
            content: JSON values for everything else; those of rank 0 are stored.

        Raises:
            ValueError: If the name is invalid or does not sort after the newest checkpoint's, a
                value is not a tensor, or the content is not JSON.
            OSError: If writing fails, here or in the previous asynchronous save. Earlier
                checkpoints are untouched, and a later save may succeed.
        """
        self.wait()
        self._ranks.each(lambda: _check_tensors(name, tensors))
        content = self._ranks.first(lambda: _as_json(name, content))
        self._ranks.first(lambda: self._folders.begin(name))
        plain = {key: value.detach() for key, value in tensors.items()}
        if self._executor is None:
            self._write(name, plain, content)
        else:
            staged: dict[str, Tensor] = {}
            self._ranks.each(lambda: staged.update(_stage(plain)))
            self._pending = self._executor.submit(self._write, name, staged, content)

    def names(self) -> list[str]:
        """Lists the whole checkpoints, oldest first, after waiting for a pending save."""
        return list(self._whole())

    def latest(self) -> str | None:
        """The newest whole checkpoint."""
        return next(reversed(self.names()), None)

    def on_first(self, act: Callable[[], T]) -> T:
        """Calls a function on the first rank, and returns its result, or raises its error, on all.

        Args:
            act: The function; what it returns can be pickled.
        """
        return self._ranks.first(act)

    def sees_whole(self) -> bool:
        """Returns whether this rank sees a whole checkpoint, without communication."""
        return bool(self._folders.scan()[0])

    def content(self, name: str) -> dict[str, Any]:
        """Reads a checkpoint's JSON content.

        Raises:
            ValueError: If there is no such checkpoint.
            DamagedCheckpoint: If its manifest is damaged.
        """
        return dict(self._manifest(name).content)

    def digest(self, name: str) -> str:
        """Returns the SHA-256 of a checkpoint's manifest, and so of all that it holds.

        Raises:
            ValueError: If there is no such checkpoint.
            DamagedCheckpoint: If its manifest is damaged.
        """
        return hashlib.sha256(self._manifest(name).dumps()).hexdigest()

    def verify(self, name: str) -> None:
        """Verifies the digest of every file of a checkpoint, split between ranks.

        Raises:
            ValueError: If there is no such checkpoint.
            DamagedCheckpoint: If a file is missing or has another digest.
        """
        found = self._damage(self._manifest(name))
        if found is not None:
            raise DamagedCheckpoint(self.url, name, *found, before=self.whole_before(name))

    def load(self, name: str, tensors: Mapping[str, Tensor], *, partial: bool = False) -> None:
        """Reads a checkpoint's tensors into given ones, in place.

        Tensors may be sharded in another way than when they were saved, or not at all. Files are
        not verified first; see :meth:`verify`.

        Args:
            name: The checkpoint.
            tensors: All of the checkpoint's tensors, over all ranks.
            partial: Whether a subset of them is accepted.

        Raises:
            ValueError: If there is no such checkpoint, or names, shapes and dtypes are not the
                checkpoint's; nothing has been read then.
            DamagedCheckpoint: If a file that is needed is damaged.
            OSError: If reading fails otherwise.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        from pdmd.training.checkpoints.storage import ManifestReader, read_metadata

        manifest, folders = self._manifest(name), self._folders
        metadata = self._ranks.first(lambda: read_metadata(folders, manifest))
        if isinstance(metadata, str):
            raise DamagedCheckpoint(
                self.url, name, METADATA, metadata, before=self.whole_before(name)
            )
        stored = {
            key: (tuple(entry.size), entry.properties.dtype)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        requested = set().union(*self._ranks.each(lambda: list(tensors)))
        requested |= stored.keys() if partial else set()
        self._ranks.each(lambda: self._check_fit(name, stored, tensors, requested))
        try:
            load(
                {key: value.detach() for key, value in tensors.items()},
                storage_reader=ManifestReader(folders.fs, folders.path(name), metadata),
                planner=DefaultLoadPlanner(flatten_state_dict=False),
                **self._ranks.for_dcp(),
            )
        except CheckpointException as error:
            cause = _cause(error)
            if not isinstance(cause, Exception):
                raise cause from None
            self.verify(name)
            with folders.telling(f"the checkpoint {name} could not be read"):
                raise cause from None

    def wait(self) -> None:
        """Returns once an asynchronous save is whole.

        Raises:
            OSError: If it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def remove(self, name: str) -> None:
        """Removes one checkpoint, for example a damaged one, so that its name may be reused.

        Raises:
            ValueError: If there is no such checkpoint.
        """
        self._settle()
        self._ranks.first(lambda: self._folders.discard(name))

    def clear(self) -> None:
        """Removes every checkpoint and the leftovers of interrupted saves; nothing else."""
        self._settle()
        self._ranks.first(self._folders.clear)

    def remove_folder(self) -> None:
        """Removes the store's folder, if it is there and empty."""
        self._ranks.first(self._folders.remove_root)

    def _write(self, name: str, tensors: dict[str, Tensor], content: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
        from torch.distributed.checkpoint.state_dict_saver import save

        from pdmd.training.checkpoints.storage import ManifestWriter

        folders = self._folders
        try:
            save(
                tensors,
                storage_writer=ManifestWriter(folders.fs, folders.path(name), name, content),
                planner=DefaultSavePlanner(flatten_state_dict=False),
                **self._ranks.for_dcp(),
            )
        except CheckpointException as error:  # anything else is not the file system's fault
            if isinstance(_cause(error), Exception):  # frees its space, if it can
                with suppress(ValueError, OSError):
                    self._ranks.first(lambda: folders.discard(name))
            with folders.telling(f"the checkpoint {name} could not be written"):
                raise _cause(error) from None
        self._ranks.first(lambda: folders.prune(self.keep))

    def _settle(self) -> None:
        if self._pending is not None:
            wait([self._pending])

    def _whole(self) -> dict[str, Manifest]:
        self._settle()
        return self._ranks.first(lambda: self._folders.scan()[0])

    def _manifest(self, name: str) -> Manifest:
        self._settle()
        try:
            return self._ranks.first(lambda: self._folders.read(name))
        except DamagedCheckpoint as error:
            before = self.whole_before(name)
            raise DamagedCheckpoint(self.url, name, error.file, error.damage, before) from None

    def _damage(self, manifest: Manifest) -> tuple[str, str] | None:
        """Returns a damaged file and its damage, if any; files are split between ranks."""
        share = sorted(manifest.files.items())[self._ranks.rank :: self._ranks.size]
        parts = self._ranks.each(lambda: self._folders.damages(manifest.name, share))
        return min((damage for part in parts for damage in part), default=None)

    def whole_before(self, name: str) -> str | None:
        """Returns the newest checkpoint before this one whose files are whole, if any."""
        for earlier, manifest in reversed(self._whole().items()):
            if earlier < name and self._damage(manifest) is None:
                return earlier
        return None

    def _check_fit(
        self,
        name: str,
        stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        tensors: Mapping[str, Tensor],
        requested: set[str],
    ) -> None:
        here = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
        found = {
            "not in the checkpoint": sorted(tensors.keys() - stored.keys()),
            "in the checkpoint but not requested": sorted(stored.keys() - requested),
            "different": [
                f"{key} (there {_describe(stored[key])}, here {_describe(given)})"
                for key, given in here.items()
                if key in stored and stored[key] != given
            ],
            "on the meta device": [key for key, value in tensors.items() if value.is_meta],
        }
        faults = [
            f"{what}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if keys[3:] else "")
            for what, keys in found.items()
            if keys
        ]
        if faults:
            raise ValueError(
                f"the checkpoint {name} in {self.url} doesn't fit these tensors; "
                f"{'; '.join(faults)}; load it with the settings it was saved with"
            )


def _describe(form: tuple[tuple[int, ...], torch.dtype]) -> str:
    shape, dtype = form
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _as_json(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(content)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the content of the checkpoint {name} is not JSON ({error}); tensors go beside it"
        ) from error


def _check_tensors(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or value.is_meta:
            kind = "on the meta device" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the checkpoint {name} requires tensors that have values, and {key!r} is {kind}; "
                "what is not a tensor goes into the content"
            )


def _stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors to CPU memory."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    staged = stager.stage(dict(tensors))
    stager.close()
    return cast(dict[str, Tensor], staged)


def _cause(error: CheckpointException) -> BaseException:
    """The lowest rank's error: DCP's own is no Exception, and may hide an interruption."""
    return min(error.failures.items())[1][0]
