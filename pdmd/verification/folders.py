"""Folders that pdmd writes, compared with the digests that were written with them.

Nothing in a folder is run, unpickled or built: files are digested, and the shapes of tensors
compared with the sizes of their files. That they are intact says nothing about who wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdmd.distillation.student_folders import read_description
from pdmd.documents import parse_json, read_json, read_text, read_toml
from pdmd.export.atomic_export import LISTING
from pdmd.files import FileDigest, is_local, is_url, locate, own_digest, telling
from pdmd.teachers.conditioning.embeddings.index import Index, Shard, ShardInfo, StoreFolder
from pdmd.training.checkpoints.folders import Folders
from pdmd.training.checkpoints.manifest import MANIFEST, DamagedCheckpoint
from pdmd.verification.tensors import tensor_damage

__all__ = ["Verification", "verify"]

DOCUMENTS = ("plan.json", "summary.json", "metrics.json", "calibration.json")


@dataclass
class Verification:
    """The files of a folder that were checked.

    Attributes:
        kind: What the folder is.
        checked: Number of files checked.
        faults: A line for each file that is wrong.
    """

    kind: str
    checked: int = 0
    faults: list[str] = field(default_factory=list)

    def file(self, path: str | Path, check: Callable[[], str | None]) -> None:
        """Checks a file.

        Args:
            path: The file, for the line.
            check: Returns what is wrong with it, or raises an error that says so.
        """
        self.checked += 1
        try:
            damage = check()
        except FileNotFoundError:
            damage = "is missing"
        except (ValueError, OSError) as error:
            damage = f"cannot be read ({' '.join(str(error).split())[:300]})"
        if damage:
            self.faults.append(f"{path} {damage}")

    def include(self, other: Verification) -> None:
        """Adds the files of a folder within this one."""
        self.checked += other.checked
        self.faults += other.faults


def verify(folder: str | Path) -> Verification:
    """Checks a run, a student, checkpoints, a store of embeddings or an export.

    Args:
        folder: The folder; checkpoints and stores may be at URLs.

    Returns:
        The files checked, and those that are wrong.

    Raises:
        ValueError: If it is none of these.
        OSError: If it cannot be read at all.
    """
    url = str(folder).rstrip("/")
    fs, root = locate(url)
    url = root if is_local(fs) and is_url(url) else url
    with telling(url, "it could not be read"):
        found = [name for name in KINDS if fs.exists(f"{root}/{name}")]
        below = fs.ls(root, False) if not found and fs.exists(root) else []
        checkpoints = any(fs.exists(f"{path}/{MANIFEST}") for path in below)
    for name in found:
        if KINDS[name] in REMOTE or not is_url(url):
            return KINDS[name](url)
    if checkpoints:
        return verify_checkpoints(url)
    raise ValueError(
        f"{folder} is no run, student, store of embeddings, export or folder of checkpoints; give "
        f"a folder with one of {', '.join(KINDS)}"
    )


def verify_student(folder: str) -> Verification:
    """Checks a student's folder: its description, and the weights of its experts."""
    done, path = Verification("student"), Path(folder)
    content: dict[str, Any] = {}

    def describe() -> str | None:
        content.update(read_description(path))
        return _own_damage(content)

    done.file(path / "student.json", describe)
    entries = {Path(entry["file"]).name: entry for entry in content.get("experts", [])}
    for name, entry in entries.items():
        done.file(
            path / name, lambda name=name, entry=entry: _damage(path / name, entry["sha256"])
        )
    return done


def verify_export(folder: str) -> Verification:
    """Checks an export: every file that it lists."""
    done, path = Verification("export"), Path(folder)
    content: dict[str, Any] = {}

    def listing() -> str | None:
        content.update(read_json(path / LISTING))
        return None if isinstance(content.get("files"), list) else "lists no files"

    done.file(path / LISTING, lambda: listing() or _own_damage(content))
    if done.faults:  # what it lists is not what was written
        return done
    digests = content.get("digests", {})
    for name in content.get("files", []) if isinstance(digests, dict) else []:
        if name != LISTING and isinstance(name, str) and not _outside(name):
            wanted = digests.get(name, "")
            done.file(path / name, lambda name=name, wanted=wanted: _damage(path / name, wanted))
    return done


def verify_embeddings(url: str) -> Verification:
    """Checks a store of embeddings: its index and every shard."""
    done, store = Verification("store of embeddings"), StoreFolder.of(url)
    shards: list[ShardInfo] = []

    def index() -> None:
        shards.extend(Index.read(store).shards)

    done.file(f"{url}/index.json", index)
    for number, info in enumerate(shards):
        done.file(f"{url}/{info.file}", lambda i=number, info=info: _shard_damage(store, i, info))
    return done


def verify_checkpoint(url: str) -> Verification:
    """Checks one checkpoint: its manifest, its index of tensors and its files."""
    store, _, name = url.rpartition("/")
    return _checkpoint(Folders(store or "."), name)


def verify_checkpoints(url: str) -> Verification:
    """Checks every checkpoint of a folder; the leftovers of interrupted saves are none."""
    done, folders = Verification("checkpoints"), Folders(url)
    with folders.telling("checkpoints could not be listed"):
        found = [str(path).rstrip("/").rsplit("/", 1)[-1] for path in folders.fs.ls(folders.root)]
        names = [name for name in sorted(found) if folders.fs.exists(folders.path(name, MANIFEST))]
    for name in names:
        done.include(_checkpoint(folders, name))
    return done


def verify_run(folder: str) -> Verification:
    """Checks a run: its documents, its student and its checkpoints."""
    done, path = Verification("run"), Path(folder)
    done.file(path / "config.toml", lambda: read_toml(path / "config.toml") and None)
    for name in DOCUMENTS:
        if name == "plan.json" or (path / name).exists():
            done.file(path / name, lambda name=name: read_json(path / name) and None)
    if (path / "history.jsonl").exists():
        done.file(path / "history.jsonl", lambda: _history_damage(path / "history.jsonl"))
    if (path / "summary.json").exists() or (path / "student").exists():
        done.include(verify_student(str(path / "student")))
    if (path / "checkpoint").is_dir():
        done.include(verify_checkpoints(str(path / "checkpoint")))
    return done


KINDS: Mapping[str, Callable[[str], Verification]] = {
    "student.json": verify_student,
    LISTING: verify_export,
    "config.toml": verify_run,
    MANIFEST: verify_checkpoint,
    "index.json": verify_embeddings,
}
"""How a folder is checked, by the file that tells what it is."""
REMOTE = (verify_checkpoint, verify_embeddings)


def _checkpoint(folders: Folders, name: str) -> Verification:
    from pdmd.training.checkpoints.storage import METADATA, read_metadata

    done, path = Verification("checkpoint"), f"{folders.url}/{name}"
    manifests = []

    def manifest() -> str | None:
        try:
            manifests.append(folders.read(name))
        except DamagedCheckpoint as error:
            return error.damage
        return None

    def metadata() -> str | None:
        found = read_metadata(folders, manifests[0])
        return found if isinstance(found, str) else None

    done.file(f"{path}/{MANIFEST}", manifest)
    if manifests:
        done.file(f"{path}/{METADATA}", metadata)
        files = [item for item in manifests[0].files.items() if item[0] != METADATA]
        for file, digest in files:
            done.file(
                f"{path}/{file}",
                lambda file=file, digest=digest: digest.damage_at(
                    folders.fs, folders.path(name, file)
                ),
            )
    return done


def _damage(path: Path, sha256: str) -> str | None:
    """Describes how a file differs from its digest, if that is known, and from its header."""
    fs, place = locate(str(path))
    if sha256 and FileDigest.read(fs, place).sha256 != sha256:
        return "does not match its SHA-256"
    return tensor_damage(path) if path.suffix == ".safetensors" else (path.stat() and None)


def _own_damage(content: Mapping[str, Any]) -> str | None:
    """Describes whether a document differs from its own digest, if it has one."""
    body = {key: value for key, value in content.items() if key != "sha256"}
    if content.get("sha256", own_digest(body)) != own_digest(body):
        return "was changed after it was written"
    return None


def _shard_damage(store: StoreFolder, number: int, info: ShardInfo) -> str | None:
    data = store.read(info.file)
    if data is None:
        return "is missing"
    damage = FileDigest(info.size, info.sha256).damage(FileDigest.of(data))
    if damage is None:
        try:
            same = Shard.loads(data).info(number, data) == info
        except ValueError as error:
            return str(error)
        damage = None if same else "does not match the index"
    return damage


def _history_damage(path: Path) -> str | None:
    lines = read_text(path, size=1 << 30).splitlines()
    for number, line in enumerate(lines[:-1], 1):  # a kill may have cut the last one off
        parse_json(line, f"line {number}")
    return None


def _outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts
