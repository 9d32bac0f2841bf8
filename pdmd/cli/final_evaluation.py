"""The evaluation at the end of a run: samples of all ranks, then tables and grids of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pdmd.cli.config import EvaluateConfig
from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.experts import Expert
from pdmd.distillation.students import Student
from pdmd.distributed.runtime import Runtime
from pdmd.evaluation.evaluate import draw_samples, euler_notice, score
from pdmd.files import shell_word, write_file
from pdmd.teachers.base import Teacher
from pdmd.training.monitoring.outputs import say
from pdmd.training.monitoring.recorder import notify

__all__ = ["LARGE", "FinalEvaluation"]

LARGE = 10**9
"""Parameters of a teacher above which a run ends without an evaluation by default."""


class FinalEvaluation:
    """Compares the student of a run with its teacher.

    Args:
        config: What is compared.
        folder: The run's folder.
        teacher: The teacher.
        runtime: Where the networks are.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        folder: Path,
        teacher: Teacher,
        runtime: Runtime,
        *,
        progress: bool,
    ) -> None:
        self.config, self.folder, self.teacher = config, folder, teacher
        self.runtime, self.progress = runtime, progress

    @property
    def wanted(self) -> bool:
        """Whether the run ends in an evaluation; says so where the teacher's size is why not."""
        size = sum(p.numel() for p in self.teacher.parameters())
        if self.config.at_end != "auto" or size <= LARGE:
            return self.config.at_end != "never"
        if self.runtime.main:
            say(
                f"pdmd: no evaluation at the end, as the teacher has {size / 1e9:.1f} billion "
                f"parameters, more than {LARGE / 1e9:g}; run `pdmd evaluate "
                f"{shell_word(self.folder)}`, or set evaluate.at_end = 'always'"
            )
        return False

    def sample(self, student: Student, real: Denoiser) -> dict[str, Any]:
        """Draws all samples, where networks were trained; all ranks do so together.

        Args:
            student: The student.
            real: The network from which the teacher is sampled.
        """
        if not self.runtime.placement.in_place:
            return self._draw(student, real)
        experts = cast("list[Expert]", list(student.experts))
        networks = [self.teacher, *{id(e): e.denoiser for e in experts}.values()]
        for network in networks:  # a distillation leaves them on the CPU
            self.runtime.placement.frozen(network)
        try:
            return self._draw(student, self.teacher)
        finally:
            for network in networks:
                self.runtime.placement.release(network)

    def _draw(self, student: Student, real: Denoiser) -> dict[str, Any]:
        from pdmd.evaluation.report import draw_grids

        shared: dict[str, Any] = {
            "teacher_steps": self.config.teacher_steps,
            "batch": self.config.batch,
            "real": real,
            "ranks": self.runtime.ranks,
        }
        samples, seed = self.config.samples, self.config.seed
        drawn = draw_samples(
            student, self.teacher, samples=samples, seed=seed, progress=self.progress, **shared
        )
        return {"compared": drawn, "shown": draw_grids(student, self.teacher, **shared)}

    def write(self, student: Student, drawn: dict[str, Any]) -> list[dict[str, Any]]:
        """Writes ``metrics.json`` and the grids.

        Args:
            student: The student.
            drawn: The result of :meth:`sample`.

        Returns:
            The rows of the table.
        """
        from pdmd.evaluation.report import write_grids

        steps = self.config.teacher_steps
        metrics = score(
            student,
            self.teacher,
            drawn["compared"],
            seed=self.config.seed,
            teacher_steps=steps,
        )
        write_file(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        notify(self.folder, euler_notice(metrics["rows"], [metrics["quality"]]))
        shown = drawn["shown"]
        write_grids(self.folder, student, self.teacher, teacher_steps=steps, drawn=shown)
        return metrics["rows"]
