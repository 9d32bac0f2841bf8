"""Prompts looked up in a store of embeddings, without a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pdmd.files import local_path
from pdmd.teachers.conditioning.embeddings.cache import (
    StoredTexts,
    default_cache,
    find_rows,
    open_cache,
)
from pdmd.teachers.conditioning.embeddings.index import Index, StoreFolder
from pdmd.teachers.conditioning.embeddings.packing import unpack
from pdmd.teachers.conditioning.image_prompts import ImagePrompt, NamedImagePrompts, name_of
from pdmd.teachers.conditioning.prompts import Prompts, check_prompts
from pdmd.teachers.conditioning.text_lengths import trimmed, with_lengths
from pdmd.typing import LENGTHS, moved

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["StoredConditions", "StoredEmbeddings"]


class StoredEmbeddings(Prompts):
    """Embeddings computed by ``pdmd embed``, read on access.

    The constructor reads the index only. The shards are copied to memory-mapped files on a local
    disk when prompts or embeddings are first accessed.

    Args:
        url: URL or path of the store, on a file system of :data:`pdmd.files.PROTOCOLS`.
        prompts: The default prompts of a distillation; all prompts of the store if empty.
        cache: Folder of local copies; ``pdmd/embeddings`` in the user's cache folder if empty.
        progress: Whether to show a progress bar, on a terminal, while the shards are copied.

    Attributes:
        index: The index of the store.

    Raises:
        ValueError: If the index is missing or damaged, or ``prompts`` is a single string.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        prompts: Sequence[str] | Sequence[ImagePrompt] = (),
        cache: str | Path = "",
        progress: bool = True,
    ) -> None:
        check_prompts(prompts)
        self.store = StoreFolder.of(str(url))
        self.index = Index.read(self.store)
        self._chosen = tuple(prompts)
        self._folder = local_path(cache or default_cache(), "the local copy of embeddings")
        self._progress = progress
        self._opened: TensorDict | None = None
        self._all: StoredTexts | NamedImagePrompts | None = None

    @property
    def url(self) -> str:
        """URL of the store."""
        return self.store.url

    def fingerprint(self) -> str | None:
        """Returns the fingerprint of the encoder; ``None`` if it is unknown."""
        return self.index.encoder

    @property
    def width(self) -> int | None:
        """The dimension :math:`D` of a token embedding; ``None`` without token embeddings."""
        spec = self.index.specs.get("prompt")
        return spec.shape[-1] if spec is not None and spec.packed else None

    @property
    def image_keys(self) -> tuple[str, ...]:
        return self.index.image_keys

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        return {key: spec.shape for key, spec in self.index.specs.items()}

    def __repr__(self) -> str:
        return f"the embeddings in {self.url}"

    @property
    def prompts(self) -> Sequence[Any]:
        """The default prompts of a distillation."""
        return self._chosen or self._texts()

    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Looks up the embeddings of prompts, in memory.

        If the store has images, either all or none of the prompts are ``None``.

        Raises:
            ValueError: If a prompt has no embedding, or is not of the type of the store.
        """
        condition = self.conditions(prompts)[:].exclude(LENGTHS)
        if self.image_keys and all(prompt is None for prompt in prompts):
            return condition.exclude(*self.image_keys)
        return condition

    def conditions(self, prompts: Sequence[Any]) -> StoredConditions:
        """Looks up the embeddings of prompts, on disk.

        Raises:
            ValueError: If a prompt has no embedding, or is not of the type of the store.
        """
        cache, index = self._cache(), self.index
        if prompts is self._all:
            return StoredConditions(cache, index, torch.arange(len(prompts)))
        takes_null = not index.image_keys or all(prompt is None for prompt in prompts)
        for prompt in prompts:
            kind = ImagePrompt if index.image_keys else str
            if not ((prompt is None and takes_null) or isinstance(prompt, kind)):
                expected = "an ImagePrompt (a text with its first image)"
                expected = expected if index.image_keys else "a text or None"
                raise ValueError(f"a prompt of {self.url} must be {expected}, got {prompt!r}")
        found = find_rows(cache, [name_of(prompt or "") for prompt in prompts])
        rows = [
            index.rows - 1 if prompt is None else row
            for prompt, row in zip(prompts, found, strict=True)
        ]
        if None in rows:
            raise ValueError(
                f"no embedding of the prompt {prompts[rows.index(None)]!r} in {self.url}; embed "
                "it, or load the teacher with its text encoder"
            )
        return StoredConditions(cache, index, torch.tensor(rows, dtype=torch.int64))

    def _texts(self) -> StoredTexts | NamedImagePrompts:
        if self._all is None:
            texts = StoredTexts(self._cache())
            self._all = NamedImagePrompts(texts) if self.image_keys else texts
        return self._all

    def _cache(self) -> TensorDict:
        if self._opened is None:
            self._opened = open_cache(
                self.store, self.index, self._folder, progress=self._progress
            )
        return self._opened


class StoredConditions:
    """Conditions on disk, indexed like a TensorDict.

    A batch is padded to its own longest text, and has the ``lengths`` of its texts
    (:mod:`~pdmd.teachers.conditioning.text_lengths`).

    Args:
        cache: The local copy of the store.
        index: The index of the store.
        rows: Indices of the rows in the store, int64, with shape :math:`(N)`.
        device: Device of the conditions that are read.
    """

    def __init__(
        self,
        cache: TensorDict,
        index: Index,
        rows: Tensor,
        device: torch.device | str | None = None,
    ) -> None:
        self._cache, self._index, self._rows, self._device = cache, index, rows, device

    @property
    def batch_size(self) -> torch.Size:
        """The number of rows :math:`(N)`."""
        return torch.Size([len(self._rows)])

    def to(self, device: torch.device | str) -> StoredConditions:
        """Returns the same rows, placed on ``device`` when they are read."""
        return StoredConditions(self._cache, self._index, self._rows, device)

    def __getitem__(self, chosen: Tensor | slice) -> TensorDict:
        """Reads rows.

        Args:
            chosen: Indices into the rows, int64 on the CPU, with shape :math:`(B)`, or a slice.

        Returns:
            A condition with batch size :math:`(B)`.
        """
        from tensordict import TensorDict

        rows = self._rows[chosen]
        fields: dict[str, Any] = {}
        for key, spec in self._index.specs.items():
            flat = self._cache[f"rows.{key}"]
            if not spec.packed:
                fields[key] = torch.as_tensor(flat[rows])
                continue
            starts = self._cache[f"starts.{key}"]
            begin, end = torch.as_tensor(starts[rows]), torch.as_tensor(starts[rows + 1])
            lengths = end - begin
            length = int(lengths.max()) if spec.ragged and len(rows) else int(spec.shape[0] or 0)
            fields[key] = unpack(flat, begin, lengths, length)
        condition = trimmed(with_lengths(TensorDict(fields, batch_size=[len(rows)])))
        device = self._device
        return condition if device is None else condition.apply(lambda x: moved(x, device))
