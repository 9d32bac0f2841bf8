"""Teachers that read text: what their families share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.prompts import Prompts
from pdmd.teachers.conditioning.sources import read_prompts
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_checks import check_modules
from pdmd.typing import Condition, Conditions, Latents, repeat_condition

__all__ = ["TextTeacher"]

WIDTHS = (
    "joint_attention_dim",
    "text_dim",
    "caption_channels",
    "cap_feat_dim",
    "cross_attention_dim",
)
"""What networks call the width of the text that they take; the first that is there counts."""


class TextTeacher(Teacher):
    r"""A network that reads text; by default one that predicts the velocity of rectified flow.

    A subclass implements :meth:`network`, and the classmethods
    ``from_pretrained(folder, *, prompts, meta, ...)`` and ``from_config(*, meta, ...)``; and
    :meth:`around` where its constructor takes more than a network, ``shift`` and a size.

    Args:
        transformer: The network, a model of diffusers.
        latent_shape: Shape of one sample.
        shift: The shift of time recommended at its resolution.
        prompts: Turns prompts into conditions; a copy that trains has none.
        decode: Turns latents into images or videos in [0, 1].
        schedule: The forward process of the network's inputs; rectified flow by default.
        kind: What the network predicts.
        time_range: The lowest and highest time that the network was trained for.

    Raises:
        ValueError: If the prompts' tokens are not as wide as those that the network takes, or
            they have first images, which the family does not take.

    Attributes:
        entries: What a condition must have.
        transformer: As given; all parameters are its own.
        size: The arguments of the constructor that say how large a sample is.
        text: What turns prompts into conditions, or ``None``.
        decode: As given; absent without one.
        layout: How the family's pipeline is put together, for export; ``None`` where students are
            not exported.
        takes_images: Whether prompts have a first image.
    """

    layout: ClassVar[PipelineLayout | None] = None
    takes_images: ClassVar[bool] = False
    entries: tuple[str, ...] = ("prompt",)

    def __init__(
        self,
        transformer: Any,
        *,
        latent_shape: Sequence[int],
        shift: float,
        prompts: Prompts | None,
        decode: Callable[[Latents], Tensor] | None,
        schedule: Schedule | None = None,
        kind: Kind = "velocity",
        time_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(
            schedule=schedule or RectifiedFlow(),
            kind=kind,
            latent_shape=latent_shape,
            time_range=time_range,
        )
        check_modules(transformer)
        _check_width(transformer, prompts)
        if prompts is not None and prompts.imaged and not self.takes_images:
            raise ValueError(
                f"{prompts} have first images, which {type(self).__name__} does not take; embed "
                "prompts without images, with this teacher"
            )
        self.transformer = transformer
        self.shift = shift
        self.size: dict[str, Any] = {}
        self.text = prompts
        if decode is not None:
            self.decode = decode

    def around(self, transformer: Any) -> TextTeacher:
        """Returns a teacher of the same size around another transformer, without prompts."""
        family: Any = type(self)
        return family(transformer, shift=self.shift, **self.size)

    @property
    def call_arguments(self) -> dict[str, Any]:
        """What a call of the family's pipeline must be told, such as the size of a sample."""
        names = {"height": "height", "width": "width", "frames": "num_frames"}
        return {names[key]: value for key, value in self.size.items() if key in names}

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
        """Makes a teacher from plain values, as configurations hold them.

        Args:
            folder: A pipeline's folder or hub name, for ``from_pretrained``; by default the
                family's, if it ships. Without any ``from_config`` makes random weights.
            prompts: With a folder, a file of prompts to draw from, as :meth:`read_prompts` reads
                it; with embeddings, of all of them.
            embeddings: A store of prompt embeddings to use in the place of a text encoder: a path
                or URL (:class:`~pdmd.teachers.conditioning.embeddings.StoredEmbeddings`).
            cache: Where the local copy of a store is kept; without a store it says nothing.
            meta: Whether to leave the weights on the meta device.
            arguments: Passed on.

        Raises:
            ValueError: If there are prompts without a folder or embeddings, or a store is missing
                or made by another encoder.
        """
        family: Any = cls
        folder = folder or (cls.layout.folder if cls.layout else "")
        lines = family.read_prompts(prompts) if prompts and (folder or embeddings) else ()
        if embeddings:
            arguments["embeddings"] = StoredEmbeddings(embeddings, prompts=lines, cache=cache)
        if folder:
            return family.from_pretrained(folder, prompts=lines, meta=meta, **arguments)
        if prompts and not embeddings:
            raise ValueError(f"prompts = {prompts!r} need a text encoder; give its folder")
        return family.from_config(meta=meta, **arguments)

    @classmethod
    def read_prompts(cls, path: str) -> Sequence[Any]:
        """Reads a text file of one prompt per line.

        Raises:
            ValueError: If it is missing or holds none.
        """
        return read_prompts(path)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Turns texts into a condition with ``prompt`` and, where a family masks, ``mask``."""
        return self._text().encode(prompts)

    def conditions(self, prompts: Sequence[Any]) -> Conditions:
        """Turns many texts into conditions, left on disk where they are stored."""
        return self._text().conditions(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts it was given."""
        return self._text().prompts

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the transformer that trains, without prompts and decoder."""
        return self.around(copy.deepcopy(self.transformer)).requires_grad_(True).train()

    def conditioned(self, condition: Condition, x_t: Latents) -> Any:
        """Returns a condition, of no prompt where there is none.

        Raises:
            ValueError: If it lacks one of :attr:`entries`.
        """
        if condition is None:
            condition = repeat_condition(self._text().encode([None]).to(x_t.device), len(x_t))
        missing = [key for key in self.entries if key not in condition.keys()]  # type: ignore[union-attr]
        if missing:
            raise ValueError(
                f"a condition of {type(self).__name__} has {' and '.join(map(repr, self.entries))}"
                f", but {' and '.join(map(repr, missing))} is missing; make it with encode()"
            )
        return condition

    def _text(self) -> Prompts:
        if self.text is None:
            raise ValueError(
                f"this {type(self).__name__} has no prompts; encode with the teacher that it was "
                "copied from, or load it with from_pretrained"
            )
        return self.text


def _check_width(transformer: Any, prompts: Prompts | None) -> None:
    made = None if prompts is None else prompts.width
    config = getattr(transformer, "config", {})
    taken = next((config[name] for name in WIDTHS if config.get(name) is not None), None)
    if made is not None and isinstance(taken, int) and made != taken:
        raise ValueError(
            f"{prompts} have tokens of {made} numbers, and the {type(transformer).__name__} takes "
            f"{taken}: another encoder made them; embed the prompts with this teacher's"
        )
