"""Embeddings from a store: prompts without a text encoder."""

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
    find,
    open_cache,
)
from pdmd.teachers.conditioning.embeddings.index import Index, Place
from pdmd.teachers.conditioning.embeddings.rows import unpack
from pdmd.teachers.conditioning.image_prompts import ImagePrompt, NamedImagePrompts, name_of
from pdmd.teachers.conditioning.prompts import Prompts

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["StoredEmbeddings", "StoredRows"]


class StoredEmbeddings(Prompts):
    """Embeddings that ``pdmd embed`` made, read as they are asked for.

    Making one reads the store's index alone. What is in the shards is copied once, when prompts
    or embeddings are first asked for, to memory-mapped files on a local disk.

    Args:
        url: The store, a path or URL (:data:`pdmd.files.PROTOCOLS`).
        prompts: The prompts that a distillation draws from; all of the store's by default.
        cache: Where local copies are kept; ``pdmd/embeddings`` in the user's cache by default.
        progress: Whether to show a progress bar, on a terminal, while a copy is made.

    Attributes:
        index: What the store holds.

    Raises:
        ValueError: If there is no whole store at the URL.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        prompts: Sequence[str] | Sequence[ImagePrompt] = (),
        cache: str | Path = "",
        progress: bool = True,
    ) -> None:
        if isinstance(prompts, str):
            raise ValueError(f"prompts are a sequence of texts, got {prompts!r}; pass a list")
        self.place = Place.of(str(url))
        self.index = Index.read(self.place)
        self._chosen = tuple(prompts)
        self._folder = local_path(cache or default_cache(), "the local copy of embeddings")
        self._progress = progress
        self._opened: TensorDict | None = None
        self._all: StoredTexts | NamedImagePrompts | None = None

    @property
    def url(self) -> str:
        """The store."""
        return self.place.url

    def fingerprint(self) -> str | None:
        """The fingerprint of the encoder that made them."""
        return self.index.encoder

    @property
    def width(self) -> int | None:
        """The dimension of a token."""
        form = self.index.forms.get("prompt")
        return form.shape[-1] if form is not None and form.packed else None

    @property
    def imaged(self) -> tuple[str, ...]:
        return self.index.imaged

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        return {key: form.shape for key, form in self.index.forms.items()}

    def __repr__(self) -> str:
        return f"the embeddings in {self.url}"

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts given, or all of the store's."""
        return self._chosen or self._texts()

    def encode(self, prompts: Sequence[Any]) -> TensorDict:
        """Looks prompts up; where they have images, either all or none of them are ``None``."""
        condition = self.conditions(prompts)[:]
        if self.imaged and all(prompt is None for prompt in prompts):
            return condition.exclude(*self.imaged)
        return condition

    def conditions(self, prompts: Sequence[Any]) -> StoredRows:
        """Looks prompts up and leaves their embeddings on disk."""
        cache, index = self._cache(), self.index
        if prompts is self._all:
            return StoredRows(cache, index, torch.arange(len(prompts)))
        nothing = not index.imaged or all(prompt is None for prompt in prompts)
        for prompt in prompts:
            kind = ImagePrompt if index.imaged else str
            if not ((prompt is None and nothing) or isinstance(prompt, kind)):
                what = "an ImagePrompt, a text with its first image"
                what = what if index.imaged else "a text or None"
                raise ValueError(f"a prompt of {self.url} is {what}, got {prompt!r}")
        found = find(cache, [name_of(prompt or "") for prompt in prompts])
        rows = [
            index.rows - 1 if prompt is None else row
            for prompt, row in zip(prompts, found, strict=True)
        ]
        if None in rows:
            raise ValueError(
                f"there is no embedding of the prompt {prompts[rows.index(None)]!r} in "
                f"{self.url}; embed it, or load the teacher with its text encoder"
            )
        return StoredRows(cache, index, torch.tensor(rows, dtype=torch.int64))

    def _texts(self) -> StoredTexts | NamedImagePrompts:
        if self._all is None:
            texts = StoredTexts(self._cache())
            self._all = NamedImagePrompts(texts) if self.imaged else texts
        return self._all

    def _cache(self) -> TensorDict:
        if self._opened is None:
            self._opened = open_cache(
                self.place, self.index, self._folder, progress=self._progress
            )
        return self._opened


class StoredRows:
    """Conditions on disk, indexed as a TensorDict of them would be.

    Sequences are as long as the longest of all the rows, so that a draw has the shape and the
    bits of one from memory.

    Args:
        cache: The store's local copy.
        index: What the store holds.
        rows: The rows of the store, int64, with shape :math:`(N)`.
        device: Where conditions go.
    """

    def __init__(
        self,
        cache: TensorDict,
        index: Index,
        rows: Tensor,
        device: torch.device | str | None = None,
    ) -> None:
        self._cache, self._index, self._rows, self._device = cache, index, rows, device
        self._length = 0
        for key, form in index.forms.items():
            if form.ragged and len(rows):
                starts = cache[f"starts.{key}"]
                self._length = int((starts[rows + 1] - starts[rows]).max())

    @property
    def batch_size(self) -> torch.Size:
        """The number of rows :math:`(N)`."""
        return torch.Size([len(self._rows)])

    def to(self, device: torch.device | str) -> StoredRows:
        """Returns the rows with their conditions on a device."""
        return StoredRows(self._cache, self._index, self._rows, device)

    def __getitem__(self, chosen: Tensor | slice) -> TensorDict:
        """Reads rows.

        Args:
            chosen: Their numbers, int64, with shape :math:`(B)`, or a slice.

        Returns:
            A condition with batch size :math:`(B)`.
        """
        from tensordict import TensorDict

        rows = self._rows[chosen]
        entries: dict[str, Any] = {}
        for key, form in self._index.forms.items():
            flat = self._cache[f"rows.{key}"]
            if not form.packed:
                entries[key] = torch.as_tensor(flat[rows])
                continue
            starts = self._cache[f"starts.{key}"]
            begin, end = torch.as_tensor(starts[rows]), torch.as_tensor(starts[rows + 1])
            length = self._length if form.ragged else int(form.shape[0] or 0)
            entries[key] = unpack(flat, begin, end - begin, length)
        condition = TensorDict(entries, batch_size=[len(rows)])
        return condition if self._device is None else condition.to(self._device)
