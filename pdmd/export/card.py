"""The model card of an exported pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdmd.distillation.students import Student
from pdmd.export.bases import BasePipeline
from pdmd.export.markdown import escaped
from pdmd.export.network_schedule import NetworkInterval, base_networks, midpoints, pipeline_layout
from pdmd.export.schedulers import StockScheduler
from pdmd.extras import require
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """The model card of a pipeline's folder.

    Attributes:
        student: The student.
        intervals: The time intervals of its networks.
        layout: The layout of its family.
        base: The pipeline that it was distilled from.
        stock: The stock scheduler, if the export uses one.
        ships_code: Whether the export contains code.
        renoises: Whether steps draw noise.
        dtype: The dtype of the weights.
        measured: The stock scheduler's error with the student's networks, if measured.
    """

    student: Student
    intervals: Sequence[NetworkInterval]
    layout: PipelineLayout
    base: BasePipeline
    stock: StockScheduler | None
    ships_code: bool
    renoises: bool
    dtype: str
    measured: float | None = None

    @property
    def adapted(self) -> bool:
        """Whether the student consists of adapters over its base."""
        return any(interval.adapter is not None for interval in self.intervals)

    def text(self) -> str:
        """Returns the card, in Markdown with a YAML header."""
        plan = self.student.plan
        return "\n\n".join(
            [
                header(self.layout, self.base),
                f"# {escaped(self.base.model)} in {plan.nfe} steps",
                f"A student of {escaped(self.base.model)}, distilled by Phased DMD "
                f"({_count(len(plan), 'phase')}, {plan.nfe} NFE). Use it without guidance: the "
                f"guidance of its teacher is distilled into it.{unguided_note(self.layout)}",
                "## Load",
                f"```python\n{self.snippet()}\n```",
                *self.notes(),
                "## Grid",
                grid_table(self.student, self.intervals),
                *size_notes(self.student),
                licence(self.base),
            ]
        )

    def snippet(self) -> str:
        """Returns the lines that load the folder and sample."""
        trust = ", trust_remote_code=True" if self.ships_code else ""
        grid = list(self.student.plan.timesteps[:-1])
        steps = f"num_inference_steps={len(grid)}"
        if self.stock is not None and self.layout.takes_sigmas:
            steps = f"sigmas={grid}"
        return "\n".join(
            [
                *import_lines(self.layout),
                'folder = "."  # this folder, or its name on the hub',
                "pipe = DiffusionPipeline.from_pretrained(",
                f"    folder, torch_dtype={self.dtype}{trust}",
                ")",
                *call_lines(self.student, self.intervals, steps),
            ]
        )

    def notes(self) -> list[str]:
        """Returns the notes on scheduler and networks."""
        layout, cuts = self.layout, midpoints(self.intervals)
        notes = [
            "It contains code, so diffusers loads it with `trust_remote_code=True` alone."
            if self.ships_code
            else "It loads in stock diffusers, without `trust_remote_code`."
        ]
        if self.stock is None:
            notes.append(
                "The scheduler uses the student's timesteps and rejects another number of "
                "steps. Its code, `scheduler/phased_scheduler.py`, needs `trust_remote_code=True`."
            )
        elif layout.takes_sigmas:
            notes.append(
                "The scheduler is a stock one without a shift. Pass the student's timesteps as "
                "`sigmas`: with them it is exact, without them its timesteps are wrong."
            )
        else:
            notes += self._stock_notes(self.stock)
        if self.renoises:
            notes.append(
                "Its steps draw noise, from the global generator if the pipeline does not pass "
                "one: seed with `torch.manual_seed`."
            )
        if layout.takes_image and layout.pipeline.startswith("Wan"):
            notes.append("The pipeline cleans prompts with the package `ftfy`: install it too.")
        if len(self.intervals) > len(layout.slots):
            networks = _count(len(base_networks(self.intervals)), "network")
            if self.adapted:
                networks += f" and {_count(len(self.intervals), 'adapter')}"
            notes.append(
                f"`{layout.slots[0]}` contains {networks}, selected by time "
                f"(`{layout.slots[0]}/phased_transformer.py`)."
            )
        if self.adapted and len(self.intervals) <= len(layout.slots):
            notes.append("The student's adapters are merged into the weights.")
        if 1 < len(self.intervals) <= len(layout.slots):
            notes.append(
                f"`boundary_ratio` is {cuts[0]}, the midpoint of the timesteps around the "
                "boundary, so that rounding never selects the wrong network."
            )
        return notes

    def _stock_notes(self, stock: StockScheduler) -> list[str]:
        grid = list(self.student.plan.timesteps[:-1])
        own = ""
        if self.measured is not None:
            own = f"; samples of this student's networks differ by {self.measured:.1e}"
        notes = [
            "The scheduler is a stock one, configured to approximate the student's timesteps. Its "
            f"timesteps differ by at most {stock.max_error:.1e}; samples of a mixture of two "
            f"Gaussians with closed-form velocity differ by {stock.error:.1e} of the data's "
            f"standard deviation (root mean square){own}. Another number of steps than "
            f"{len(grid)} changes the timesteps."
        ]
        if stock.max_error > 1e-6:
            lines = "\n".join(scheduler_lines(grid))
            notes.append(f"With these lines it is exact:\n\n```python\n{lines}\n```")
        return notes


def unguided_note(layout: PipelineLayout) -> str:
    """Returns the sentence on the arguments of a call that turn guidance off, if there are any."""
    if not layout.unguided:
        return ""
    off = ", ".join(f"`{name}={value}`" for name, value in layout.unguided.items())
    return (
        f" Pass {off}, as the lines below do: by default the pipeline may guide, which changes "
        "the samples."
    )


def scheduler_lines(grid: Sequence[float]) -> list[str]:
    """Returns the lines that set the timesteps of a pipeline ``pipe`` with stock classes."""
    return [
        "from diffusers import FlowMatchEulerDiscreteScheduler",
        "",
        "",
        "class Times(FlowMatchEulerDiscreteScheduler):",
        "    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, **_):",
        f"        super().set_timesteps(sigmas={list(grid)}, device=device)",
        "",
        "",
        "pipe.scheduler = Times(shift=1.0)",
    ]


def import_lines(layout: PipelineLayout) -> list[str]:
    """Returns the lines that import what the other lines need."""
    image = ["from diffusers.utils import load_image"] if layout.takes_image else []
    return ["import torch", "from diffusers import DiffusionPipeline", *image, ""]


def call_lines(student: Student, intervals: Sequence[NetworkInterval], steps: str) -> list[str]:
    """Returns the lines that call a pipeline ``pipe``."""
    layout, source = pipeline_layout(intervals), student.source or {}
    arguments = {**intervals[0].network.call_arguments, **layout.unguided}
    length = source.get("arguments", {}).get("text_length")
    if length is not None:
        arguments["max_sequence_length"] = length
    role = "the first frame" if layout.output == "frames" else "the image to edit"
    image = [f'    image=load_image("image.png"),  # {role}'] if layout.takes_image else []
    return [
        f"{layout.output} = pipe(",
        '    prompt="a cat that holds a sign",',
        *image,
        *(f"    {name}={value!r}," for name, value in arguments.items()),
        f"    {steps},",
        "    generator=torch.Generator().manual_seed(0),",
        f").{layout.output}",
    ]


def header(layout: PipelineLayout, base: BasePipeline, *tags: str) -> str:
    """Returns a card's YAML."""
    require("diffusers", "huggingface_hub")
    from huggingface_hub import ModelCardData

    terms: dict[str, Any] = base.licence or {"license": "other"}
    data = ModelCardData(
        base_model=base.model,
        library_name="diffusers",
        pipeline_tag=layout.task,
        tags=["distillation", "phased-dmd", *tags],
        **terms,
    )
    return f"---\n{data.to_yaml()}\n---"


def grid_table(student: Student, intervals: Sequence[NetworkInterval]) -> str:
    """Returns the plan as a table: the times, phase and network of every step."""
    rows = ["| step | t | s | phase | network |", "| --- | --- | --- | --- | --- |"]
    times = student.plan.timesteps
    phases = [phase.index + 1 for phase in student.plan for _ in phase.timesteps]
    networks = [i + 1 for i, interval in enumerate(intervals) for _ in interval.times]
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        rows.append(f"| {i + 1} | {t:.6g} | {s:.6g} | {phases[i]} | {networks[i]} |")
    return "\n".join(rows)


def size_notes(student: Student) -> list[str]:
    """Returns the section on the sizes that a student was trained on; none for a single one."""
    if len(student.buckets) == 1:
        return []
    own = " x ".join(map(str, student.latent_shape))
    rows = ["| latents | share of training | t |", "| --- | --- | --- |"]
    for bucket in student.buckets:
        times = ", ".join(f"{t:.6g}" for t in bucket.plan(student.plan).timesteps[:-1])
        rows.append(f"| {bucket} | {student.buckets.probability(bucket):.0%} | {times} |")
    return [
        "## Sizes",
        f"The student was trained on several sizes. The times above are those of latents {own}; "
        "where others differ, export the student again at their size.",
        "\n".join(rows),
    ]


def licence(base: BasePipeline) -> str:
    """Returns the paragraph on the licence."""
    name = escaped(base.licence.get("license_name", base.licence.get("license", "")))
    model = escaped(base.model)
    if name:
        return f"## Licence\n\n{name}, as {model}: its terms apply to these weights too."
    return (
        f"## Licence\n\nUnknown: the folder of {model} states none. Its terms apply to these "
        "weights too, so look them up before sharing."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
