"""Prompts: encoded by a text encoder, or looked up among precomputed embeddings.

A text condition has the field ``prompt``, embeddings of shape :math:`(B, L, D)`, zero-padded, and
for families that mask them ``mask`` of shape :math:`(B, L)`, true at tokens of the text. Some
families add ``pooled``, one embedding of the whole text, with shape :math:`(B, D')`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pdmd.arguments import checked
from pdmd.files import own_digest
from pdmd.teachers.conditioning.cut_texts import noting_cut_texts
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from pdmd.typing import Conditions, join_conditions

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "EncodedText",
    "PromptEmbeddings",
    "Prompts",
    "check_finite",
    "check_prompts",
    "prompts_of",
]


class Prompts(ABC):
    """Encodes prompts into conditions.

    Copies of a teacher share this object, and with it the text encoder.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Prompts:
        return self

    @property
    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """The default prompts of a distillation."""

    @abstractmethod
    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Encodes prompts.

        Args:
            prompts: The prompts; ``None`` is the null prompt.

        Returns:
            A condition with batch size :math:`(B)`, the number of prompts.

        Raises:
            ValueError: If a prompt cannot be encoded.
        """

    def conditions(self, prompts: Sequence[str | None]) -> Conditions:
        """Encodes all prompts of a distillation.

        Args:
            prompts: The prompts, as for :meth:`encode`.

        Returns:
            Their conditions, in memory or read lazily from storage.

        Raises:
            ValueError: If a prompt cannot be encoded.
        """
        return self.encode(prompts)

    def fingerprint(self) -> str | None:
        """Returns a digest that identifies the encoder; ``None`` if it is unknown."""
        return None

    @property
    def width(self) -> int | None:
        """The dimension :math:`D` of a token embedding; ``None`` if it is unknown."""
        return None

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The fields computed from the image of a prompt; the null prompt lacks them."""
        return ()

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]] | None:
        """The shape of each field, without the batch; ``None`` for a length that varies.

        ``None`` instead of a mapping if shapes are unknown before prompts are encoded.
        """
        return None


@checked
class PromptEmbeddings(Prompts):
    """Precomputed embeddings in memory, looked up by prompt: no text encoder is needed.

    Args:
        prompts: The prompts; ``None`` is the null prompt of guidance.
        condition: Their embeddings, one row per prompt, as :meth:`encode` returns them.

    Raises:
        ValueError: If the numbers of prompts and rows differ, or a prompt is repeated.
    """

    def __init__(self, prompts: Sequence[str | None], condition: TensorDict) -> None:
        if len(prompts) != int(condition.batch_size[0]):
            raise ValueError(
                f"got {len(prompts)} prompts for {int(condition.batch_size[0])} embeddings; pass "
                "one row per prompt"
            )
        self._rows = {prompt: i for i, prompt in enumerate(prompts)}
        if len(self._rows) != len(prompts):
            repeated = next(p for i, p in enumerate(prompts) if p in prompts[:i])
            raise ValueError(f"the prompt {repeated!r} is repeated; pass each prompt once")
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
        """Samples standard normal embeddings for placeholder prompts.

        For tests and measurements of cost. The prompts are ``random 0``, ``random 1``, ..., and
        the null prompt.

        Args:
            number: Number of prompts, besides the null prompt.
            length: Number of tokens :math:`L`.
            dim: Dimension :math:`D` of a token.
            masked: Whether to add a mask; the lengths of texts are then sampled uniformly between
                :math:`L / 2` and :math:`L`.
            more: Shapes of further fields, by key, without the batch.
            seed: Random seed.

        Raises:
            ValueError: If ``number``, ``length`` or ``dim`` is below 1.
        """
        from tensordict import TensorDict

        for name, value in (("random_prompts", number), ("text_length", length), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        with torch.device("cpu"):  # the default device may be meta
            generator = torch.Generator().manual_seed(seed)
            embeddings = torch.randn(number + 1, length, dim, generator=generator)
            fields = {"prompt": embeddings}
            if masked:
                lengths = torch.randint(
                    (length + 1) // 2, length + 1, (number + 1, 1), generator=generator
                )
                mask = torch.arange(length) < lengths
                fields = {"prompt": embeddings * mask[..., None], "mask": mask}
            for name, shape in (more or {}).items():
                fields[name] = torch.randn(number + 1, *shape, generator=generator)
        names = [f"random {i}" for i in range(number)]
        return cls([*names, None], TensorDict(fields, batch_size=[number + 1]))

    @property
    def width(self) -> int | None:
        """The dimension :math:`D` of a token embedding."""
        return int(self.condition["prompt"].shape[-1]) if "prompt" in self.condition else None

    @property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        items: Any = self.condition.items()
        return {key: tuple(value.shape[1:]) for key, value in items}

    def __repr__(self) -> str:
        return f"the embeddings of {len(self._rows)} prompts"

    @property
    def prompts(self) -> Sequence[str]:
        """All prompts except the null prompt."""
        return [prompt for prompt in self._rows if prompt is not None]

    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Looks up the embeddings of prompts.

        Raises:
            ValueError: If a prompt has no embedding.
        """
        for prompt in prompts:
            if prompt not in self._rows:
                examples = ", ".join(map(repr, list(self._rows)[:3]))
                raise ValueError(
                    f"no embedding of the prompt {prompt!r} among {len(self._rows)} prompts "
                    f"({examples}, ...); embed it, or load the teacher with its text encoder"
                )
        rows = torch.tensor([self._rows[prompt] for prompt in prompts], dtype=torch.int64)
        return self.condition[rows]


@checked
class EncodedText(Prompts):
    """Prompts encoded by a text encoder, which is loaded on first use.

    Args:
        load: Loads the text encoder.
        embed: Maps the text encoder and a list of texts to a condition.
        prompts: The default prompts of a distillation.
        null: The text of the null prompt.
        batch_size: Number of texts encoded at once.
        folder: Folder or hub name of the pipeline, for the fingerprint of the encoder.
        how: Settings that change the embeddings, such as the maximum length of a text, as JSON
            values; they enter the fingerprint.

    Raises:
        ValueError: If ``prompts`` is a single string.
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
        check_prompts(prompts)
        self._load, self._embed = load, embed
        self._prompts = tuple(prompts)
        self.null, self.batch_size, self.folder = null, batch_size, folder
        self.how = dict(how or {})
        self._encoder: Any = None
        self._told = False  # of texts that are cut

    @property
    def prompts(self) -> Sequence[str]:
        """The default prompts of a distillation.

        Raises:
            ValueError: If there are none.
        """
        if not self._prompts:
            raise ValueError(
                "the teacher has no prompts; pass prompts=[...] to the teacher or to distill"
            )
        return self._prompts

    def fingerprint(self) -> str | None:
        """Returns a digest of the encoder's files and settings; ``None`` if there are no files.

        See :mod:`pdmd.teachers.conditioning.fingerprints`.
        """
        files = encoder_fingerprint(self.folder) if self.folder else None
        return own_digest({"encoder": files, **self.how}) if files and self.how else files

    def encode(self, prompts: Sequence[str | None]) -> TensorDict:
        """Encodes texts, in batches.

        Raises:
            ValueError: As :meth:`encode_by`.
        """
        return self.encode_by(self._embed, prompts)

    @torch.no_grad()
    def encode_by(
        self, embed: Callable[[Any, list[str]], TensorDict], prompts: Sequence[str | None]
    ) -> TensorDict:
        """Encodes texts in another way, in batches, as some pipelines do those to lead away from.

        The first text that the encoder cuts is warned of.

        Args:
            embed: Maps the text encoder and a list of texts to a condition.
            prompts: The texts; ``None`` is the null prompt.

        Raises:
            ValueError: If there are no prompts, or they are a string, a prompt is neither a text
                nor ``None``, or an embedding is not finite.
        """
        check_prompts(prompts)
        if not prompts:
            raise ValueError("no prompts to encode; pass at least one")
        for prompt in prompts:
            if not (prompt is None or isinstance(prompt, str)):
                raise ValueError(f"a prompt must be a text or None, got {prompt!r}")
        texts = [self.null if prompt is None else prompt for prompt in prompts]
        if self._encoder is None:
            self._encoder = self._load()
        parts = []
        for i in range(0, len(texts), self.batch_size):
            some = texts[i : i + self.batch_size]
            with noting_cut_texts(self._encoder, some) as cut:
                parts.append(embed(self._encoder, some))
            cut = [text for text in cut if text != self.null]
            if cut and not self._told:
                self._told = True
                warnings.warn(
                    f"the text encoder takes fewer tokens than {cut[0]!r:.80} has, and cuts its "
                    "end, as that of every other text of such a length; shorten them",
                    stacklevel=3,
                )
        condition = join_conditions(*parts)
        check_finite(condition, prompts)
        return condition


def check_finite(condition: TensorDict, prompts: Sequence[Any]) -> None:
    """Checks that an encoder's outputs are finite; many overflow in float16.

    Args:
        condition: The condition, a row a prompt.
        prompts: The prompts, for the error.

    Raises:
        ValueError: If a value is not finite.
    """
    items: Any = condition.items()
    for key, value in items:
        finite = value.isfinite().flatten(1).all(1).tolist() if value.is_floating_point() else []
        if not all(finite):
            prompt, dtype = prompts[finite.index(False)], str(value.dtype).removeprefix("torch.")
            half = value.dtype == torch.float16
            remedy = "encode in bfloat16 or float32 (dtype)" if half else "check its weights"
            raise ValueError(
                f"the encoder's {key!r} of {prompt!r:.80} is not finite in {dtype}; {remedy}"
            )


def check_prompts(prompts: object) -> None:
    """Checks that prompts are not one string, whose letters would be prompts.

    Raises:
        ValueError: If they are.
    """
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts must be a list of prompts, got the string {prompts!r:.80}; pass a list"
        )


def prompts_of(embeddings: Prompts | None, encoder: Prompts) -> Prompts:
    """Returns precomputed embeddings if there are any, else the text encoder.

    Args:
        embeddings: Precomputed embeddings, or ``None``.
        encoder: The text encoder of the teacher.

    Raises:
        ValueError: If the embeddings were computed by another encoder; checked only if both
            fingerprints are known.
    """
    if embeddings is None:
        return encoder
    found = embeddings.fingerprint()
    expected = None if found is None else encoder.fingerprint()
    if found is not None and expected is not None and found != expected:
        raise ValueError(
            f"{embeddings} were computed by another encoder ({found[:12]}) than that of the "
            f"teacher ({expected[:12]}); embed the prompts with this teacher, or load the teacher "
            "of that encoder"
        )
    return embeddings
