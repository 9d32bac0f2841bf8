"""The command `pdmd sample`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdmd.cli.arguments import check_numbers, parse, take_name
from pdmd.cli.values import Arguments
from pdmd.files import is_url, local_path, save_tensors

if TYPE_CHECKING:
    import torch

    from pdmd.distillation.students import Student
    from pdmd.teachers.base import Teacher

__all__ = ["STUDENT", "load_student", "sample_command", "student_folder"]

STUDENT = "the student folder, for example runs/digits/student"
TOGETHER = 2**20
"""Latent values that are sampled and decoded together by default."""
BLOCK = 16
"""Normal numbers that torch draws at once: rows of whole blocks do not depend on the batch."""


@dataclass(kw_only=True)
class SampleOptions:
    """Samples from a student folder and writes images, videos or latents.

    Of a run that still trains, or was interrupted, the newest checkpoint is sampled: the experts
    so far, continued by the teacher with its own steps.
    """

    prompts: tuple[str, ...] = ()
    """Prompts, one sample of each, repeated up to --n; the teacher's prompts by default."""
    n: int | None = None
    """Number of samples; by default one per prompt of --prompts, or 100."""
    seed: int = 0
    """Seed of the noise, of which every sample has its own, whatever the batch."""
    out: str = "samples.png"
    """A grid (.png, .mp4, .gif), a folder for one file per sample, or latents (.safetensors)."""
    batch_size: int = 0
    """Samples per batch; 0 chooses a batch of about a million latent values."""
    fps: float = 16.0
    """Frames per second of a video."""
    device: str = "auto"
    """Where to sample: auto, cpu or cuda."""
    arguments: Arguments = field(default_factory=dict)
    """Arguments of the teacher that replace those of the run, for example a folder that moved."""
    trust_source: bool = False
    """Use the URLs and cache folders that the student's folder names."""
    checkpoint: str = ""
    """Sample this checkpoint of a run instead of its student, or of its newest checkpoint."""
    teacher_steps: int = 25
    """Steps of the teacher from noise to data, which continue an unfinished student."""
    progress: bool = True
    """Show a progress bar."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the student's teacher."""


def sample_command(words: list[str]) -> int:
    """Runs ``pdmd sample``."""
    name, rest = take_name(words, STUDENT)
    options = parse(SampleOptions, rest, "pdmd sample STUDENT", flat=True)
    if options.n is None:
        options.n = len(options.prompts) or 100
    check_numbers(options, n=(1, 10**6), batch_size=(0, 10**6), seed=(0, 2**63 - 1))
    check_numbers(options, teacher_steps=(1, 10**4))
    from pdmd.cli.run_folders import check_writable
    from pdmd.distributed.runtime import pick_device
    from pdmd.evaluation.pictures import caption, sample_writer
    from pdmd.teachers.guided import unguided

    out, device = local_path(options.out, "samples"), pick_device(options.device)
    latents = out.suffix == ".safetensors"
    if latents and out.is_dir():
        raise ValueError(f"{out} is a folder; name a file for the latents")
    if not latents:
        sample_writer(options.out, fps=options.fps)  # for its errors, before any work
    check_writable(out if out.is_dir() or not out.suffix else out.parent)
    drawn = _load(name, options, device)
    teacher = drawn.teacher
    decode = getattr(unguided(teacher), "decode", None)
    if decode is None and not latents:
        raise ValueError("this student does not make images; use --out samples.safetensors")
    video = len(teacher.latent_shape) == 4
    writer = None if latents else sample_writer(options.out, video=video, fps=options.fps)
    source = options.prompts or teacher.prompts
    prompts = [source[i % len(source)] for i in range(options.n)]
    kept = []
    for chosen, x in _batches(drawn, prompts, options, device):
        if writer is not None and decode is not None:
            writer.add(decode(x), chosen)
        else:
            kept.append(x.cpu())
    if writer is not None:
        writer.close()
    else:
        import torch

        out.parent.mkdir(parents=True, exist_ok=True)
        texts = [p if isinstance(p, str | int | None) else caption(p) for p in prompts]
        save_tensors({"latents": torch.cat(kept)}, out, metadata={"prompts": json.dumps(texts)})
    print(f"{options.n} samples {drawn.described} -> {out}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What is sampled.

    Attributes:
        teacher: The teacher, which encodes prompts and decodes.
        draw: Samples a condition; takes a batch size and a generator too.
        stochastic: Whether noise is drawn within.
        described: What it is, for the last line.
    """

    teacher: Teacher
    draw: Callable[[Any, int, torch.Generator], torch.Tensor]
    stochastic: bool
    described: str


def _load(name: str, options: SampleOptions, device: torch.device) -> _Drawn:
    from pdmd.cli.unfinished_students import is_unfinished, load_unfinished
    from pdmd.distillation.sampling import sample
    from pdmd.distillation.unfinished import sample_unfinished, teacher_times
    from pdmd.teachers.base import import_plugins

    if options.checkpoint or is_unfinished(Path(name)):
        import_plugins(options.plugins)
        found = load_unfinished(
            Path(name),
            checkpoint=options.checkpoint,
            device=device,
            arguments=options.arguments,
            plugins=options.plugins,
            trust_source=options.trust_source,
        )
        times = teacher_times(found.teacher, options.teacher_steps)
        return _Drawn(
            teacher=found.teacher,
            draw=lambda condition, batch, generator: sample_unfinished(
                found.experts,
                found.teacher,
                condition,
                batch=batch,
                generator=generator,
                times=times,
            ),
            stochastic=any(expert.stochastic for expert in found.experts),
            described=f"of {found}, continued by the teacher",
        )
    student, teacher = load_student(
        name,
        options.plugins,
        arguments=options.arguments,
        device=device,
        trust_source=options.trust_source,
    )
    return _Drawn(
        teacher=teacher,
        draw=lambda condition, batch, generator: sample(
            student, condition, batch=batch, generator=generator
        ),
        stochastic=any(expert.stochastic for expert in student.experts),
        described=f"with NFE {student.plan.nfe}",
    )


def _batches(
    drawn: _Drawn, prompts: Sequence[Any], options: SampleOptions, device: torch.device
) -> Iterator[tuple[Sequence[Any], torch.Tensor]]:
    """Yields prompts and clean latents, batch after batch."""
    import torch

    from pdmd.randomness import RankGenerator
    from pdmd.training.monitoring.bars import progress_bar

    values = math.prod(drawn.teacher.latent_shape)
    size = options.batch_size or max(1, TOGETHER // values)
    generator = torch.Generator().manual_seed(options.seed)
    shown = options.progress and size < len(prompts)
    with progress_bar("sample", len(prompts), unit="sample", shown=shown) as bar:
        for i in range(0, len(prompts), size):
            chosen = prompts[i : i + size]
            if drawn.stochastic or values % BLOCK:  # noise by row, whatever the batches
                generator = RankGenerator.make(options.seed, first_row=i)
            condition = drawn.teacher.encode(chosen)
            if condition is not None:
                condition = condition.to(device)
            x = drawn.draw(condition, len(chosen), generator)
            _check_finite(x, chosen)
            yield chosen, x
            bar.update(len(chosen))


def _check_finite(x: torch.Tensor, prompts: Sequence[Any]) -> None:
    finite = x.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise ValueError(
            f"the sample of {prompts[finite.index(False)]!r:.60} is not finite, and would be "
            "black: the student's weights are not, or its computation overflows; look at them, "
            "or pass --arguments dtype float32"
        )


def load_student(
    name: str,
    plugins: Sequence[str],
    *,
    arguments: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    trust_source: bool = False,
) -> tuple[Student, Teacher]:
    """Loads a student and its registered teacher, both on the student's schedule.

    Args:
        name: The student folder, or the run folder that contains it.
        plugins: Python modules to import first.
        arguments: Arguments of the teacher that replace those of the run.
        device: The device of both; by default as their arguments say.
        trust_source: Whether to use the URLs and cache folders that the student's folder names.

    Raises:
        ValueError: If the folder is missing, damaged, names no registered teacher, or names
            places that are not trusted.
    """
    from pdmd.distillation.student_folders import source_teacher
    from pdmd.distillation.students import Student
    from pdmd.teachers.base import import_plugins

    import_plugins(plugins)
    path = student_folder(name)
    teacher = source_teacher(path, arguments, device=str(device or ""), trust_source=trust_source)
    student = Student.load(path, teacher=teacher)
    if device is not None:
        student, teacher = student.to(device), teacher.to(device)
    return student, teacher


def student_folder(name: str) -> Path:
    """Returns a student's folder.

    Args:
        name: The student folder, or the run folder that contains it.

    Raises:
        ValueError: If it is a URL of another protocol than ``file``.
    """
    text = name.removeprefix("file://")
    if is_url(text):
        raise ValueError(
            f"a student is read from a local folder, got {name!r}; copy it from there first"
        )
    path = Path(text)
    if not (path / "student.json").exists() and (path / "student" / "student.json").exists():
        return path / "student"
    return path
