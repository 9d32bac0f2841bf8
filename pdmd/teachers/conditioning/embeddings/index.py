"""The files of a store of embeddings: shards, and the index, which is written last.

A shard is a safetensors file: ``embeddings-00000.safetensors`` and so on. It has one tensor per
field of a condition and, for sequences, ``KEY.lengths`` (:mod:`.packing`). Its metadata has, as
JSON under ``pdmd``, the prompts, the fingerprint of the encoder, the specs of the fields, the
version of the format and a digest of the tensors, so that a shard can be verified alone. The last
row of the last shard is the null prompt. ``index.json`` lists the shards with their digests; a
store without it is incomplete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.documents import parse_json
from pdmd.files import (
    FileDigest,
    is_local,
    locate,
    own_digest,
    put,
    shell_word,
    telling,
    write_whole,
)
from pdmd.locks import Lock
from pdmd.teachers.conditioning.embeddings.packing import FieldSpec
from pdmd.teachers.conditioning.embeddings.store_checks import check_index, check_shard

__all__ = ["Index", "Shard", "ShardInfo", "StoreFolder", "shard_name"]

FORMAT = 1
INDEX = "index.json"
STEM = "embeddings-"


@dataclass(frozen=True)
class StoreFolder:
    """The folder of a store, on any fsspec file system.

    Args:
        url: URL of the folder.
        fs: Its file system.
        root: Its path on the file system.
    """

    url: str
    fs: Any
    root: str

    @classmethod
    def of(cls, url: str, *, writing: bool = False) -> StoreFolder:
        """Locates a folder by its URL.

        Args:
            url: The folder.
            writing: Whether files will be written there.

        Raises:
            ValueError: If the URL's file system is not supported.
        """
        return cls(url.rstrip("/") or url, *locate(url, writing=writing))

    def read(self, file: str) -> bytes | None:
        """Reads a file; returns ``None`` if it does not exist.

        Raises:
            OSError: If reading fails for another reason.
        """
        with telling(self.url, f"{file} could not be read"):
            try:
                return self.fs.cat_file(f"{self.root}/{file}")
            except FileNotFoundError:
                return None

    def write(self, file: str, data: bytes) -> None:
        """Writes a file atomically.

        Raises:
            OSError: If writing fails.
        """
        path = f"{self.root}/{file}"
        with telling(self.url, f"{file} could not be written"):
            put(self.fs, f"{path}.tmp")  # creates the folder
            write_whole(self.fs, path, data)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds a local folder within a block, so that no other process writes to it.

        Raises:
            ValueError: If another process holds it; says which one.
            OSError: If the folder cannot be created or locked.
        """
        with contextlib.ExitStack() as held:
            if is_local(self.fs):
                with telling(self.url, "the folder could not be locked"):
                    Path(self.root).mkdir(parents=True, exist_ok=True)
                    held.enter_context(Lock(Path(self.root)))
            yield

    def shards(self) -> list[str]:
        """Lists the file names of all shards, in order."""
        with telling(self.url, "shards could not be listed"):
            self.fs.invalidate_cache()
            found = self.fs.glob(f"{self.root}/{STEM}*.safetensors")
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def clear(self) -> None:
        """Removes the files of the store and no others; the index first."""
        files = [INDEX] if self.read(INDEX) is not None else []
        with telling(self.url, "earlier embeddings could not be removed"):
            for file in [*files, *self.shards()]:
                self.fs.rm(f"{self.root}/{file}")


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of a store.

    Args:
        prompts: The prompts of the rows; ``None`` is the null prompt.
        encoder: Fingerprint of the encoder; ``None`` if it is unknown.
        specs: Specs of the fields, by key.
        tensors: Packed tensors by key, as :func:`~.packing.pack` returns them.
        lengths: Lengths of sequences by key, int64, with shape :math:`(B)`.
    """

    prompts: tuple[str | None, ...]
    encoder: str | None
    specs: Mapping[str, FieldSpec]
    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor]

    def rows(self, begin: int, end: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the packed tensors and lengths of some rows, as :func:`~.packing.pack` does.

        Args:
            begin: The first row.
            end: The row after the last one.
        """
        tensors = {}
        for key, value in self.tensors.items():
            first, last = begin, end
            if key in self.lengths:
                counts = self.lengths[key]
                first, last = int(counts[:begin].sum()), int(counts[:end].sum())
            tensors[key] = value[first:last]
        return tensors, {key: counts[begin:end] for key, counts in self.lengths.items()}

    def dumps(self) -> bytes:
        """Serializes the shard to the bytes of its file."""
        from safetensors.torch import save

        tensors = {**self.tensors, **{f"{k}.lengths": v.clone() for k, v in self.lengths.items()}}
        about = {
            "format": FORMAT,
            "prompts": list(self.prompts),
            "encoder": self.encoder,
            "entries": {key: spec.describe() for key, spec in self.specs.items()},
            "content": _content(tensors),
        }
        return save(tensors, {"pdmd": json.dumps(about)})

    @classmethod
    def loads(cls, data: bytes) -> Shard:
        """Deserializes and verifies the bytes of a file.

        Raises:
            ValueError: If they are not a shard, of another format, or damaged. The message is a
                predicate: the caller prepends the name of the file.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            size = int.from_bytes(data[:8], "little")
            header = parse_json(data[8 : 8 + size], "the header")
            about = parse_json(header["__metadata__"]["pdmd"], "the metadata")
            number, tensors = about["format"], load(data)
            intact = number != FORMAT or about["content"] == _content(tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
            raise ValueError("is not a shard of embeddings, or is truncated") from None
        if number != FORMAT:
            raise ValueError(f"has format {number}, and this version of pdmd reads {FORMAT}")
        if not intact:
            raise ValueError("does not match its digest")
        try:
            check_shard(about, tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"is not a shard of embeddings ({str(error)[:80]})") from None
        specs = {key: FieldSpec.read(value) for key, value in about["entries"].items()}
        return cls(
            tuple(about["prompts"]),
            about["encoder"],
            specs,
            {key: tensors[key] for key in specs},
            {key: tensors[f"{key}.lengths"] for key, spec in specs.items() if spec.packed},
        )

    def info(self, number: int, data: bytes) -> ShardInfo:
        """Returns the record of the shard in the index.

        Args:
            number: Number of the shard, counted from 0.
            data: The bytes of its file.
        """
        return ShardInfo(
            file=shard_name(number),
            rows=len(self.prompts),
            tokens={key: len(self.tensors[key]) for key in self.lengths},
            text=sum(len((prompt or "").encode()) for prompt in self.prompts),
            **asdict(FileDigest.of(data)),
        )


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """The record of a shard in the index.

    Args:
        file: File name.
        rows: Number of rows.
        tokens: Total number of tokens of each sequence, by key.
        text: Size of the prompts in bytes, in UTF-8.
        size: Size of the file in bytes.
        sha256: Digest of the file.
    """

    file: str
    rows: int
    tokens: Mapping[str, int]
    text: int
    size: int
    sha256: str

    def read(self, store: StoreFolder) -> Shard:
        """Reads and verifies the shard.

        Raises:
            ValueError: If the file is missing or damaged.
        """
        data = store.read(self.file)
        damage = "is missing"
        if data is not None:
            damage = FileDigest(self.size, self.sha256).damage(FileDigest.of(data))
        if data is None or damage is not None:
            raise ValueError(
                f"the embeddings in {store.url} are damaged: {self.file} {damage}; run the same "
                "`pdmd embed` again, which keeps intact shards"
            )
        try:
            shard = Shard.loads(data)
        except ValueError as error:
            raise ValueError(
                f"the embeddings in {store.url} are damaged: {self.file} {error}"
            ) from None
        if asdict(shard.info(0, data)) | {"file": self.file} != asdict(self):
            raise ValueError(
                f"the embeddings in {store.url} are damaged: {self.file} does not match the index "
                "; run the same `pdmd embed` again"
            )
        return shard


@dataclass(frozen=True)
class Index:
    """The index of a store.

    Args:
        teacher: Registered name of the teacher whose encoder computed the embeddings, or empty.
        encoder: Fingerprint of the encoder; ``None`` if it is unknown.
        specs: Specs of the fields of a condition, by key.
        shards: Records of the shards, in order.
        image_keys: Keys of the fields computed from images. If there are any, prompts are stored
            by :attr:`~pdmd.teachers.conditioning.image_prompts.ImagePrompt.name`, and these
            fields are zero in the row of the null prompt.
    """

    teacher: str
    encoder: str | None
    specs: Mapping[str, FieldSpec]
    shards: tuple[ShardInfo, ...]
    image_keys: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows: the prompts and the null prompt."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """The SHA-256 of the content of the store."""
        return own_digest(self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "teacher": self.teacher,
            "encoder": self.encoder,
            "prompts": self.rows - 1,
            "entries": {key: spec.describe() for key, spec in self.specs.items()},
            "shards": [asdict(shard) for shard in self.shards],
            **({"imaged": list(self.image_keys)} if self.image_keys else {}),
        }

    def write(self, store: StoreFolder) -> None:
        """Writes ``index.json``, after all shards.

        Raises:
            OSError: If writing fails.
        """
        body = {**self._body(), "sha256": self.digest}
        store.write(INDEX, json.dumps(body, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, store: StoreFolder) -> Index:
        """Reads the index of a store.

        Raises:
            ValueError: If it is missing, damaged or of another format.
        """
        data = store.read(INDEX)
        if data is None:
            raise ValueError(
                f"{store.url} has no {INDEX}: its prompt embeddings are missing or incomplete; "
                f"compute them with `pdmd embed PROMPTS --out {shell_word(store.url)}`, which "
                "resumes an interrupted run"
            )
        try:
            body = parse_json(data, INDEX)
            intact, number = body.pop("sha256") == own_digest(body), body["format"]
            if intact and number == FORMAT:
                check_index(body)
                specs = {key: FieldSpec.read(value) for key, value in body["entries"].items()}
                shards = tuple(ShardInfo(**record) for record in body["shards"])
                image_keys = tuple(body.get("imaged", ()))
                return cls(body["teacher"], body["encoder"], specs, shards, image_keys)
        except (ValueError, LookupError, TypeError, AttributeError):
            intact, number = False, None
        if intact:
            raise ValueError(
                f"{store.url}/{INDEX} has format {number}, and this version of pdmd reads "
                f"{FORMAT}; upgrade pdmd, or compute the embeddings again"
            )
        raise ValueError(
            f"{store.url}/{INDEX} is damaged; run the same `pdmd embed` again, which keeps intact "
            "shards"
        )


def shard_name(number: int) -> str:
    """Returns the file name of a shard, counted from 0."""
    return f"{STEM}{number:05}.safetensors"


def _content(tensors: Mapping[str, Tensor]) -> str:
    """Digests tensors with their keys, dtypes and shapes."""
    sha256 = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        sha256.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        sha256.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
