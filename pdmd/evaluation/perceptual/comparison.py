r"""The comparison of a student with its teacher on the same prompts and noise.

Each rank samples all seeds of its prompts, decodes them, measures them and drops them; only rows
of measurements are gathered, and the main rank stores them. Row :math:`r` has prompt
:math:`\lfloor r / S \rfloor` and, in every method, the noise of :math:`r`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import ode_times, sample_ode
from pdmd.distillation.sampling import sample
from pdmd.distillation.students import Student
from pdmd.distributed.communicator import Communicator, SingleRank
from pdmd.evaluation.batches import RowBatch, row_batches
from pdmd.evaluation.perceptual.measurements import DecodedSamples, Thumbnails, decoded
from pdmd.evaluation.perceptual.metrics import Frechet, Metric
from pdmd.evaluation.perceptual.stores import FeatureStore
from pdmd.randomness import RankGenerator
from pdmd.teachers.base import Teacher
from pdmd.training.monitoring.bars import progress_bar
from pdmd.typing import Condition, Latents

__all__ = ["Comparison", "Method", "methods_of"]

SHOWN = 4
"""Prompts whose samples a report shows."""

Measure = Callable[[DecodedSamples], Tensor]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sampler that is compared.

    Args:
        name: Its name in the table.
        nfe: Its network evaluations per sample.
        draw: Samples latents of a condition, with noise of a generator.
        encode: Encodes prompts.
        device: Where it samples.
        latent_shape: The shape of one sample.
        settings: What determines its samples, besides prompts and noise, as JSON.
        folder: The name of its folder.
    """

    name: str
    nfe: int
    draw: Callable[[Condition, int, torch.Generator], Latents]
    encode: Callable[[Sequence[Any]], Condition]
    device: torch.device
    latent_shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""


def methods_of(
    student: Student,
    teacher: Teacher,
    *,
    teacher_steps: int,
    real: Denoiser | None = None,
    about_teacher: Mapping[str, Any] | None = None,
    digest: str = "",
) -> list[Method]:
    """Returns the teacher, the teacher at the student's steps, and the student.

    Args:
        student: The student.
        teacher: Its teacher, which encodes the prompts; the reference.
        teacher_steps: Steps of the reference.
        real: The network from which the teacher is sampled, for example the sharded one; the
            teacher itself by default.
        about_teacher: What determines the teacher's samples, as JSON.
        digest: The student's digest, which tells its folder from those of other students.

    Raises:
        ValueError: If the steps leave the teacher's time range.
    """
    denoiser, few = real or teacher, student.plan.nfe
    found: list[Method] = []
    for steps, name in ((teacher_steps, "teacher"), (few, f"teacher_euler_{few}")):
        ode_times(teacher, steps)

        def ode(c: Condition, rows: int, g: torch.Generator, steps: int = steps) -> Latents:
            return sample_ode(denoiser, c, steps=steps, batch=rows, generator=g)

        method = Method(
            name=name,
            nfe=steps * teacher.evaluations,
            draw=ode,
            encode=teacher.encode,
            device=denoiser.device,
            latent_shape=tuple(teacher.latent_shape),
            settings={"steps": steps, "teacher": dict(about_teacher or {})},
            folder=f"teacher_{steps}",
        )
        found.append(method)
    own = Method(
        name="student",
        nfe=few,
        draw=lambda c, rows, g: sample(student, c, batch=rows, generator=g),
        encode=teacher.encode,
        device=student.device,
        latent_shape=tuple(student.latent_shape),
        settings={"student": digest},
        folder=f"student_{digest[:8]}" if digest else "student",
    )
    return [*found, own]


class Comparison:
    """Compares methods on the same prompts and noise; the first is the reference.

    Args:
        methods: The methods.
        decode: Maps latents to pictures in [0, 1].
        prompts: The prompts.
        metrics: The metrics by name.
        measurements: The measurements that they read, by name.
        folder: Where measured rows are stored, a folder a method.
        seeds: Samples of each prompt.
        seed: The seed of the noise.
        batch: Samples that a rank draws together.
        settings: What else determines the rows, such as the sources of the measurements.
        ranks: The ranks; this process alone by default.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        *,
        decode: Callable[[Latents], Tensor],
        prompts: Sequence[Any],
        metrics: Mapping[str, Metric],
        measurements: Mapping[str, Measure],
        folder: Path,
        seeds: int = 8,
        seed: int = 1234,
        batch: int,
        settings: Mapping[str, Any] | None = None,
        ranks: Communicator | None = None,
    ) -> None:
        if seeds < 2:
            raise ValueError(f"diversity needs 2 seeds of a prompt or more, got {seeds}")
        if not prompts:
            raise ValueError("there are no prompts to compare on")
        self.methods, self.decode, self.prompts = list(methods), decode, prompts
        self.metrics, self.measurements = dict(metrics), dict(measurements)
        self.seeds, self.seed, self.batch = seeds, seed, batch
        self.settings = {**(settings or {}), "seeds": seeds, "seed": seed, "prompts": len(prompts)}
        self.ranks = ranks or SingleRank()
        self.stores = {m.name: FeatureStore(folder / m.folder, seeds) for m in self.methods}
        self.total = len(prompts) * seeds

    def prepare(self, *, overwrite: bool = False) -> dict[str, int]:
        """Opens the stores, before any work.

        Args:
            overwrite: Whether to remove rows that were measured before.

        Returns:
            The rows of each method that are stored already, the same on every rank.

        Raises:
            ValueError: If a store has rows of other settings.
            OSError: If a store cannot be written.
        """
        with self.ranks.consensus():
            for method in self.methods if self.ranks.main else ():
                store = self.stores[method.name]
                if overwrite:
                    store.clear()
                store.open({**self.settings, **method.settings})
        return {
            name: self.ranks.highest(store.count() if self.ranks.main else 0)
            for name, store in self.stores.items()
        }

    def measure(self, done: Mapping[str, int], *, progress: bool = True) -> None:
        """Samples, decodes and measures what is not stored yet; all ranks do so together.

        Args:
            done: The rows of each method that are stored; the result of :meth:`prepare`.
            progress: Whether to show a progress bar.
        """
        for method in self.methods:
            first = done[method.name]
            title = f"evaluate: {method.name}"
            with progress_bar(title, self.total, unit="sample", done=first, shown=progress) as bar:
                for part in row_batches(
                    self.total, self.batch, self.ranks, first=first, unit=self.seeds
                ):
                    self._measure(method, part)
                    bar.update(part.kept)

    def _measure(self, method: Method, part: RowBatch) -> None:
        rows = part.rows
        prompts = [
            self.prompts[row // self.seeds % len(self.prompts)]
            for row in range(rows.start, rows.stop, self.seeds)
        ]
        pictures: list[Tensor] = []
        for i in range(0, len(rows), self.batch):
            chosen = rows[i : i + self.batch]
            texts = [prompts[(row - rows.start) // self.seeds] for row in chosen]
            condition = method.encode(texts)
            own = None if condition is None else condition.to(method.device)
            generator = RankGenerator.make(self.seed, first_row=chosen.start)
            x = method.draw(own, len(chosen), generator)
            pictures.append(decoded(self.decode, x))
        samples = DecodedSamples(torch.cat(pictures), prompts)
        measured = {name: measure(samples) for name, measure in self.measurements.items()}
        shown = min(SHOWN * self.seeds, self.total) - part.first
        if shown > 0:
            measured["thumbnails"] = Thumbnails()(samples)
        gathered = {name: self.ranks.gather_rows(x)[: part.kept] for name, x in measured.items()}
        if shown > 0:
            gathered["thumbnails"] = gathered["thumbnails"][:shown]
        with self.ranks.consensus():
            if self.ranks.main:
                self.stores[method.name].add(part.first, gathered, part.kept)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the table, a row a method; only where the stores are.

        Raises:
            ValueError: If rows are missing or not finite.
        """
        reference = self.stores[self.methods[0].name]
        table: list[dict[str, Any]] = []
        for method in self.methods:
            store = self.stores[method.name]
            row: dict[str, Any] = {"method": method.name, "nfe": method.nfe}
            for metric in self.metrics.values():
                if metric.compares and store is reference:
                    row |= dict.fromkeys(metric.figures)
                else:
                    row |= metric(store, reference)
            table.append(row)
        return table

    def notes(self) -> dict[str, str]:
        """Returns what the reader of the table should know, by subject."""
        found: dict[str, str] = {}
        reference = self.stores[self.methods[0].name]
        for name, metric in self.metrics.items():
            if not isinstance(metric, Frechet):
                continue
            block = next(reference.blocks(metric.measurement))
            rows, dim = self.total * block[0, ..., 0].numel(), block.shape[-1]
            if rows < 2 * dim:
                found[f"note ({name})"] = (
                    f"{rows:,} rows of {dim:,} features: the Frechet distance of few rows is "
                    "biased upwards; compare only figures of as many, or see the kernel distance"
                )
        return found

    def distances(self) -> list[str]:
        """Returns the columns that are distances to the reference."""
        return [name for m in self.metrics.values() if m.distance for name in m.figures]

    def pictures(self) -> dict[str, Tensor]:
        """Returns small pictures of the first prompts in [0, 1], by method."""
        found = {name: list(store.blocks("thumbnails")) for name, store in self.stores.items()}
        return {name: torch.cat(x).float() / 255 for name, x in found.items() if x}
