"""The model card of an export: what the student is, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdmd.distillation.students import Student
from pdmd.export.bases import Base
from pdmd.export.network_schedule import Stage, bases, layout_of, midpoints
from pdmd.export.schedulers import StockScheduler
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model card of a pipeline's folder.

    Attributes:
        student: The student.
        stages: Its stages.
        layout: Its family's layout.
        base: The pipeline that it was distilled from.
        stock: The stock scheduler, if the export has one.
        own_code: Whether the export ships code.
        renoises: Whether steps draw noise.
        dtype: Type of the weights.
        measured: The stock scheduler's error with the student's own networks, if measured.
    """

    student: Student
    stages: Sequence[Stage]
    layout: PipelineLayout
    base: Base
    stock: StockScheduler | None
    own_code: bool
    renoises: bool
    dtype: str
    measured: float | None = None

    @property
    def adapted(self) -> bool:
        """Whether the student is adapters over its base."""
        return any(stage.adapter is not None for stage in self.stages)

    def text(self) -> str:
        """Returns the card, in Markdown with a YAML header."""
        plan = self.student.plan
        return "\n\n".join(
            [
                header(self.layout, self.base),
                f"# {self.base.model} in {plan.nfe} steps",
                f"A student of {self.base.model}, distilled by Phased DMD "
                f"({_count(len(plan), 'phase')}, {_count(plan.nfe, 'evaluation')} a sample). It "
                "takes no guidance: what guidance its teacher had, it has learnt.",
                "## Load",
                f"```python\n{self.snippet()}\n```",
                *self.notes(),
                "## Grid",
                grid_table(self.student, self.stages),
                licence(self.base),
            ]
        )

    def snippet(self) -> str:
        """Returns the lines that load the folder and draw a sample."""
        trust = ", trust_remote_code=True" if self.own_code else ""
        grid = list(self.student.plan.timesteps[:-1])
        steps = f"num_inference_steps={len(grid)}"
        if self.stock is not None and self.layout.takes_sigmas:
            steps = f"sigmas={grid}"
        return "\n".join(
            [
                "import torch",
                "from diffusers import DiffusionPipeline",
                "",
                'folder = "."  # this folder, or its name on the hub',
                "pipe = DiffusionPipeline.from_pretrained(",
                f"    folder, torch_dtype={self.dtype}{trust}",
                ")",
                *call(self.student, self.stages, steps),
            ]
        )

    def notes(self) -> list[str]:
        """Returns what to know about scheduler and networks."""
        layout, cuts = self.layout, midpoints(self.stages)
        found = []
        if self.stock is None:
            found.append(
                "The scheduler walks the student's own grid, and refuses another number of steps. "
                "Its code is `scheduler/phased_scheduler.py`, which `trust_remote_code=True` lets "
                "run."
            )
        elif layout.takes_sigmas:
            found.append(
                "The scheduler is a stock one without a shift, so the grid must be passed as "
                "`sigmas`: then it is exact, and without, the times are wrong."
            )
        else:
            found += self._stock_notes(self.stock)
        if self.renoises:
            found.append(
                "Its steps draw noise, from the global generator where the pipeline does not hand "
                "one on: seed with `torch.manual_seed`."
            )
        if len(self.stages) > len(layout.slots):
            held = _count(len(bases(self.stages)), "network")
            if self.adapted:
                held += f" and {_count(len(self.stages), 'adapter')}"
            found.append(
                f"`{layout.slots[0]}` holds {held}, and the time chooses among them "
                f"(`{layout.slots[0]}/phased_transformer.py`)."
            )
        if self.adapted and len(self.stages) <= len(layout.slots):
            found.append("The student's adapters are merged into the weights.")
        if 1 < len(self.stages) <= len(layout.slots):
            found.append(
                f"`boundary_ratio` is {cuts[0]}, midway between the times around the boundary, so "
                "that no rounding sends a step to the wrong network."
            )
        return found

    def _stock_notes(self, stock: StockScheduler) -> list[str]:
        grid = list(self.student.plan.timesteps[:-1])
        own = ""
        if self.measured is not None:
            own = f", and the student's own by {self.measured:.1e} of theirs"
        found = [
            "The scheduler is a stock one, configured to walk the student's grid as nearly as it "
            f"can. Its times are off by {stock.off:.1e} at most; samples of two Gaussians, whose "
            f"flow is known, are off by {stock.error:.1e} of their deviation (root mean square)"
            f"{own}. Another number of steps than {len(grid)} makes other times."
        ]
        if stock.off > 1e-6:
            lines = "\n".join(walking(grid))
            found.append(f"These lines make it exact:\n\n```python\n{lines}\n```")
        return found


def walking(grid: Sequence[float]) -> list[str]:
    """Returns the lines that make a pipeline named ``pipe`` walk a grid by stock classes."""
    return [
        "from diffusers import FlowMatchEulerDiscreteScheduler",
        "",
        "",
        "def walk(num_inference_steps=None, device=None, sigmas=None, mu=None):",
        f"    euler(sigmas={list(grid)}, device=device)",
        "",
        "",
        "pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)",
        "euler = pipe.scheduler.set_timesteps",
        "pipe.scheduler.set_timesteps = walk",
    ]


def call(student: Student, found: Sequence[Stage], steps: str) -> list[str]:
    """Returns the lines that call a pipeline named ``pipe``."""
    layout, source = layout_of(found), student.source or {}
    arguments = {**found[0].network.call_arguments, **layout.unguided}
    length = source.get("arguments", {}).get("text_length")
    if length is not None:
        arguments["max_sequence_length"] = length
    return [
        f"{layout.output} = pipe(",
        '    prompt="a cat that holds a sign",',
        *(f"    {name}={value}," for name, value in arguments.items()),
        f"    {steps},",
        "    generator=torch.Generator().manual_seed(0),",
        f").{layout.output}",
    ]


def header(layout: PipelineLayout, base: Base, *tags: str) -> str:
    """Returns a card's YAML."""
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


def grid_table(student: Student, found: Sequence[Stage]) -> str:
    """Returns the plan as a table: every step, its phase and the network asked."""
    rows = ["| step | time | to | phase | network |", "| --- | --- | --- | --- | --- |"]
    times = student.plan.timesteps
    phases = [phase.index + 1 for phase in student.plan for _ in phase.timesteps]
    networks = [i + 1 for i, stage in enumerate(found) for _ in stage.times]
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        rows.append(f"| {i + 1} | {t:.6g} | {s:.6g} | {phases[i]} | {networks[i]} |")
    return "\n".join(rows)


def licence(base: Base) -> str:
    """Returns the paragraph on the licence."""
    name = base.licence.get("license_name", base.licence.get("license", ""))
    if name:
        return f"## Licence\n\n{name}, as {base.model}: its terms hold for these weights too."
    return (
        f"## Licence\n\nUnknown: the folder of {base.model} names none. Its terms hold for these "
        "weights too, so look them up before sharing."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
