"""The files of a store of embeddings: shards, and the index that is written last.

A shard is a safetensors file, ``embeddings-00000.safetensors`` and so on. It has one tensor for
each entry of a condition and, for sequences, ``ENTRY.lengths`` (:mod:`.rows`); its metadata holds,
as JSON under ``pdmd``, the prompts, the encoder's fingerprint, the entries' forms, the format's
version and a digest of the tensors, so that a shard can be verified on its own. The last row of
the last shard is that of no prompt, ``null``. ``index.json`` names the shards with their digests;
a store without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pdmd.documents import parse_json
from pdmd.files import FileDigest, locate, own_digest, put, telling, write_whole
from pdmd.teachers.conditioning.embeddings.rows import Form
from pdmd.teachers.conditioning.embeddings.store_checks import check_index, check_shard

__all__ = ["Index", "Place", "Shard", "ShardEntry"]

FORMAT = 1
INDEX = "index.json"
STEM = "embeddings-"


@dataclass(frozen=True)
class Place:
    """A folder on any file system.

    Args:
        url: The folder.
        fs: Its file system.
        root: Its path there.
    """

    url: str
    fs: Any
    root: str

    @classmethod
    def of(cls, url: str, *, writing: bool = False) -> Place:
        """Finds a folder by its URL.

        Args:
            url: The folder.
            writing: Whether files will be written there.

        Raises:
            ValueError: If the URL's file system is not supported.
        """
        return cls(url.rstrip("/") or url, *locate(url, writing=writing))

    def read(self, file: str) -> bytes | None:
        """Reads a file, ``None`` if there is none.

        Raises:
            OSError: If reading fails otherwise.
        """
        with telling(self.url, f"{file} could not be read"):
            try:
                return self.fs.cat_file(f"{self.root}/{file}")
            except FileNotFoundError:
                return None

    def write(self, file: str, data: bytes) -> None:
        """Writes a file: there whole from one moment to the next.

        Raises:
            OSError: If writing fails.
        """
        path = f"{self.root}/{file}"
        with telling(self.url, f"{file} could not be written"):
            put(self.fs, f"{path}.tmp")  # makes the folder
            write_whole(self.fs, path, data)

    def shards(self) -> list[str]:
        """Lists the shards that are there."""
        with telling(self.url, "shards could not be listed"):
            self.fs.invalidate_cache()
            found = self.fs.glob(f"{self.root}/{STEM}*.safetensors")
        return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def clear(self) -> None:
        """Removes a store's files, the index first; nothing else."""
        files = [INDEX] if self.read(INDEX) is not None else []
        with telling(self.url, "earlier embeddings could not be removed"):
            for file in [*files, *self.shards()]:
                self.fs.rm(f"{self.root}/{file}")


@dataclass(frozen=True)
class Shard:
    """Some rows of a store.

    Args:
        prompts: The prompts, ``None`` for no prompt.
        encoder: The encoder's fingerprint, ``None`` where it is not known.
        forms: The forms of entries.
        tensors: Their tensors, as :func:`~.rows.pack` returns them.
        lengths: The lengths of sequences.
    """

    prompts: tuple[str | None, ...]
    encoder: str | None
    forms: Mapping[str, Form]
    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, Tensor]

    def dumps(self) -> bytes:
        """Writes the file's bytes."""
        from safetensors.torch import save

        tensors = {**self.tensors, **{f"{k}.lengths": v.clone() for k, v in self.lengths.items()}}
        about = {
            "format": FORMAT,
            "prompts": list(self.prompts),
            "encoder": self.encoder,
            "entries": {key: form.describe() for key, form in self.forms.items()},
            "content": _content(tensors),
        }
        return save(tensors, {"pdmd": json.dumps(about)})

    @classmethod
    def loads(cls, data: bytes) -> Shard:
        """Reads a file's bytes, and verifies them.

        Raises:
            ValueError: If they are not a shard's, or not what was written; says what is wrong.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            size = int.from_bytes(data[:8], "little")
            header = parse_json(data[8 : 8 + size], "the header")
            about = parse_json(header["__metadata__"]["pdmd"], "the metadata")
            number, tensors = about["format"], load(data)
            whole = number != FORMAT or about["content"] == _content(tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
            raise ValueError("is no shard of embeddings, or truncated") from None
        if number != FORMAT:
            raise ValueError(f"has format {number}, and this version of pdmd reads {FORMAT}")
        if not whole:
            raise ValueError("holds other bytes than were written")
        try:
            check_shard(about, tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"is no shard of embeddings ({str(error)[:80]})") from None
        forms = {key: Form.read(value) for key, value in about["entries"].items()}
        return cls(
            tuple(about["prompts"]),
            about["encoder"],
            forms,
            {key: tensors[key] for key in forms},
            {key: tensors[f"{key}.lengths"] for key, form in forms.items() if form.packed},
        )

    def entry(self, number: int, data: bytes) -> ShardEntry:
        """Returns what the index says of the shard."""
        return ShardEntry(
            file=shard_name(number),
            rows=len(self.prompts),
            tokens={key: len(self.tensors[key]) for key in self.lengths},
            text=sum(len((prompt or "").encode()) for prompt in self.prompts),
            **asdict(FileDigest.of(data)),
        )


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard in the index.

    Args:
        file: Its name.
        rows: Its rows.
        tokens: The tokens of each of its sequences, by entry.
        text: Bytes of its prompts, in UTF-8.
        size: Bytes of the file.
        sha256: The file's digest.
    """

    file: str
    rows: int
    tokens: Mapping[str, int]
    text: int
    size: int
    sha256: str

    def read(self, place: Place) -> Shard:
        """Reads the shard from its store.

        Raises:
            ValueError: If it is missing or not what was written; says which it is.
        """
        data = place.read(self.file)
        damage = "is missing"
        if data is not None:
            damage = FileDigest(self.size, self.sha256).damage(FileDigest.of(data))
        if data is None or damage is not None:
            raise ValueError(
                f"the embeddings in {place.url} are damaged: {self.file} {damage}; run the same "
                "`pdmd embed` again, which keeps what is whole"
            )
        try:
            shard = Shard.loads(data)
        except ValueError as error:
            raise ValueError(
                f"the embeddings in {place.url} are damaged: {self.file} {error}"
            ) from None
        if asdict(shard.entry(0, data)) | {"file": self.file} != asdict(self):
            raise ValueError(
                f"the embeddings in {place.url} are damaged: {self.file} is not what the index "
                "says; run the same `pdmd embed` again"
            )
        return shard


@dataclass(frozen=True)
class Index:
    """What a store holds.

    Args:
        teacher: The registered name of the teacher whose encoder it was, or nothing.
        encoder: The encoder's fingerprint, ``None`` where it is not known.
        forms: The forms of a condition's entries.
        shards: The shards, in order.
        imaged: The entries that come from images. Prompts then are an image's and a text's, by
            their :attr:`~pdmd.teachers.conditioning.image_prompts.ImagePrompt.name`, and the row
            of no prompt holds zeros for these entries, which it has not.
    """

    teacher: str
    encoder: str | None
    forms: Mapping[str, Form]
    shards: tuple[ShardEntry, ...]
    imaged: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows; one more than there are prompts."""
        return sum(shard.rows for shard in self.shards)

    @property
    def digest(self) -> str:
        """What tells this store's content from any other's."""
        return own_digest(self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "teacher": self.teacher,
            "encoder": self.encoder,
            "prompts": self.rows - 1,
            "entries": {key: form.describe() for key, form in self.forms.items()},
            "shards": [asdict(shard) for shard in self.shards],
            **({"imaged": list(self.imaged)} if self.imaged else {}),
        }

    def write(self, place: Place) -> None:
        """Writes ``index.json``, after all shards.

        Raises:
            OSError: If writing fails.
        """
        body = {**self._body(), "sha256": self.digest}
        place.write(INDEX, json.dumps(body, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, place: Place) -> Index:
        """Reads a store's index.

        Raises:
            ValueError: If it is missing, damaged or another version's.
        """
        data = place.read(INDEX)
        if data is None:
            raise ValueError(
                f"{place.url} has no {INDEX}, so it holds no prompt embeddings or unfinished "
                f"ones; make them with `pdmd embed PROMPTS --out {place.url}`, which goes on "
                "where it stopped"
            )
        try:
            body = parse_json(data, INDEX)
            whole, number = body.pop("sha256") == own_digest(body), body["format"]
            if whole and number == FORMAT:
                check_index(body)
                forms = {key: Form.read(value) for key, value in body["entries"].items()}
                shards = tuple(ShardEntry(**entry) for entry in body["shards"])
                imaged = tuple(body.get("imaged", ()))
                return cls(body["teacher"], body["encoder"], forms, shards, imaged)
        except (ValueError, LookupError, TypeError, AttributeError):
            whole, number = False, None
        if whole:
            raise ValueError(
                f"{place.url}/{INDEX} has format {number}, and this version of pdmd reads "
                f"{FORMAT}; upgrade pdmd, or make the embeddings again"
            )
        raise ValueError(
            f"{place.url}/{INDEX} is damaged; run the same `pdmd embed` again, which keeps what "
            "is whole"
        )


def shard_name(number: int) -> str:
    """Returns a shard's file name."""
    return f"{STEM}{number:05}.safetensors"


def _content(tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        sha256.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        sha256.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
