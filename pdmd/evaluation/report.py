"""The report of a run: a self-contained HTML page, and its sample grids."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.sampling import sample_ode
from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.sampling import sample, trajectory
from pdmd.distillation.students import Student
from pdmd.distributed.communicator import Communicator
from pdmd.documents import SIZE, naming, read_json, read_toml
from pdmd.evaluation.batches import batch_size_of, sampled_rows
from pdmd.evaluation.figures import (
    calibration_figure,
    data_uri,
    loss_figure,
    plain_text,
    plan_figure,
    png,
    prompt_rows,
    side_by_side,
    tradeoff_figure,
    vector_scatter,
)
from pdmd.extras import require
from pdmd.files import local_path, shell_word, write_file
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.training.monitoring.recorder import read_history
from pdmd.typing import Latents, labels_of

__all__ = ["GridSamples", "draw_grids", "write_grids", "write_report"]

SMALL = 4096
"""Maximum size of a latent for grids of many samples."""
ROWS, EACH = 8, 10
"""Prompts in ``prompts.png``, and pictures per prompt."""
TOGETHER = 2**16
"""Maximum size of a batch of latents to decode."""
PHASES = 1000
"""Maximum number of phases, curves and rows of a report."""
REMEDY = "remove it to leave it out of the report"


@dataclass(frozen=True, kw_only=True)
class GridSamples:
    """Samples of teacher and student that are drawn side by side, on the CPU.

    Attributes:
        clean: The teacher's samples.
        few: The teacher's samples at the student's steps.
        states: The student's latents at every boundary.
        labels: The classes of the prompts, if there are any.
        texts: The prompts drawn row by row, if they are texts.
        rows: Pictures of each of them, of the teacher and of the student.
    """

    clean: Latents
    few: Latents
    states: Sequence[Latents]
    labels: Tensor | None = None
    texts: Sequence[str] = ()
    rows: Sequence[Latents] = ()


def draw_grids(
    student: Student,
    teacher: Teacher,
    *,
    teacher_steps: int = 50,
    seed: int = 0,
    batch: int = 0,
    real: Denoiser | None = None,
    ranks: Communicator | None = None,
) -> GridSamples:
    """Samples what :func:`write_grids` draws; on several ranks, each its share.

    Args:
        student: The student.
        teacher: Its teacher, which encodes the prompts.
        teacher_steps: Steps of the teacher's samples.
        seed: The seed of all random numbers.
        batch: Samples that a rank draws together; by default as many as have about a million
            latent values.
        real: The network from which the teacher is sampled, for example the sharded one; the
            teacher itself by default.
        ranks: The ranks; this process alone by default.
    """
    denoiser, few = real or teacher, student.plan.nfe
    decode = getattr(unguided(teacher), "decode", None)
    small = math.prod(teacher.latent_shape) <= SMALL
    count = {True: (1500, 100), False: (100, 9)}[decode is None][not small]
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(count)]
    size = batch_size_of(teacher.latent_shape, batch)

    def sampled(texts: Sequence[Any], draw: Callable[..., Tensor], device: torch.device) -> Tensor:
        def rows(chosen: range, generator: torch.Generator) -> Tensor:
            condition = teacher.encode([texts[i % len(texts)] for i in chosen])
            own = None if condition is None else condition.to(device)
            return draw(own, batch=len(chosen), generator=generator)

        return sampled_rows(rows, len(texts), batch=size, seed=seed, ranks=ranks)

    def teachers(texts: Sequence[Any], steps: int) -> Latents:
        return sampled(texts, partial(sample_ode, denoiser, steps=steps), denoiser.device)

    def boundaries(*arguments: Any, **options: Any) -> Tensor:
        return torch.stack(trajectory(student, *arguments, **options), 1)

    drawn: dict[str, Any] = {
        "clean": teachers(prompts, teacher_steps),
        "few": teachers(prompts, few),
        "states": sampled(prompts, boundaries, student.device).unbind(1),
    }
    condition = teacher.encode(prompts[:1])
    if condition is not None and "label" in condition:
        drawn["labels"] = labels_of(teacher.encode(prompts))
    if decode is not None and all(isinstance(p, str) for p in prompts):
        shown = min(ROWS, len(teacher.prompts))
        texts = [teacher.prompts[i * len(teacher.prompts) // shown] for i in range(shown)]
        repeated = [text for text in texts for _ in range(EACH if small else 3)]
        own = sampled(repeated, partial(sample, student), student.device)
        drawn |= {"texts": texts, "rows": [teachers(repeated, teacher_steps), own]}
    return GridSamples(**drawn)


def write_grids(
    folder: str | Path,
    student: Student,
    teacher: Teacher,
    *,
    teacher_steps: int = 50,
    seed: int = 0,
    drawn: GridSamples | None = None,
) -> None:
    """Draws samples of teacher and student side by side, at the end and after every phase.

    Args:
        folder: The run folder; the grids are written to ``grids/*.png``. If prompts are texts,
            ``prompts.png`` has several pictures of each of a few prompts.
        student: The student.
        teacher: Its teacher. If it has ``decode``, pictures are drawn: 100 for small latents, else
            9, with the middle frame of videos. Otherwise the first two dimensions are plotted.
        teacher_steps: Steps of the teacher's samples.
        seed: The seed of all random numbers.
        drawn: The samples; by default those of :func:`draw_grids`.
    """
    grids = local_path(folder, "a report") / "grids"
    grids.mkdir(parents=True, exist_ok=True)
    decode = getattr(unguided(teacher), "decode", None)
    if drawn is None:
        drawn = draw_grids(student, teacher, teacher_steps=teacher_steps, seed=seed)
    clean, states, labels = drawn.clean, drawn.states, drawn.labels

    def draw(panels: dict[str, torch.Tensor]) -> Any:
        if decode is not None:
            shown = {k: _decoded(decode, x) for k, x in panels.items()}
            return side_by_side(shown, columns=round(math.sqrt(len(clean))))
        return vector_scatter({k: x.flatten(1) for k, x in panels.items()}, labels)

    n = student.plan.nfe
    if decode is not None and drawn.rows:
        names = (f"teacher, {teacher_steps} steps", f"student, {n} steps")
        rows = dict(zip(names, drawn.rows, strict=True))
        figure = prompt_rows({k: _decoded(decode, x) for k, x in rows.items()}, drawn.texts)
        write_file(grids / "prompts.png", png(figure, tight=True))
    panels = {
        f"teacher, {teacher_steps} steps": clean,
        f"teacher, {n} steps": drawn.few,
        f"student, {n} steps": states[-1],
    }
    write_file(grids / "samples.png", png(draw(panels), tight=True))
    for phase, state in zip(student.plan, states[1:], strict=True):
        exact = clean
        if phase.t_end > 0:
            exact = renoise_step(clean, 0.0, phase.t_end, student.schedule, _generator(seed))
        where = f"t = {phase.t_end:.3g}"
        figure = draw({f"teacher at {where}": exact, f"student at {where}": state})
        write_file(grids / f"phase_{phase.index + 1}.png", png(figure, tight=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _decoded(decode: Callable[[Latents], Tensor], x: Latents) -> Tensor:
    """Decodes in small batches, as a decoder needs more memory than a network."""
    few = max(1, TOGETHER // x[0].numel())
    pictures = [decode(x[i : i + few]).float().cpu() for i in range(0, len(x), few)]
    return torch.cat([p[:, :, p.shape[2] // 2] if p.ndim == 5 else p for p in pictures])


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` from the other files of a run folder.

    Args:
        folder: A run folder; the page states which files are missing.

    Returns:
        The page's path.

    Raises:
        ValueError: If a file is damaged.
    """
    require("report", "jinja2", "matplotlib")
    from jinja2 import Environment, PackageLoader, select_autoescape

    folder = local_path(folder, "a report")
    settings, config = read_toml(folder / "config.toml")
    plan, summary = _json(folder / "plan.json"), _json(folder / "summary.json")
    metrics, curves = _json(folder / "metrics.json"), _json(folder / "calibration.json")
    path = folder / "history.jsonl"
    with naming(path, REMEDY):
        history = read_history(path) if path.exists() else []
    rows: list[Any] = []
    figures: dict[str, str] = {}
    nfe = 0
    if plan:
        with naming(folder / "plan.json", REMEDY):
            _few(plan["phases"], PHASES)
            figures["plan"] = data_uri(plan_figure(plan["phases"]))
            nfe = sum(len(p["timesteps"]) for p in plan["phases"])
    if history:
        with naming(path, REMEDY):
            figures["losses"] = data_uri(loss_figure(history))
    if curves:
        with naming(folder / "calibration.json", REMEDY):
            figures["calibration"] = data_uri(calibration_figure(_few(curves, PHASES)))
    if metrics:
        with naming(folder / "metrics.json", REMEDY):
            rows = [dict(row) for row in _few(metrics["rows"], PHASES)]
            if "quality" in metrics:
                pair = metrics["quality"], metrics["diversity"]
                figures["tradeoff"] = data_uri(tradeoff_figure(rows, *pair))
    grids = folder / "grids"
    numbered = [(re.fullmatch(r"phase_(\d{1,4})\.png", p.name), p) for p in grids.glob("*.png")]
    found = sorted((int(number[1]), p) for number, p in numbered if number)
    environment = Environment(
        loader=PackageLoader("pdmd.evaluation", "."), autoescape=select_autoescape(["j2", "html"])
    )
    unread = f"config.toml or summary.json in {folder}"
    with naming(unread, "restore it from the run"):
        page = environment.get_template("report.html.j2").render(
            name=folder.name,
            folder=str(folder),
            student=shell_word(folder / "student"),
            config=config,
            settings=settings,
            plan=plan,
            summary=summary,
            notices=_few(_json(folder / "notices.json") or [], PHASES),
            rows=rows,
            figures=figures,
            prompts=[
                plain_text(p) if isinstance(p, str) else p
                for p in (summary or {}).get("prompts") or [None]
            ],
            samples=_picture(grids / "samples.png"),
            within=_picture(grids / "prompts.png"),
            grids=[_picture(p) for _, p in found],
            nfe=nfe,
        )
    out = folder / "report.html"
    write_file(out, page.encode("utf-8", "replace"))
    return out


def _few(values: Any, most: int) -> Any:
    """Returns a list that is short enough to draw.

    Raises:
        ValueError: If it is not one.
    """
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"a list of up to {most} is expected")
    return values


def _picture(path: Path) -> str | None:
    if not path.is_file():
        return None
    with naming(path, REMEDY):
        if path.stat().st_size > SIZE:
            raise ValueError(f"it is larger than {SIZE} bytes")
        return data_uri(path.read_bytes())


def _json(path: Path) -> Any:
    with naming(path, REMEDY):
        return read_json(path) if path.exists() else None
