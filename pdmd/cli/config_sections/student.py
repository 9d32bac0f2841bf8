"""The section ``[student]``: experts of another network than the teacher's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdmd.cli.config_sections.random_weights import check_room
from pdmd.cli.values import Arguments
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.student_folders import read_description
from pdmd.distillation.student_networks import matched, random_weights
from pdmd.distillation.students import Student
from pdmd.distributed.materialization import missing_sources
from pdmd.extras import MissingExtra
from pdmd.objectives.base import Objective, OnlyPhases, WeightedSum
from pdmd.objectives.regression import TrajectoryRegression, VelocityRegression
from pdmd.teachers.base import Teacher, outline_arguments, teachers

__all__ = ["StudentConfig"]


@dataclass(kw_only=True)
class StudentConfig:
    """The experts' network, where it is not a copy of the teacher's: any of the same latents and
    conditions, by the name of a registered teacher. Fake scores start from the teacher.
    """

    name: str = ""
    """A registered teacher whose network the experts have: see 'pdmd teachers'; the teacher's
    own by default."""
    arguments: Arguments = field(default_factory=dict)
    """Its arguments by name, for example num_layers, or the folder of pretrained weights."""
    start: str = ""
    """Folder of a student whose experts they start from, such as runs/warm/student."""

    @property
    def given(self) -> bool:
        """Whether the experts start elsewhere than at the teacher."""
        return bool(self.name or self.start)

    def check(self) -> None:
        """Checks the names.

        Raises:
            ValueError: If the name is not registered, or keys exclude each other.
        """
        if self.name and self.name not in teachers:
            teachers[self.name]
        if self.start and self.name:
            raise ValueError(
                f"student.start = {self.start!r} has its own network, so that student.name = "
                f"{self.name!r} has no effect; leave one out"
            )
        if self.arguments and not self.name:
            raise ValueError("student.arguments are those of student.name; set it")

    def build(self, teacher: Teacher, *, outlined: bool = False) -> Denoiser:
        """Builds the network, on the teacher's schedule.

        Args:
            teacher: The teacher.
            outlined: Whether to build an outline of one that is loaded from a folder, for ranks
                that read their shards alone (:mod:`pdmd.distributed.weight_sources`).

        Raises:
            ValueError: If it cannot be built, or takes other latents than the teacher's.
        """
        if self.start:
            return matched(Student.load(self.start, teacher=teacher), teacher)
        return matched(self._build(outlined and bool(self.arguments.get("folder"))), teacher)

    def sketch(self, teacher: Teacher) -> Denoiser:
        """Builds the network for a plan: on the meta device where it can be."""
        if not self.start:
            return matched(self._build(True), teacher)
        own = (read_description(Path(self.start))["source"] or {}).get("student")
        if own is None:
            return teacher
        named = StudentConfig(name=own["teacher"], arguments=own.get("arguments", {}))
        return named.sketch(teacher)

    def source(self) -> dict[str, Any]:
        """Returns the keys of a student's ``source`` that say how its network is built."""
        if not self.start:
            return {"student": {"teacher": self.name, "arguments": dict(self.arguments)}}
        found = read_description(Path(self.start))["source"] or {}
        return {key: found[key] for key in ("student", "network") if key in found}

    def notice(self, objective: Objective) -> str:
        """Returns a line for the user where random weights start by matching distributions."""
        if not self.name or not random_weights(self.name, self.arguments):
            return ""
        terms = objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)
        inner = [t.objective if isinstance(t, OnlyPhases) else t for _, t in terms]
        if any(isinstance(term, TrajectoryRegression | VelocityRegression) for term in inner):
            return ""
        return (
            f"the student's network ({self.name}) has random weights, from which distribution "
            "matching rarely finds the data; first regress on the teacher in a run of its own, "
            "--objective.generator trajectory_regression --train.fake-updates 0 --out runs/warm, "
            "then start here from it: --student.start runs/warm/student"
        )

    def _build(self, outlined: bool) -> Teacher:
        meta = outline_arguments(self.name) if outlined else {}
        try:
            if not meta:
                check_room(self.name, self.arguments, "student")
            network = teachers[self.name](**self.arguments, **meta)
            if meta and self.arguments.get("folder") and missing_sources(network):
                network = teachers[self.name](**self.arguments)  # a factory for plans only
        except MissingExtra:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
            raise ValueError(f"student.arguments do not fit {self.name!r}: {error}") from error
        return network
