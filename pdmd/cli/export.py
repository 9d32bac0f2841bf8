"""The command `pdmd export`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pdmd.cli.arguments import UsageError, parse, take_name
from pdmd.cli.sample import student_folder
from pdmd.files import local_path

__all__ = ["export_command"]


@dataclass(kw_only=True)
class ExportOptions:
    """Writes a student as a diffusers pipeline, or as LoRA files."""

    to: Literal["diffusers", "lora"] = "diffusers"
    """A pipeline folder, or a LoRA file per network."""
    scheduler: Literal["exact", "stock"] = "exact"
    """Scheduler of the pipeline: one shipped with it and exact, or a stock one of diffusers."""
    format: Literal["diffusers", "comfyui", "both"] = "both"
    """Naming convention of the LoRA files."""
    dtype: str = ""
    """Type of the weights: float32, bfloat16 or float16; the student's by default."""
    base: str = ""
    """The pipeline that the student was distilled from, if it moved."""
    max_shard_size: str = "10GB"
    """Largest size of a weight file of the pipeline."""
    measure: int = 0
    """Number of samples on which to measure the error of a stock scheduler."""
    overwrite: bool = False
    """Replace an earlier export."""
    progress: bool = True
    """Show a progress bar."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Arguments of the teacher in the place of those that it was distilled with."""
    trust_source: bool = False
    """Use the URLs and cache folders that the student's folder names."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register the student's teacher."""


ONLY = {"diffusers": ("scheduler", "max_shard_size", "measure"), "lora": ("format",)}
"""Options that apply to one kind of export only."""


def export_command(words: list[str]) -> int:
    """Runs ``pdmd export``."""
    import tyro

    name, rest = take_name(words, "the student folder, for example runs/digits/student")
    command: Any = dataclasses.make_dataclass(
        "Export",
        [
            (
                "out",
                Annotated[
                    str,
                    tyro.conf.Positional,
                    tyro.conf.arg(metavar="DIR", help="Where to write."),
                ],
            ),
            ("options", Annotated[ExportOptions, tyro.conf.arg(name="")]),
        ],
    )
    command.__doc__ = ExportOptions.__doc__
    parsed = parse(command, rest, "pdmd export STUDENT", command("", ExportOptions()))
    options: ExportOptions = parsed.options
    if not parsed.out:
        raise UsageError("missing the folder to write to: pdmd export STUDENT --to diffusers DIR")
    for kind, fields in ONLY.items():
        for option in fields:
            if kind != options.to and getattr(options, option) != getattr(ExportOptions(), option):
                flag = "--" + option.replace("_", "-")
                raise UsageError(f"{flag} is for --to {kind}; leave it out")
    return _export(name, local_path(parsed.out, "an export"), options)


def _export(name: str, out: Path, options: ExportOptions) -> int:
    from pdmd.distillation.student_folders import source_teacher
    from pdmd.distillation.students import Student
    from pdmd.export import export_diffusers, export_lora
    from pdmd.export.atomic_export import check_destination
    from pdmd.teachers.base import import_plugins

    import_plugins(options.plugins)
    path = student_folder(name)
    check_destination(out, overwrite=options.overwrite)
    moved = {**({"folder": options.base} if options.base else {}), **options.arguments}
    teacher = source_teacher(
        path, moved, trust_source=options.trust_source, outlined=not options.measure
    )
    student = Student.load(path, teacher=teacher)
    chosen: dict[str, Any] = {
        "dtype": options.dtype,
        "base": options.base,
        "overwrite": options.overwrite,
    }
    if options.to == "lora":
        export_lora(student, out, format=options.format, **chosen)
        print(f"adapters  {out}")
    else:
        export_diffusers(
            student,
            out,
            scheduler=options.scheduler,
            max_shard_size=options.max_shard_size,
            measure=options.measure,
            progress=options.progress,
            **chosen,
        )
        print(f"pipeline  {out}")
    print(f"card      {out / 'README.md'}, with the lines that load it")
    return 0
