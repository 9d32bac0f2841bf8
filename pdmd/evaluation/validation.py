r"""Validation: fixed prompts and noise, sampled by the student so far beside the teacher.

At an interval, and at the end of a phase, every rank samples its rows: the experts of finished
phases, the average of the one in training, and from there to :math:`x_0` the teacher with its own
steps. The teacher's samples :math:`y` come from the same noise, and are computed once for a run.
With pairs :math:`x, x'` of one prompt and :math:`M` the mean of the teacher's values, the figures
are

- ``distance``, :math:`(\mathbb E \|x - y\|^2 / \mathbb E \|y - M\|^2)^{1/2}`, to the teacher's
  sample of the same noise;
- ``diversity``, :math:`\mathbb E \|x - x'\|^2 / (2 \mathbb E \|x - M\|^2)`, within prompts, and
  the teacher's, where there are several seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pdmd.distillation.buckets import Bucket
from pdmd.distillation.experts import Expert
from pdmd.distillation.unfinished import sample_unfinished, teacher_times
from pdmd.evaluation.figures import plain_text, png, prompt_rows, vector_scatter
from pdmd.evaluation.pictures import GridWriter, caption
from pdmd.extras import MissingExtra, require
from pdmd.files import save_tensors, write_file
from pdmd.randomness import RankGenerator
from pdmd.training.monitoring.monitors import Cycle, Monitor, undisturbed
from pdmd.training.monitoring.outputs import Outputs
from pdmd.typing import Condition, Latents

__all__ = ["ValidationSet", "Validator", "validation_figures"]

STORED = "teacher.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSet:
    """Prompts and seeds of a validation.

    Attributes:
        prompts: The prompts.
        condition: Their conditions, with one row per prompt, or ``None``.
        seeds: Samples of each prompt.
        seed: Seed of the noise.
    """

    prompts: Sequence[Any]
    condition: Condition
    seeds: int = 2
    seed: int = 0

    def __len__(self) -> int:
        return len(self.prompts) * self.seeds


class Validator(Monitor):
    """Samples and draws fixed prompts while a student trains.

    Pictures are written to a folder, as grids of teacher and student:
    ``phase_1_update_000200.png`` and, of videos, ``.mp4``, or ``.gif`` without the extra
    ``video``.

    Args:
        folder: The folder; the main rank writes to it.
        validation: Prompts and seeds.
        decode: Decodes latents to pictures in [0, 1]; without one, the first two dimensions of the
            latents are plotted.
        every: Updates between validations; a phase ends with one.
        steps: Steps of the teacher, from noise to data.
        batch: Samples that a rank draws and decodes together; 0 for those of a training batch.
        fps: Frames per second of videos.
        bucket: The size of the samples, in a folder and scalars of its own; the teacher's by
            default.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        folder: Path,
        validation: ValidationSet,
        decode: Callable[[Latents], Tensor] | None,
        *,
        every: int,
        steps: int = 25,
        batch: int = 0,
        fps: float = 16.0,
        bucket: Bucket | None = None,
    ) -> None:
        if every < 1 or steps < 1 or batch < 0 or validation.seeds < 1:
            raise ValueError(
                "a validation needs every, steps and seeds of at least 1 and a batch of at least "
                f"0, got every = {every}, steps = {steps}, seeds = {validation.seeds} and batch = "
                f"{batch}"
            )
        require("report", "matplotlib", "PIL")
        self.bucket, self.name = bucket, "validation"
        if bucket is not None:
            size = str(bucket).replace(" ", "")
            folder, self.name = folder / size, f"validation_{size}"
        self.folder, self.validation, self.decode = folder, validation, decode
        self.every, self.steps, self.batch, self.fps = every, steps, batch, fps
        self.outputs = Outputs()
        self._teacher: tuple[Latents, Tensor | None] | None = None

    def on_update(self, cycle: Cycle) -> None:
        if cycle.update % self.every and not cycle.last:
            return
        with torch.no_grad(), undisturbed(cycle.device):
            teacher = self._of_teacher(cycle)
            latents = self._sampled(cycle, cycle.experts())
            pictures = self._decoded(cycle, latents)
        if not cycle.runtime.main:
            return
        values = validation_figures(latents, teacher[0], self.validation.seeds)
        name = f"phase_{cycle.phase.number}_update_{cycle.update:06d}"
        drawn = latents if pictures is None else pictures
        self.outputs.attempt(f"{self.name}/", lambda: self._write(cycle, name, values, drawn))
        named = {f"{self.name}/{key}": value for key, value in values.items()}
        cycle.recorder.on_validation(cycle.phase, cycle.update, named, self.folder / f"{name}.png")

    def _of_teacher(self, cycle: Cycle) -> tuple[Latents, Tensor | None]:
        """Returns the teacher's samples and their pictures, from the folder if they are there."""
        if self._teacher is None:
            path = self.folder / STORED
            found = self._stored(path)
            if cycle.runtime.ranks.any(found is None) or found is None:
                found = drawn = self._sampled(cycle, ())
                if cycle.runtime.main:
                    self.outputs.attempt(f"{self.name}/", lambda: self._store(path, drawn))
            pictures = self._decoded(cycle, found)
            self._teacher = found, pictures
        return self._teacher

    def _key(self) -> str:
        known = self.validation
        prompts = [caption(prompt) for prompt in known.prompts]
        size = [] if self.bucket is None else [self.bucket.latent_shape, self.bucket.shift]
        return json.dumps([prompts, known.seeds, known.seed, self.steps, *size])

    def _store(self, path: Path, latents: Latents) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"latents": latents}, path, metadata={"of": self._key()})

    def _stored(self, path: Path) -> Latents | None:
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("of") != self._key():
                    return None
                return file.get_tensor("latents")
        except (OSError, ValueError, LookupError, SafetensorError):
            return None

    def _rows(self, cycle: Cycle) -> list[range]:
        """Returns the rows of each of this rank's batches, as many as every other rank's."""
        ranks = cycle.runtime.ranks
        own = -(-len(self.validation) // ranks.data_ranks)
        size = min(self.batch or cycle.batch, own)
        first = own * ranks.data_rank
        return [range(first + i, first + min(i + size, own)) for i in range(0, own, size)]

    def _sampled(self, cycle: Cycle, experts: Sequence[Expert]) -> Latents:
        """Samples all rows over the ranks, and returns them on the CPU."""
        known, parts = self.validation, []
        bucket = self.bucket or Bucket(latent_shape=cycle.teacher.latent_shape)
        times = teacher_times(cycle.teacher, self.steps, bucket.shift)
        experts = [bucket.expert(expert) for expert in experts]
        for rows in self._rows(cycle):
            condition = None
            if known.condition is not None:
                prompts = [row // known.seeds % len(known.prompts) for row in rows]
                condition = known.condition[torch.tensor(prompts)].to(cycle.device)
            generator = RankGenerator.make(known.seed, first_row=rows.start)
            x = sample_unfinished(
                experts,
                cycle.teacher,
                condition,
                batch=len(rows),
                generator=generator,
                times=times,
                latent_shape=bucket.latent_shape,
            )
            parts.append(x.float())
        return self._gathered(cycle, parts)

    def _gathered(self, cycle: Cycle, parts: Sequence[Tensor]) -> Tensor:
        """Returns the rows of all ranks, in their order; those that fill up the last are cut."""
        ranks = cycle.runtime.ranks
        gathered = [ranks.gather_rows(part) for part in parts]  # one batch at a time
        by_rank = [
            part.unflatten(0, (ranks.data_ranks, -1))[rank]
            for rank in range(ranks.data_ranks)
            for part in gathered
        ]
        return torch.cat(by_rank)[: len(self.validation)]

    def _decoded(self, cycle: Cycle, latents: Latents) -> Tensor | None:
        """Decodes all rows over the ranks, as bytes; ``None`` if a rank cannot."""
        if self.decode is None:
            return None
        parts: list[Tensor] = []
        error: Exception | None = None
        try:
            for rows in self._rows(cycle):
                chosen = [row % len(latents) for row in rows]
                pictures = self.decode(latents[chosen].to(cycle.device))
                parts.append((255 * pictures.float().clamp(0, 1)).round().to(torch.uint8))
        except Exception as raised:  # a decoder of the user, or memory
            error = raised
        if cycle.runtime.ranks.any(error is not None):
            why = "" if error is None else f" ({' '.join(str(error).split())[:200]})"
            cycle.recorder.on_warning(f"validation samples could not be decoded{why}")
            self.decode = None
            return None
        return self._gathered(cycle, parts)

    def _write(
        self,
        cycle: Cycle,
        name: str,
        values: Mapping[str, float],
        drawn: Tensor,
    ) -> None:
        assert self._teacher is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {"phase": cycle.phase.number, "update": cycle.update, **values}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        latents, pictures = self._teacher
        real = latents if self.decode is None else pictures
        assert real is not None
        titles = "teacher", f"student, phase {cycle.phase.number} update {cycle.update}"
        panels = dict(zip(titles, (real, drawn), strict=True))
        if self.decode is None:
            flat = {title: x.flatten(1) for title, x in panels.items()}
            write_file(self.folder / f"{name}.png", png(vector_scatter(flat), tight=True))
            return
        panels = {title: p.float() / 255 for title, p in panels.items()}
        texts = [plain_text(caption(prompt)) or "-" for prompt in self.validation.prompts]
        middle = {k: p[:, :, p.shape[2] // 2] if p.ndim == 5 else p for k, p in panels.items()}
        write_file(self.folder / f"{name}.png", png(prompt_rows(middle, texts), tight=True))
        if drawn.ndim == 5:
            self._write_video(name, panels, texts)

    def _write_video(self, name: str, panels: Mapping[str, Tensor], texts: Sequence[str]) -> None:
        suffix = ".mp4"
        try:
            require("video", "imageio", "imageio_ffmpeg")
        except MissingExtra:
            suffix = ".gif"
        writer = GridWriter(self.folder / f"{name}{suffix}", fps=self.fps)
        rows = [text for text in texts for _ in range(self.validation.seeds)]
        title = " | ".join(panels)
        writer.add(torch.cat([*panels.values()], -1), [f"{title}: {text}" for text in rows])
        writer.close()


def validation_figures(student: Latents, teacher: Latents, seeds: int) -> dict[str, float]:
    """Compares a student's samples with the teacher's of the same noise.

    Args:
        student: The samples, grouped by prompt, with shape :math:`(PS, *)`.
        teacher: The teacher's, with the same shape.
        seeds: The samples :math:`S` of each prompt.

    Returns:
        ``distance``, and for several seeds ``diversity`` and ``teacher_diversity``.
    """
    x, y = (value.double().flatten(1) for value in (student, teacher))
    centre = y.mean()
    spread = float((y - centre).square().mean())
    out = {"distance": float((x - y).square().mean() / max(spread, 1e-30)) ** 0.5}
    if seeds > 1:
        for name, value in {"diversity": x, "teacher_diversity": y}.items():
            groups = value.unflatten(0, (-1, seeds))
            within = groups.var(1).mean()  # half the mean square between two of them
            total = (value - centre).square().mean().clamp(min=1e-30)
            out[name] = float(within / total)
    return out
