"""Teachers conditioned on text: what their families share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.prompt_files import read_prompts
from pdmd.teachers.conditioning.prompts import EncodedText, PromptEmbeddings, Prompts, prompts_of
from pdmd.teachers.conditioning.text_lengths import TrimmedConditions, trimmed, with_lengths
from pdmd.teachers.families.pipeline_teacher import PipelineTeacher
from pdmd.teachers.families.pipelines import reading
from pdmd.teachers.families.text_pipelines import load_text_encoder
from pdmd.teachers.families.vaes import compression_of
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Condition, Conditions, Latents, repeat_condition

__all__ = ["TextTeacher"]

WIDTHS = (
    "joint_attention_dim",
    "text_dim",
    "text_embed_dim",
    "in_text_dim",
    "caption_channels",
    "cap_feat_dim",
    "cross_attention_dim",
)
"""Names of the dimension of a text token in networks' configurations; the first present counts."""


class TextTeacher(PipelineTeacher):
    r"""A network conditioned on text; by default one that predicts rectified flow's velocity.

    A subclass states the data of :class:`~pdmd.teachers.families.pipeline_teacher.PipelineTeacher`
    and below, and implements ``latents``, ``network`` and :meth:`encode_texts`, and
    :meth:`~pdmd.teachers.base.Teacher.guide` where guidance is not the classical extrapolation.

    Args:
        backbone: The network, a model of diffusers.
        prompts: Turns prompts into conditions; a copy that trains has none.
        arguments: As :class:`~pdmd.teachers.families.pipeline_teacher.PipelineTeacher` takes.

    Raises:
        ValueError: If the prompts' tokens are not as wide as those that the network takes, or
            they have first images, which the family does not take.

    Attributes:
        condition_keys: The keys that a condition must have.
        takes_images: Whether prompts have an image.
        null_text: The text that stands for no prompt.
        text_length: The number of tokens to which the encoder pads or cuts a text, where
            :meth:`from_pretrained` may change it.
        random_length: Tokens of random embeddings.
        masked: Whether random embeddings have a mask.
        text: Turns prompts into conditions, or ``None``.
    """

    common = (*PipelineTeacher.common, "prompts")
    condition_keys: tuple[str, ...] = ("prompt",)
    takes_images: ClassVar[bool] = False
    null_text: ClassVar[str] = ""
    text_length: ClassVar[int | None] = None
    random_length: ClassVar[int] = 64
    masked: ClassVar[bool] = False

    def __init__(self, backbone: Any, *, prompts: Prompts | None = None, **arguments: Any) -> None:
        super().__init__(backbone, **arguments)
        self._check_width(backbone, prompts)
        if prompts is not None and prompts.image_keys and not self.takes_images:
            raise ValueError(
                f"{prompts} have first images, which {type(self).__name__} does not take; embed "
                "prompts without images, with this teacher"
            )
        self.text = prompts

    @classmethod
    @abstractmethod
    def encode_texts(cls, pipeline: Any, texts: list[str], length: int | None) -> dict[str, Any]:
        """Returns the condition of texts, ``prompt`` and the family's other keys.

        Args:
            pipeline: The family's pipeline, without networks and VAE.
            texts: The texts.
            length: The number of tokens of a text: ``text_length``, or the one given instead.
        """

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        """Returns the VAE's compression."""
        return {"compression": compression_of(cls.layout.vae, folder)} if cls.layout.vae else {}

    @classmethod
    def text_width(cls, config: Mapping[str, Any]) -> int | None:
        """Returns the dimension of a token of text that a network takes; ``None`` if unknown.

        Args:
            config: The network's configuration.
        """
        width = next((config[name] for name in WIDTHS if config.get(name) is not None), None)
        return width if isinstance(width, int) else None

    @classmethod
    def read_length(cls, folder: str | Path) -> int | None:
        """Returns the number of tokens of a text; here ``text_length``."""
        return cls.text_length

    @classmethod
    def load_encoder(cls, folder: str | Path, **place: Any) -> Any:
        """Loads the pipeline that :meth:`encode_texts` takes."""
        return load_text_encoder(cls.layout.pipeline, folder, **place)

    @classmethod
    def read_encoder(
        cls,
        folder: str | Path,
        prompts: Sequence[Any],
        length: int | None,
        options: Mapping[str, Any],
        **place: Any,
    ) -> Prompts:
        """Returns the text encoder of a pipeline, loaded when first used.

        Args:
            folder: The pipeline's folder or hub name.
            prompts: The prompts to draw from.
            length: The number of tokens of a text.
            options: All of ``options``, as given.
            place: ``dtype`` and ``device`` of its weights.
        """
        return EncodedText(
            partial(cls.load_encoder, folder, **place),
            partial(cls.embed_texts, length=length),
            prompts=prompts,
            null=cls.null_text,
            folder=folder,
            how={} if length is None else {"text_length": length},
        )

    @classmethod
    def embed_texts(cls, pipeline: Any, texts: list[str], length: int | None = None) -> Any:
        """Returns what :meth:`encode_texts` does, as a condition."""
        from tensordict import TensorDict

        return TensorDict(cls.encode_texts(pipeline, texts, length), batch_size=[len(texts)])

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        prompts: Sequence[Any] = (),
        embeddings: Prompts | None = None,
        text_length: int | None = None,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
        config: str | Path = "",
        **options: Any,
    ) -> Teacher:
        """Loads the network of a pipeline; text encoders and VAE are loaded on first use.

        Args:
            folder: The pipeline's folder or hub name, or the file of its network
                (:mod:`~pdmd.teachers.families.single_files`).
            prompts: The prompts that a distillation draws from.
            embeddings: Turns prompts into conditions in place of the text encoders.
            text_length: The number of tokens to which texts are padded or cut, for families that
                state one.
            dtype: Type of all weights; those that the family keeps in float32 stay so.
            device: Where they live.
            meta: Whether to leave the network's weights on the meta device.
            config: With a file, the pipeline with the other parts.
            options: The constructor's arguments, such as the size; those that the folder states
                by default.

        Returns:
            A teacher of one network, or a :class:`~pdmd.teachers.routed.RoutedTeacher` of two.

        Raises:
            ValueError: If a part is missing or of another family, an argument is not known, or
                another encoder computed the embeddings.
        """
        cls._check_known(options, [*cls.options, *cls.common])
        folder = cls._pipeline_folder(folder, config)
        if text_length is not None and cls.text_length is None:
            raise ValueError(f"{cls.__name__} takes no text_length, got {text_length}")
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        with reading(folder):
            length = cls.read_length(folder) if text_length is None else text_length
            encoder = cls.read_encoder(
                folder, prompts, length, {**cls.options, **options}, **place
            )
            text = prompts_of(embeddings, encoder)
            return super().from_pretrained(folder, meta=meta, prompts=text, **place, **options)

    @classmethod
    def from_config(
        cls,
        *,
        random_prompts: int = 8,
        text_length: int | None = None,
        embeddings: Prompts | None = None,
        seed: int = 0,
        **arguments: Any,
    ) -> Teacher:
        """Builds a teacher with random weights, of the released size by default.

        For tests and measurements of cost: without ``embeddings`` its prompts have random
        embeddings too (:meth:`~pdmd.teachers.conditioning.prompts.PromptEmbeddings.random`).

        Args:
            random_prompts: The number of prompts, besides no prompt.
            text_length: Tokens of their embeddings.
            embeddings: Turns prompts into conditions instead.
            seed: Seed of weights and embeddings.
            arguments: Further arguments of
                :meth:`PipelineTeacher.from_config
                <pdmd.teachers.families.pipeline_teacher.PipelineTeacher.from_config>`.
        """
        built = super().from_config(prompts=embeddings, seed=seed, **arguments)
        if embeddings is None:
            parts: Any = built.routed.denoisers if isinstance(built, RoutedTeacher) else [built]
            length = cls.random_length if text_length is None else text_length
            text = parts[0].random_text(random_prompts, length, seed, cls.sizes(arguments))
            for part in parts:
                part.text = text
        return built

    def random_text(
        self, number: int, length: int, seed: int, sizes: Mapping[str, Any]
    ) -> PromptEmbeddings:
        """Draws embeddings of prompts.

        Args:
            number: The number of prompts, besides no prompt.
            length: Tokens of each.
            seed: Seed of the draw.
            sizes: The network's sizes.
        """
        return PromptEmbeddings.random(
            number,
            length=length,
            dim=self.text_width(self.backbone.config) or 0,
            masked=self.masked,
            more=self.random_shapes(sizes),
            seed=seed,
        )

    def random_shapes(self, sizes: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
        """Returns the shapes of one prompt's keys besides ``prompt`` and ``mask``; here none."""
        return {}

    @property
    def call_arguments(self) -> dict[str, Any]:
        """The arguments that a call of the family's pipeline requires, such as the size."""
        names = {"height": "height", "width": "width", "frames": "num_frames"}
        names["frame_rate"] = "frame_rate"
        return {names[key]: value for key, value in self.options.items() if key in names}

    @classmethod
    def from_arguments(
        cls,
        *,
        folder: str = "",
        prompts: str = "",
        embeddings: str = "",
        cache: str = "",
        meta: bool = False,
        **arguments: Any,
    ) -> Teacher:
        """Builds a teacher from plain values, as configurations state them.

        Args:
            folder: A pipeline's folder or hub name, for ``from_pretrained``; by default the
                family's, if it ships. Without one ``from_config`` draws random weights.
            prompts: With a folder, a file of prompts to draw from, read by :meth:`read_prompts`;
                with embeddings, a selection of their prompts.
            embeddings: A store of prompt embeddings to use in place of a text encoder: a path or
                URL (:class:`~pdmd.teachers.conditioning.embeddings.StoredEmbeddings`).
            cache: Where the local copy of a store is kept; without a store it has no effect.
            meta: Whether to leave the weights on the meta device.
            arguments: Of ``from_pretrained`` or ``from_config``.

        Raises:
            ValueError: If there are prompts without a folder or embeddings, or a store is missing
                or of another encoder.
        """
        folder = folder or cls.layout.folder
        lines = cls.read_prompts(prompts) if prompts and (folder or embeddings) else ()
        if embeddings:
            arguments["embeddings"] = StoredEmbeddings(embeddings, prompts=lines, cache=cache)
        if folder:
            arguments["prompts"] = lines
        elif prompts and not embeddings:
            raise ValueError(f"prompts = {prompts!r} need a text encoder; give its folder")
        return super().from_arguments(folder=folder, meta=meta, **arguments)

    @classmethod
    def read_prompts(cls, path: str) -> Sequence[Any]:
        """Reads a text file of one prompt per line.

        Raises:
            ValueError: If it is missing or empty.
        """
        return read_prompts(path)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns texts into a condition with ``prompt`` and the family's other keys.

        With a mask, it also has the ``lengths`` of texts
        (:mod:`~pdmd.teachers.conditioning.text_lengths`).
        """
        return with_lengths(self._text().encode(prompts))

    def conditions(self, prompts: Sequence[Any]) -> Conditions:
        """Turns many texts into conditions, left on disk where they are stored.

        With a mask, every batch of them is padded to its own longest text.
        """
        from tensordict import TensorDict

        found = self._text().conditions(prompts)
        return TrimmedConditions.of(found) if isinstance(found, TensorDict) else found

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts it was given."""
        return self._text().prompts

    def conditioned(self, condition: Condition, x_t: Latents) -> Any:
        """Returns a condition cut to its longest text; that of no prompt in place of ``None``.

        Raises:
            ValueError: If it lacks one of ``condition_keys``.
        """
        if condition is None:
            null: Any = self.encode([None])
            condition = repeat_condition(null.to(x_t.device, non_blocking=True), len(x_t))
        present: Any = condition.keys()  # type: ignore[union-attr]
        missing = [key for key in self.condition_keys if key not in present]
        if missing:
            keys = " and ".join(map(repr, self.condition_keys))
            raise ValueError(
                f"a condition of {type(self).__name__} has {keys}, but "
                f"{' and '.join(map(repr, missing))} is missing; make it with encode()"
            )
        return trimmed(condition)  # type: ignore[arg-type]

    def _text(self) -> Prompts:
        if self.text is None:
            raise ValueError(
                f"this {type(self).__name__} has no prompts; encode with the teacher that it was "
                "copied from, or load it with from_pretrained"
            )
        return self.text

    def _check_width(self, backbone: Any, prompts: Prompts | None) -> None:
        own = None if prompts is None else prompts.width
        taken = self.text_width(getattr(backbone, "config", {}))
        if own is not None and taken is not None and own != taken:
            raise ValueError(
                f"{prompts} have tokens of {own} numbers, and the {type(backbone).__name__} takes "
                f"{taken}: another encoder made them; embed the prompts with this teacher's"
            )
