"""Folders: the checkpoints of a store on a file system, as one process sees them.

Beside DCP's files and the manifest, a checkpoint's folder contains a marker file, created first
and removed last. It distinguishes the leftovers of an interrupted save or removal, which may be
deleted, from folders that the store did not create.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, suppress

from pdmd.files import FileDigest, locate, put, say, telling
from pdmd.training.checkpoints.manifest import MANIFEST, DamagedCheckpoint, Manifest

__all__ = ["Folders"]

MARK = ".pdmd"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Folders:
    """The folders of a store.

    Args:
        url: The store.

    Raises:
        ValueError: If no file system is known for the URL, or a package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.root = locate(url, writing=True)

    def path(self, name: str, file: str | None = None) -> str:
        """The path of a checkpoint's folder, or of a file in it."""
        return f"{self.root}/{name}" if file is None else f"{self.root}/{name}/{file}"

    def probe(self) -> str:
        """Writes a small file and returns its name."""
        name = f".probe-{uuid.uuid4().hex}"
        with self._reaching():
            put(self.fs, self.path(name))
        return name

    def sees(self, name: str) -> bool:
        """Returns whether a probe exists."""
        with self._reaching():
            return self._exists(self.path(name))

    def remove_probe(self, name: str) -> None:
        """Removes a probe."""
        with self._reaching():
            self.fs.rm(self.path(name))

    def scan(self) -> tuple[dict[str, Manifest], list[str]]:
        """Lists the whole checkpoints, oldest first, and the leftovers of interrupted saves."""
        whole: dict[str, Manifest] = {}
        leftovers: list[str] = []
        with self.telling("checkpoints could not be listed"):
            self.fs.invalidate_cache()
            try:
                entries = self.fs.ls(self.root or "/", detail=True)
            except FileNotFoundError:
                return whole, leftovers
            folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
            for name in sorted(folder.rstrip("/").rsplit("/", 1)[-1] for folder in folders):
                try:
                    manifest = Manifest.read(self.fs, self.path(name), self.url)
                    if manifest.name == name:  # otherwise a copy that the store did not create
                        whole[name] = manifest
                except DamagedCheckpoint:
                    if self.fs.exists(self.path(name, MARK)):
                        leftovers.append(name)
        return whole, leftovers

    def read(self, name: str) -> Manifest:
        """Reads a checkpoint's manifest.

        Raises:
            ValueError: If there is no such checkpoint.
            DamagedCheckpoint: If the manifest is not what was written.
        """
        with self.telling(f"the checkpoint {name} could not be read"):
            self._require(name)
            manifest = Manifest.read(self.fs, self.path(name), self.url)
        if manifest.name != name:
            raise DamagedCheckpoint(self.url, name, MANIFEST, f"is that of {manifest.name}")
        return manifest

    def damages(self, name: str, files: Iterable[tuple[str, FileDigest]]) -> list[tuple[str, str]]:
        """Lists the damaged files of a checkpoint, each with a description of the damage."""
        with self.telling(f"the checkpoint {name} could not be read"):
            self.fs.invalidate_cache()
            checked = [(f, digest.damage_at(self.fs, self.path(name, f))) for f, digest in files]
        return [(file, damage) for file, damage in checked if damage is not None]

    def begin(self, name: str) -> None:
        """Prepares the folder of a checkpoint, whose name must sort after all whole ones.

        Raises:
            ValueError: If it does not, the name is invalid, or the folder contains other files.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                "a checkpoint's name is letters, digits, dots, dashes and underscores and begins "
                f"with a letter or digit; got {name!r}"
            )
        with self.telling(f"the checkpoint {name} could not be written"):
            whole, leftovers = self.scan()
            newest = next(reversed(whole), None)
            if newest is not None and name <= newest:
                raise ValueError(
                    f"the checkpoint {name} doesn't come after {newest}, the newest in "
                    f"{self.url}; names must sort in time: remove what comes after, or use "
                    "another store"
                )
            for leftover in leftovers:
                self.remove(leftover)
            if self._exists(self.path(name)) and self.fs.ls(self.path(name)):
                raise ValueError(
                    f"{self.url} has a folder {name} that is not a checkpoint of this store; move "
                    "it, or use another store"
                )
            put(self.fs, self.path(name, MARK))

    def remove(self, name: str) -> None:
        """Removes a checkpoint, or the leftovers of one."""
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self.fs.rm(self.path(name, MANIFEST))
        mark = self.path(name, MARK)
        if files := [path for path in self.fs.find(self.path(name)) if path != mark]:
            self.fs.rm(files)
        with suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def discard(self, name: str) -> None:
        """Removes a checkpoint that must exist.

        Raises:
            ValueError: If there is no such checkpoint.
        """
        with self.telling(f"the checkpoint {name} could not be removed"):
            self._require(name)
            self.remove(name)

    def prune(self, keep: int) -> None:
        """Removes all whole checkpoints but the newest few."""
        with self.telling("older checkpoints could not be removed"):
            for name in list(self.scan()[0])[:-keep]:
                self.remove(name)

    def clear(self) -> None:
        """Removes every checkpoint and the leftovers of interrupted saves; nothing else."""
        with self.telling("checkpoints could not be removed"):
            for names in self.scan():
                for name in names:
                    self.remove(name)

    def remove_root(self) -> None:
        """Removes the store's own folder, if it is there and empty."""
        self.fs.invalidate_cache()
        with suppress(OSError):  # object stores have no empty folders
            if not self.fs.ls(self.root):
                self.fs.rmdir(self.root)

    def telling(self, what: str) -> AbstractContextManager[None]:
        """Turns errors of any class that file systems raise into one that names the store."""
        return telling(self.url, what)

    @contextmanager
    def _reaching(self) -> Generator[None, None, None]:
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"checkpoints can't be kept in {self.url} ({say(error)}); give a folder or "
                "bucket that is there and can be written, and check credentials and endpoint if "
                "it is remote"
            ) from error

    def _require(self, name: str) -> None:
        if not any(self._exists(self.path(name, file)) for file in (MARK, MANIFEST)):
            there = list(self.scan()[0])
            raise ValueError(f"there is no checkpoint {name!r} in {self.url}; there are {there}")

    def _exists(self, path: str) -> bool:
        self.fs.invalidate_cache()
        return self.fs.exists(path)
