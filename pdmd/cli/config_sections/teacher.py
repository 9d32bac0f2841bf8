"""The sections ``[teacher]`` and ``[network]``: what is distilled, and into what."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pdmd.cli.composition import Composer
from pdmd.cli.config_sections.random_weights import check_room, weights_notice
from pdmd.cli.values import Arguments, Table, Terms, inline_toml
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import Router
from pdmd.diffusion.schedules import Schedule
from pdmd.distillation.buckets import Bucket, Buckets
from pdmd.distributed.materialization import missing_sources
from pdmd.extras import MissingExtra
from pdmd.teachers.base import (
    Teacher,
    import_plugins,
    networks,
    outline_arguments,
    teachers,
)
from pdmd.teachers.guided import guided, unguided
from pdmd.teachers.routed import with_router
from pdmd.teachers.with_schedule import on_schedule, schedules

__all__ = ["NetworkConfig", "TeacherConfig"]

SUPPLIED = ("schedule", "kind", "dim", "classes")
"""Arguments of a registered network that follow from the teacher."""


@dataclass(kw_only=True)
class TeacherConfig:
    """The teacher, by registered name."""

    name: str = "digits"
    """A registered teacher: see 'pdmd teachers'."""
    guidance: tuple[float, ...] = (1.0,)
    """Guidance scale, 1 for none: one number, or one per network of the teacher."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The lowest and highest time with guidance, of the teacher's own schedule."""
    negative_prompt: str = ""
    """Text that guidance leads away from; by default no text. A store of embeddings must have it
    among its prompts."""
    arguments: Arguments = field(default_factory=dict)
    """Arguments of the teacher by name, for example dim and modes of the mixture."""
    buckets: Terms = ()
    """Sizes of samples, one of which is drawn per batch: tables of height, width and frames, the
    weight of a size among all (1 by default), and the shift of the plan's times at it (by default
    as the teacher's recommended one changes), for example {height = 1024, width = 768}. Sizes
    that are left out are those of the arguments, whose size is one of the buckets: it is that of
    validation, health and evaluation."""
    schedule: str = ""
    """Schedule of both: rectified_flow, cosine or linear; the teacher's by default."""
    schedule_end: Literal["noise", "teacher"] = "noise"
    """Where that schedule ends: at pure noise, or at the teacher's noisiest level."""
    router: Table = field(default_factory=dict)
    """Which of its networks serves which time: the teacher's own router if empty, otherwise a
    registered one, for example {name = "interval", boundaries = [1.0, 0.9, 0.0]}."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register teachers, networks and objectives."""
    check_score: bool = True
    """Look first, by 11 evaluations of 8 rows, whether it is the score of its own samples."""

    def notice(self) -> str:
        """Returns a line for the user if the teacher has random weights, else ``""``."""
        return weights_notice(self.name, self.arguments)

    def source(self) -> dict[str, Any]:
        """Returns the ``source`` of a :class:`~pdmd.distillation.students.Student` of it."""
        source: dict[str, Any] = {
            "teacher": self.name,
            "arguments": self.arguments,
            "guidance": list(self.guidance),
        }
        if self.negative_prompt:
            source["negative_prompt"] = self.negative_prompt
        if tuple(self.guidance_interval) != (0.0, 1.0):
            source["guidance_interval"] = list(self.guidance_interval)
        if self.router:
            source["router"] = dict(self.router)
        if self.schedule:
            source["schedule"] = {"name": self.schedule, "end": self.schedule_end}
        return source

    def build(self, *, outlined: bool = False) -> Teacher:
        """Builds the teacher, with guidance and on the chosen schedule.

        Args:
            outlined: Whether to build an outline of one that is loaded from a folder, for ranks
                that read their shards alone (:mod:`pdmd.distributed.weight_sources`). Teachers
                whose factory takes no ``meta`` are built whole.

        Raises:
            ValueError: If the name is not registered, the arguments do not fit, random weights do
                not fit into memory, or a package is missing.
        """
        self.check_name()
        meta = outline_arguments(self.name) if outlined and self.arguments.get("folder") else {}
        try:
            check_room(self.name, self.arguments)
            teacher = teachers[self.name](**self.arguments, **meta)
            if meta and missing_sources(teacher):  # a factory for plans only
                teacher = teachers[self.name](**self.arguments)
        except MissingExtra:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise ValueError(f"teacher.arguments do not fit {self.name!r}: {error}") from error
        router = self._router()
        if router is not None:
            try:
                teacher = with_router(teacher, router)
            except ValueError as error:
                raise ValueError(f"teacher.router does not fit {self.name!r}: {error}") from error
        low, high = self.guidance_interval
        teacher = guided(
            teacher, self.guidance, negative_prompt=self.negative_prompt, interval=(low, high)
        )
        return on_schedule(teacher, self.schedule, self.schedule_end).eval()

    def build_buckets(self, teacher: Teacher) -> Buckets:
        """Builds the sizes of samples; by default the teacher's own.

        Args:
            teacher: The teacher that :meth:`build` returned.

        Raises:
            ValueError: If a bucket does not fit the teacher, or none has its size.
        """
        if not self.buckets:
            return Buckets.of_shape(teacher.latent_shape)
        own = unguided(teacher)
        built = [self._bucket(own, i, table) for i, table in enumerate(self.buckets)]
        try:
            buckets = Buckets(built)
        except ValueError as error:
            raise ValueError(f"teacher.buckets: {error}") from error
        if buckets.find(own.latent_shape) is None:
            raise ValueError(
                f"none of teacher.buckets has the size of teacher.arguments, latents of "
                f"{' x '.join(map(str, own.latent_shape))}, at which samples are validated and "
                "evaluated; add it, or give the arguments the size of a bucket"
            )
        return buckets

    def at_bucket(self, table: Mapping[str, Any]) -> TeacherConfig:
        """Returns the configuration of a teacher of one bucket's size."""
        sizes = {k: v for k, v in table.items() if k not in ("weight", "shift")}
        return replace(self, arguments={**self.arguments, **sizes}, buckets=())

    def _bucket(self, teacher: Teacher, index: int, table: Any) -> Bucket:
        where = f"teacher.buckets[{index + 1}] = {inline_toml(table)}"
        if not isinstance(table, Mapping):
            raise ValueError(f"{where} is no table; give {{height = ..., width = ...}}")
        for key, value in table.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            number = whole or isinstance(value, float)
            if not (number if key in ("weight", "shift") else whole):
                raise ValueError(f"{where}: {key} must be a number, got {value!r}")
        sizes = {k: v for k, v in table.items() if k not in ("weight", "shift")}
        try:
            resized = teacher.with_size(**sizes)
            # On another schedule, the shift of the teacher's own times has no meaning.
            follows = resized.shift / teacher.shift if not self.schedule else 1.0
            return Bucket(
                latent_shape=resized.latent_shape,
                weight=float(table.get("weight", 1.0)),
                shift=float(table.get("shift", follows)),
            )
        except ValueError as error:
            raise ValueError(f"{where} does not fit {self.name!r}: {error}") from error

    def check_name(self) -> None:
        """Imports the plugins and checks that teacher, router, schedule and guidance exist.

        Raises:
            ValueError: If one does not.
        """
        import_plugins(self.plugins)
        if self.name not in teachers:
            teachers[self.name]
        self._router()
        if self.schedule and self.schedule not in schedules:
            schedules[self.schedule]
        if not self.guidance:
            raise ValueError("teacher.guidance is empty; give one number, 1 for none")
        if self.negative_prompt and all(scale == 1 for scale in self.guidance):
            raise ValueError(
                f"teacher.negative_prompt = {self.negative_prompt!r:.60} has no effect without "
                "guidance; set teacher.guidance, or leave it out"
            )
        interval = tuple(self.guidance_interval)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"teacher.guidance_interval is two increasing times in [0, 1], got {interval}"
            )
        if interval != (0.0, 1.0) and all(scale == 1 for scale in self.guidance):
            raise ValueError(
                f"teacher.guidance_interval = {interval} has no effect without guidance; set "
                "teacher.guidance, or leave it out"
            )
        for scale in self.guidance:
            if not math.isfinite(scale):
                raise ValueError(f"teacher.guidance must be finite, got {scale}")

    def _router(self) -> Router | None:
        return Composer().build(Router, self.router, "teacher.router") if self.router else None


@dataclass(kw_only=True)
class NetworkConfig:
    """The experts' network for a teacher without weights, pretrained by flow matching."""

    name: str = "mlp"
    """A registered network."""
    arguments: Arguments = field(default_factory=dict)
    """Arguments of the network by name, for example width and depth of the mlp."""
    updates: int = 3000
    """Flow-matching updates before distillation."""

    def check(self) -> None:
        """Checks the name and the names of the arguments.

        Raises:
            ValueError: If one is unknown.
        """
        parameters = inspect.signature(networks[self.name]).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        known = [key for key in parameters if key not in SUPPLIED]
        for key in self.arguments:
            if key in SUPPLIED:
                raise ValueError(
                    f"network.arguments.{key} follows from the teacher; remove it. "
                    f"{self.name} takes {', '.join(known)}"
                )
            if key not in known:
                raise ValueError(
                    f"unknown key 'network.arguments.{key}': {self.name} takes {', '.join(known)}"
                )

    def build(self, supplied: Mapping[str, Any], schedule: Schedule) -> Denoiser:
        """Builds the network, untrained.

        Args:
            supplied: All arguments but the schedule, the configured ones among them.
            schedule: The teacher's schedule.

        Raises:
            ValueError: If the arguments do not fit.
        """
        try:
            return networks[self.name](**supplied, schedule=schedule)
        except MissingExtra:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise ValueError(f"network.arguments do not fit {self.name!r}: {error}") from error
