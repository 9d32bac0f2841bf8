"""Teachers whose network is that of a pipeline of diffusers: how all families are built.

A family states its pipeline's parts (``PipelineTeacher.layout``), the sizes of its released
network (``PipelineTeacher.released``) and the default size of a sample
(``PipelineTeacher.options``) as data, evaluates the network, and encodes prompts. Random
weights, loading and copying are the same for all families and live here.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.schedules import RectifiedFlow, Schedule
from pdmd.teachers.base import Teacher
from pdmd.teachers.families.boundaries import boundary_router
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_checks import check_modules
from pdmd.teachers.families.pipelines import build_part, configuration, load_backbone, reading
from pdmd.teachers.families.single_files import is_single_file, with_network_file
from pdmd.teachers.families.tokens import scheduled_shift
from pdmd.teachers.families.vaes import check_channels, load_decoder, load_latent_encoder
from pdmd.teachers.routed import RoutedTeacher
from pdmd.typing import Latents

__all__ = ["PipelineTeacher"]

SIZES = ("height", "width", "frames")
"""Options that are sizes of a sample."""


class PipelineTeacher(Teacher):
    """A pipeline's network as a teacher.

    A subclass states ``layout``, ``released`` and ``options``, and implements
    :meth:`latents`, :meth:`~pdmd.diffusion.denoisers.Denoiser.network` and
    :meth:`~pdmd.teachers.base.Teacher.encode`. The other methods are overridden where a family
    differs.

    Args:
        backbone: The network, a model of diffusers.
        schedule: The forward process of the network's inputs; rectified flow by default.
        kind: What the network predicts.
        time_range: The lowest and highest time that the network was trained for.
        decode: Turns latents into images or videos in [0, 1].
        shift: The shift of time recommended; by default :meth:`default_shift`.
        options: In place of those of ``options``.

    Raises:
        ValueError: If an option is not known or does not fit, or the network is not supported.

    Attributes:
        layout: The parts of the pipeline.
        released: The sizes of the released network, which :meth:`from_config` may replace one by
            one, among them a ``boundary_ratio`` for pipelines of two networks.
        options: The family's arguments of the constructor, such as the size of a sample: of the
            class their defaults, of a teacher their values.
        common: The arguments of the constructor that families share.
        latents_per_token: The latents that the network takes as one token.
        one_size: Why samples of one teacher have one size; empty where :meth:`with_size` supports
            others.
        backbone: As given; all parameters are its own.
        decode: As given; absent without one.
    """

    layout: ClassVar[PipelineLayout]
    released: ClassVar[Mapping[str, Any]]
    options: Mapping[str, Any]
    common: ClassVar[tuple[str, ...]] = ("schedule", "kind", "shift", "decode")
    latents_per_token: ClassVar[int] = 1
    one_size: ClassVar[str] = ""

    def __init__(
        self,
        backbone: Any,
        *,
        schedule: Schedule | None = None,
        kind: Kind = "velocity",
        time_range: tuple[float, float] = (0.0, 1.0),
        decode: Callable[[Latents], Tensor] | None = None,
        shift: float | None = None,
        **options: Any,
    ) -> None:
        self._check_known(options, self.options)
        check_modules(backbone)
        values = self.complete_options(backbone.config, {**self.options, **options})
        super().__init__(
            schedule=schedule or RectifiedFlow(),
            kind=kind,
            latent_shape=self.latents(backbone.config, **values),
            time_range=time_range,
        )
        self.backbone = backbone
        self.options = values
        self.given_shift, self.scheduler = shift, {}
        self.shift = self.recommended_shift()
        if decode is not None:
            self.decode = decode

    @classmethod
    @abstractmethod
    def latents(cls, config: Any, **options: Any) -> Sequence[int]:
        """Returns the shape of one sample's latents.

        Args:
            config: The network's configuration.
            options: All of ``options``.

        Raises:
            ValueError: If an option does not fit the network, or the network is not supported.
        """

    @classmethod
    def complete_options(cls, config: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Returns options with defaults that depend on the network's configuration; here none."""
        return options

    @classmethod
    def network_config(cls, **sizes: Any) -> dict[str, Any]:
        """Returns the network's configuration in diffusers; here the sizes themselves.

        Args:
            sizes: All of ``released``, some of them replaced.

        Raises:
            ValueError: If a size does not fit.
        """
        return sizes

    @classmethod
    def config_options(cls, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor's arguments that follow from sizes; here none."""
        return {}

    @classmethod
    def read_options(cls, folder: str | Path) -> dict[str, Any]:
        """Returns the constructor's arguments that a pipeline's folder states; here none.

        Raises:
            ValueError: If a part is missing or not supported.
        """
        return {}

    @classmethod
    def read_slots(cls, folder: str | Path) -> tuple[str, ...]:
        """Returns the subfolders of a pipeline's networks; here those of the layout."""
        return cls.layout.slots

    @classmethod
    def read_decoder(cls, folder: str | Path, **place: Any) -> Callable[[Latents], Tensor] | None:
        """Returns the decoder of a pipeline, ``None`` without a VAE.

        Args:
            folder: The pipeline's folder or hub name.
            place: ``dtype`` and ``device`` of its weights.
        """
        return load_decoder(cls.layout.vae, folder, **place) if cls.layout.vae else None

    @classmethod
    def read_latent_encoder(cls, folder: str | Path, **place: Any) -> Callable[[Tensor], Latents]:
        """Returns the encoder of real samples of a pipeline, from pixels in [0, 1].

        Args:
            folder: The pipeline's folder or hub name.
            place: ``dtype`` and ``device`` of its weights.

        Raises:
            ValueError: If the pipeline has no VAE.
        """
        if not cls.layout.vae:
            raise ValueError(
                f"a {cls.layout.pipeline} has no VAE, so that its samples are pixels; pass them "
                "by DataSamples"
            )
        own = PipelineTeacher
        if (
            cls.read_decoder.__func__ is not own.read_decoder.__func__
            and cls.read_latent_encoder.__func__ is own.read_latent_encoder.__func__
        ):
            raise ValueError(
                f"{cls.__name__} decodes in a way of its own, and states no encoder of real "
                "samples; override read_latent_encoder, or pass latents by DataSamples"
            )
        return load_latent_encoder(cls.layout.vae, folder, **place)

    def default_shift(self) -> float:
        """Returns the shift of time that the family recommends at this size; here 1."""
        return 1.0

    def recommended_shift(self) -> float:
        """Returns the shift of time at this size: that given, the scheduler's, or the default."""
        if self.given_shift is not None:
            return self.given_shift
        return (
            scheduled_shift(self.scheduler, self.tokens)
            if self.scheduler
            else self.default_shift()
        )

    def with_size(self, **sizes: int) -> Self:
        """Returns a teacher of another size over the same network, prompts and decoder.

        Args:
            sizes: ``height``, ``width`` and ``frames``, as the family has them.

        Raises:
            ValueError: If a size is not known or does not fit, or samples have one size.
        """
        if self.one_size:
            raise ValueError(f"{type(self).__name__} has samples of one size: {self.one_size}")
        self._check_known(sizes, [key for key in SIZES if key in self.options])
        resized = copy.copy(self)  # the same networks, in a dictionary of its own
        resized._modules = dict(self._modules)
        resized.options = {**self.options, **sizes}
        resized.latent_shape = tuple(self.latents(self.backbone.config, **resized.options))
        resized.shift = resized.recommended_shift()
        return resized

    def reset_tables(self, device: str | torch.device = "cpu") -> None:
        """Recomputes tables that the network left on the meta device; here none."""

    @property
    def tokens(self) -> int:
        """The number of tokens of one sample, on which a shift may depend."""
        return math.prod(self.latent_shape[1:]) // self.latents_per_token

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str | torch.dtype = "bfloat16",
        device: str | torch.device = "cpu",
        meta: bool = False,
        config: str | Path = "",
        **options: Any,
    ) -> Teacher:
        """Loads the network of a pipeline, tensor by tensor; the VAE is loaded on first use.

        Args:
            folder: The pipeline's folder or hub name, or the file of its network
                (:mod:`~pdmd.teachers.families.single_files`).
            config: With a file, the pipeline with the other parts.
            dtype: Type of all weights; those that the family keeps in float32 stay so.
            device: Where they live.
            meta: Whether to leave the network's weights on the meta device.
            options: The constructor's arguments, such as the size; those that the folder states
                by default.

        Returns:
            A teacher of one network, or a :class:`~pdmd.teachers.routed.RoutedTeacher` of two.

        Raises:
            ValueError: If a part is missing or of another family, or an argument is not known.
        """
        cls._check_known(options, [*cls.options, *cls.common])
        folder = cls._pipeline_folder(folder, config)
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        with reading(folder):
            options = {**cls.read_options(folder), **options}
            slots, router = cls.read_slots(folder), None
            if len(slots) > 1:
                ratio = configuration(cls.layout.pipeline, folder).get("boundary_ratio")
                slots, router = (
                    (slots[:1], None) if ratio is None else (slots, boundary_router(ratio))
                )
            decodes = bool(cls.layout.vae) and "decode" not in options
            if decodes:
                options["decode"] = cls.read_decoder(folder, **place)
            parts = []
            for slot in slots:
                backbone = load_backbone(cls.layout.network, folder, slot, meta=meta, **place)
                part = cls(backbone, **options)
                if decodes:
                    check_channels(cls.layout.vae, folder, part.latent_shape[0])
                part.reset_tables(device)
                if cls.layout.scheduler and options.get("shift") is None:
                    scheduler = configuration(cls.layout.scheduler, folder, "scheduler")
                    part.scheduler = scheduler
                    part.shift = part.recommended_shift()
                parts.append(part)
            return parts[0] if router is None else RoutedTeacher(parts, router)

    @classmethod
    def from_config(
        cls,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        meta: bool = False,
        seed: int = 0,
        **arguments: Any,
    ) -> Teacher:
        """Builds a teacher with random weights, of the released size by default.

        For tests and measurements of cost.

        Args:
            dtype: Type of the weights.
            device: Where they live.
            meta: Whether to build it on the meta device, without memory for its weights.
            seed: Seed of the weights.
            arguments: The constructor's arguments, such as the size of a sample, and sizes of the
                network in place of those in ``released``.

        Returns:
            A teacher of one network, or a :class:`~pdmd.teachers.routed.RoutedTeacher` of two
            where ``boundary_ratio`` is not 0.

        Raises:
            ValueError: If an argument is not known, or does not fit.
        """
        cls._check_known(arguments, [*cls.released, *cls.options, *cls.common])
        given = {key: arguments[key] for key in arguments if key not in cls.released}
        sizes = cls.sizes(arguments)
        options = {**cls.config_options(sizes), **given}
        ratio = sizes.pop("boundary_ratio", 0.0)
        router = boundary_router(ratio) if ratio else None
        config = cls.network_config(**sizes)

        def part(seed: int) -> Self:
            backbone = build_part(
                cls.layout.network, config, dtype=dtype, device=device, meta=meta, seed=seed
            )
            built = cls(backbone, **options)
            if meta:
                built.reset_tables(device)
            return built

        return (
            part(seed) if router is None else RoutedTeacher([part(seed), part(seed + 1)], router)
        )

    @classmethod
    def from_arguments(cls, *, folder: str = "", meta: bool = False, **arguments: Any) -> Teacher:
        """Builds a teacher from plain values, as configurations state them.

        Args:
            folder: A pipeline's folder or hub name, for :meth:`from_pretrained`; by default the
                family's, if it ships. Without one :meth:`from_config` draws random weights.
            meta: Whether to leave the weights on the meta device.
            arguments: Of the one or the other.
        """
        folder = folder or cls.layout.folder
        if folder:
            return cls.from_pretrained(folder, meta=meta, **arguments)
        return cls.from_config(meta=meta, **arguments)

    def with_backbone(self, backbone: Any) -> Self:
        """Returns a teacher of the same size with another network, without prompts and decoder."""
        own: dict[str, Any] = {"schedule": self.schedule, "kind": self.kind, "shift": self.shift}
        return type(self)(backbone, **own, **self.options)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy of the network that trains, without prompts and decoder."""
        copied = self.with_backbone(copy.deepcopy(self.backbone))
        return copied.requires_grad_(True).train()

    @classmethod
    def _pipeline_folder(cls, folder: str | Path, config: str | Path) -> str | Path:
        if is_single_file(folder):
            return with_network_file(cls.layout, folder, config)
        if config:
            raise ValueError(f"config = {config} is for a network's file, and {folder} is none")
        return folder

    @classmethod
    def sizes(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the released sizes with those of the arguments in their place."""
        return {key: arguments.get(key, value) for key, value in cls.released.items()}

    @classmethod
    def _check_known(cls, arguments: Iterable[str], known: Iterable[str]) -> None:
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise ValueError(
                f"{cls.__name__} takes no argument {', '.join(map(repr, unknown))}; it takes "
                f"{', '.join(sorted(known))}"
            )
