"""Students loaded for a runtime: on its device, or sharded over its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distillation.experts import Expert
from pdmd.distillation.student_folders import schedule_of, source_teacher
from pdmd.distillation.students import Student
from pdmd.distributed.runtime import Runtime
from pdmd.teachers.base import Teacher, import_plugins
from pdmd.teachers.guided import guided, unguided
from pdmd.teachers.with_schedule import on_schedule

__all__ = ["PlacedStudent"]


@dataclass(frozen=True)
class PlacedStudent:
    """A student and its teacher, placed by a runtime.

    Args:
        folder: The student's folder.
        student: The student, over placed networks.
        teacher: The teacher, guided and on the schedule of the distillation; it encodes prompts.
        real: The network from which the teacher is sampled.
        runtime: Where they are.
        guidance: The teacher's guidance scales.
    """

    folder: Path
    student: Student
    teacher: Teacher
    real: Denoiser
    runtime: Runtime
    guidance: tuple[float, ...]

    @classmethod
    def load(
        cls,
        name: str,
        runtime: Runtime,
        *,
        plugins: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        guidance: Sequence[float] = (),
        trust_source: bool = False,
        decoding: bool = False,
    ) -> PlacedStudent:
        """Loads a student and places it; all ranks do so together.

        On several ranks each reads its shards of the files, and holds no network whole.

        Args:
            name: The student folder, or the run folder that contains it.
            runtime: Where they are placed.
            plugins: Python modules to import first.
            arguments: Arguments of the teacher that replace those of the run.
            guidance: The teacher's guidance scales; by default those of the distillation.
            trust_source: Whether to use the URLs and cache folders that the student's folder
                names.
            decoding: Whether the teacher's encoders and decoder compute on the runtime's device,
                too; otherwise where its arguments say.

        Raises:
            ValueError: If the folder is missing, damaged, names no registered teacher, or names
                places that are not trusted.
        """
        placement = runtime.placement
        with runtime.ranks.consensus():
            import_plugins(plugins)
            path = Path(name)
            if not (path / "student.json").exists() and (path / "student").is_dir():
                path = path / "student"
            device = str(runtime.device) if decoding else ""
            base = source_teacher(
                path,
                arguments,
                device=device,
                trust_source=trust_source,
                outlined=not placement.in_place,
            )
            base = placement.outline(base) if has_weights(base) else base
            student = Student.load(path, teacher=base)
            source = student.source or {}
            given = guidance or source.get("guidance", ())  # one number, or one per network
            scales = (given,) if isinstance(given, int | float) else tuple(given) or (1.0,)
            negative = source.get("negative_prompt", "") if set(scales) != {1.0} else ""
            low, high = source.get("guidance_interval", (0.0, 1.0))
            teacher = guided(
                unguided(base), scales, negative_prompt=negative, interval=(low, high)
            )
            teacher = on_schedule(teacher, *schedule_of(source))
        experts = cast("list[Expert]", list(student.experts))
        adapts = any(adapted_parts(expert) for expert in experts)
        real: Denoiser = teacher
        if placement.in_place or has_weights(teacher):
            real = placement.frozen(teacher, shared=adapts, offload=runtime.offload.teacher)
        placed = {
            key: placement.frozen(network, offload=runtime.offload.experts)
            for key, network in {id(e.denoiser): e.denoiser for e in experts}.items()
        }
        own = [type(e)(placed[id(e.denoiser)], e.phase).eval() for e in experts]
        student = Student(
            [expert.requires_grad_(False) for expert in own],
            encode=student.encode,
            prompts=student.prompts,
            router=student.router,
            source=student.source,
            buckets=student.buckets,
        )
        return cls(path, student, teacher, real, runtime, scales)

    def release(self) -> None:
        """Moves networks that were placed in place back to the CPU."""
        for network in (self.teacher, *self.student.experts):
            self.runtime.placement.release(network)


def has_weights(network: Denoiser) -> bool:
    """Returns whether a network has parameters."""
    return any(True for _ in network.parameters())
