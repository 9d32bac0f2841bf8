"""Perceptual comparisons of `pdmd evaluate --metrics`: objects from options, table and report."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pdmd.cli.evaluation_options import NETWORKS, EvaluateOptions
from pdmd.cli.placed_students import PlacedStudent
from pdmd.documents import read_json
from pdmd.evaluation.batches import batch_size_of
from pdmd.evaluation.evaluate import euler_notice, format_table
from pdmd.evaluation.perceptual.comparison import SHOWN, Comparison, methods_of
from pdmd.evaluation.perceptual.measurements import MeasurementPlace, measurements
from pdmd.evaluation.perceptual.metrics import metrics
from pdmd.evaluation.perceptual.report import write_comparison
from pdmd.extras import require
from pdmd.files import local_path, own_digest, write_file
from pdmd.teachers.base import import_plugins
from pdmd.teachers.conditioning.prompt_files import read_prompts
from pdmd.teachers.guided import unguided
from pdmd.training.checkpoints.inputs import digest_prompts
from pdmd.training.monitoring.outputs import say

__all__ = ["check_metrics", "compare"]


def check_metrics(options: EvaluateOptions) -> None:
    """Checks names and sources of metrics.

    Raises:
        ValueError: If a metric is not registered, a source belongs to none of them, or a package
            for the report is missing.
    """
    require("report", "jinja2", "matplotlib")
    import_plugins(options.plugins)
    local_path(options.folder, "an evaluation")
    needed = {metrics[name].measurement for name in options.metrics}
    for name in NETWORKS:
        if getattr(options, name) and name not in needed:
            raise ValueError(
                f"--{name} is for metrics that are not among --metrics "
                f"{' '.join(options.metrics)}; add one or leave it out"
            )
    if not options.fps > 0:
        raise ValueError(f"--fps must be positive, got {options.fps:g}")


def compare(placed: PlacedStudent, options: EvaluateOptions) -> dict[str, Any]:
    """Compares a student with its teacher; all ranks do so together.

    Args:
        placed: The student.
        options: The command's options.

    Returns:
        Rows, protocol and meanings, on the main rank, which prints and writes them.

    Raises:
        ValueError: If samples cannot be decoded or measured, or stored rows have other settings.
    """
    runtime, student, teacher = placed.runtime, placed.student, placed.teacher
    decode = getattr(unguided(teacher), "decode", None)
    if decode is None:
        raise ValueError(
            "the teacher of this student does not decode to pictures, which --metrics need; leave "
            "them out"
        )
    folder = local_path(options.folder or placed.folder.parent / "evaluation", "an evaluation")
    most = max(1, options.samples // options.seeds)
    found: Sequence[Any] = read_prompts(options.prompts) if options.prompts else teacher.prompts
    prompts = [found[i] for i in range(min(most, len(found)))]
    chosen = {name: metrics[name]() for name in options.metrics}
    sources = {
        m.measurement: getattr(options, m.measurement, "") or measurements[m.measurement].default
        for m in chosen.values()
    }
    place = MeasurementPlace(device=runtime.device, fps=options.fps)
    with runtime.ranks.consensus():
        loaded = {name: measurements[name].load(at, place) for name, at in sources.items()}
    source: Mapping[str, Any] = student.source or {}
    about = {
        "name": source.get("teacher"),
        "arguments": {**source.get("arguments", {}), **options.arguments},
        "guidance": list(placed.guidance),
        "negative_prompt": source.get("negative_prompt", ""),
        "schedule": source.get("schedule"),
        "precision": options.parallel.precision,
    }
    description = read_json(placed.folder / "student.json")
    comparison = Comparison(
        methods_of(
            student,
            teacher,
            teacher_steps=options.teacher_steps,
            real=placed.real,
            about_teacher=about,
            digest=description.get("sha256") or own_digest(description),
        ),
        decode=decode,
        prompts=prompts,
        metrics=chosen,
        measurements=loaded,
        folder=folder,
        seeds=options.seeds,
        seed=options.seed,
        batch=batch_size_of(student.latent_shape, options.batch),
        settings={
            "sources": sources,
            "fps": options.fps,
            "prompts_digest": digest_prompts(prompts),
        },
        ranks=runtime.ranks,
    )
    comparison.measure(
        comparison.prepare(overwrite=options.overwrite),
        progress=options.progress and runtime.main,
    )
    if not runtime.main:
        return {}
    meanings = {k: v for metric in chosen.values() for k, v in metric.figures.items()}
    facts = {
        "student": str(placed.folder),
        "teacher": f"{about['name']}, guidance {', '.join(f'{g:g}' for g in placed.guidance)}",
        "samples": f"{len(prompts):,} prompts, {options.seeds} seeds each",
        "steps": f"teacher {options.teacher_steps}, student {student.plan.nfe}",
        "seed": str(options.seed),
        "precision": options.parallel.precision,
        **{f"network ({name})": str(at) for name, at in sources.items()},
        **comparison.notes(),
        "versions": ", ".join(f"{p} {_version(p)}" for p in ("pdmd", "torch", "transformers")),
    }
    rows = comparison.rows()
    notice = euler_notice(rows, comparison.distances())
    result = {
        "rows": rows,
        "protocol": facts,
        "figures": meanings,
        "notices": [notice] if notice else [],
    }
    print(format_table(rows))
    if notice:
        say(f"pdmd: warning: {notice}")
    for key, text in comparison.notes().items():
        print(f"{key}: {text}")
    write_file(folder / "comparison.json", json.dumps(result, indent=2) + "\n")
    page = write_comparison(
        folder / "report.html",
        rows,
        title=f"{about['name']}: {student.plan.nfe} steps against {options.teacher_steps}",
        facts=facts,
        figures=meanings,
        pictures=comparison.pictures(),
        notices=result["notices"],
        prompts=[str(getattr(p, "text", p)) for p in prompts[:SHOWN]],
    )
    print(f"report   {page}")
    return result


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"
