"""Prompts: where the conditions of a model family come from.

A condition of text has ``prompt``, embeddings of shape :math:`(B, L, D)` filled up with zeros, and
for families that mask them ``mask`` of shape :math:`(B, L)`, true where there is text. Some
families add ``pooled``, one vector of the whole text, with shape :math:`(B, D')`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pdmd.files import own_digest
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from pdmd.typing import Conditions, join_conditions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["EncodedText", "PromptEmbeddings", "Prompts", "prompts_of"]


class Prompts(ABC):
    """Turns prompts into conditions.

    Copies of a teacher share them, and with them a text encoder.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompts:
        return self

    @property
    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """The prompts that a distillation draws from unless it is given others."""

    @abstractmethod
    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Returns the condition of prompts, ``None`` for no prompt.

        Raises:
            ValueError: If there is no condition for one.
        """

    def conditions(self, prompts: Sequence[str | None]) -> Conditions:
        """Returns the conditions of many prompts, in memory unless they can be read one by one.

        Raises:
            ValueError: If there is no condition for one.
        """
        return self.encode(prompts)

    def fingerprint(self) -> str | None:
        """Identifies the text encoder, ``None`` where it is not known."""
        return None

    @property
    def width(self) -> int | None:
        """The dimension of a token of text, ``None`` where it is not known."""
        return None

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The entries that come from a prompt's image, which ``None`` lacks; often none."""
        return ()

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]] | None:
        """The shapes of one prompt's entries, ``None`` for a length that differs between batches.

        ``None`` altogether where they are not known before prompts are encoded.
        """
        return None


class PromptEmbeddings(Prompts):
    """Embeddings made beforehand, looked up by prompt: no text encoder is needed.

    Args:
        prompts: The prompts; ``None`` is the one to guide away from.
        condition: Their embeddings, one row for each, as :meth:`encode` returns them.

    Raises:
        ValueError: If the numbers differ or a prompt comes twice.
    """

    def __init__(self, prompts: Sequence[str | None], condition: TensorDict) -> None:
        if len(prompts) != int(condition.batch_size[0]):
            raise ValueError(
                f"got {len(prompts)} prompts for {int(condition.batch_size[0])} embeddings; give "
                "one row for each"
            )
        self._rows = {prompt: i for i, prompt in enumerate(prompts)}
        if len(self._rows) != len(prompts):
            twice = next(p for i, p in enumerate(prompts) if p in prompts[:i])
            raise ValueError(f"the prompt {twice!r} comes twice; give it one row")
        self.condition = condition

    @classmethod
    def random(
        cls,
        number: int,
        *,
        length: int,
        dim: int,
        masked: bool,
        more: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> PromptEmbeddings:
        """Makes standard normal embeddings that stand for no text, and ``None``'s.

        For tests and measurements of cost: the prompts are called ``random 0``, ``random 1``...

        Args:
            number: How many, besides ``None``.
            length: Tokens of each.
            dim: Dimension of a token.
            masked: Whether they have a mask; their texts then end at random between half the
                length and all of it.
            more: Further entries by name, each with the shape of one prompt's.
            seed: Seed of the draw.

        Raises:
            ValueError: If a number is below 1.
        """
        from tensordict import TensorDict

        for name, value in (("random_prompts", number), ("text_length", length), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        with torch.device("cpu"):  # whatever the default, such as meta
            generator = torch.Generator().manual_seed(seed)
            embeddings = torch.randn(number + 1, length, dim, generator=generator)
            entries = {"prompt": embeddings}
            if masked:
                ends = torch.randint(
                    (length + 1) // 2, length + 1, (number + 1, 1), generator=generator
                )
                mask = torch.arange(length) < ends
                entries = {"prompt": embeddings * mask[..., None], "mask": mask}
            for name, shape in (more or {}).items():
                entries[name] = torch.randn(number + 1, *shape, generator=generator)
        names = [f"random {i}" for i in range(number)]
        return cls([*names, None], TensorDict(entries, batch_size=[number + 1]))

    @property
    def width(self) -> int | None:
        """The dimension of a token."""
        return int(self.condition["prompt"].shape[-1]) if "prompt" in self.condition else None

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        items: Any = self.condition.items()
        return {key: tuple(value.shape[1:]) for key, value in items}

    def __repr__(self) -> str:
        return f"the embeddings of {len(self._rows)} prompts"

    @property
    def prompts(self) -> Sequence[str]:
        """Every prompt that is one."""
        return [prompt for prompt in self._rows if prompt is not None]

    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Looks prompts up."""
        for prompt in prompts:
            if prompt not in self._rows:
                known = ", ".join(map(repr, list(self._rows)[:3]))
                raise ValueError(
                    f"there is no embedding of the prompt {prompt!r} among the "
                    f"{len(self._rows)} known ({known}, ...); embed it, or load the teacher with "
                    "its text encoder"
                )
        rows = torch.tensor([self._rows[prompt] for prompt in prompts], dtype=torch.int64)
        return self.condition[rows]


class EncodedText(Prompts):
    """Prompts encoded by a text encoder, which is loaded when it is first needed.

    Args:
        load: Returns the text encoder.
        embed: Given it and texts, returns their condition.
        prompts: The prompts to draw from; none by default.
        null: The text that stands for no prompt.
        batch_size: Texts encoded at a time.
        folder: The pipeline's folder or hub name, for the encoder's fingerprint.
        how: What else embeddings depend on, such as the most tokens of a text; JSON values, for
            the fingerprint.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        embed: Callable[[Any, list[str]], TensorDict],
        *,
        prompts: Sequence[str] = (),
        null: str,
        batch_size: int = 16,
        folder: str | Path = "",
        how: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(prompts, str):
            raise ValueError(f"prompts are a sequence of texts, got {prompts!r}; pass a list")
        self._load, self._embed = load, embed
        self._prompts = tuple(prompts)
        self.null, self.batch_size, self.folder = null, batch_size, folder
        self.how = dict(how or {})
        self._encoder: Any = None

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts given.

        Raises:
            ValueError: If none were.
        """
        if not self._prompts:
            raise ValueError(
                "the teacher has no prompts to draw from; pass prompts=[...] where it is loaded, "
                "or to distill"
            )
        return self._prompts

    def fingerprint(self) -> str | None:
        """Digests the encoder's files and how it is called.

        See :mod:`pdmd.teachers.conditioning.fingerprints`.
        """
        made = encoder_fingerprint(self.folder) if self.folder else None
        return own_digest({"encoder": made, **self.how}) if made and self.how else made

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Encodes texts.

        Raises:
            ValueError: If there are none, or one is no text.
        """
        if not prompts:
            raise ValueError("there are no prompts to encode; pass at least one")
        for prompt in prompts:
            if not (prompt is None or isinstance(prompt, str)):
                raise ValueError(f"a prompt is a text or None, got {prompt!r}")
        texts = [self.null if prompt is None else prompt for prompt in prompts]
        if self._encoder is None:
            self._encoder = self._load()
        step = self.batch_size
        parts = [
            self._embed(self._encoder, texts[i : i + step]) for i in range(0, len(texts), step)
        ]
        return join_conditions(*parts)


def prompts_of(embeddings: Prompts | None, encoder: Prompts) -> Prompts:
    """Returns embeddings made beforehand where there are some, else the encoder.

    Args:
        embeddings: The embeddings.
        encoder: The teacher's own.

    Raises:
        ValueError: If another encoder made them, where both are known.
    """
    if embeddings is None:
        return encoder
    made = embeddings.fingerprint()
    other = None if made is None else encoder.fingerprint()
    if made is not None and other is not None and made != other:
        raise ValueError(
            f"{embeddings} were made by another encoder ({made[:12]}) than the teacher's "
            f"({other[:12]}); embed the prompts with this teacher, or load the teacher whose "
            "encoder it was"
        )
    return embeddings
