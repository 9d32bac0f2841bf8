"""The model card of exported LoRA files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdmd.distillation.students import Student
from pdmd.export.bases import BasePipeline
from pdmd.export.card import (
    call_lines,
    grid_table,
    header,
    import_lines,
    licence,
    scheduler_lines,
    size_notes,
    unguided_note,
)
from pdmd.export.comfyui import workflow
from pdmd.export.markdown import escaped, quoted
from pdmd.export.network_schedule import NetworkInterval, base_networks, midpoints, weight_type
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["WORKFLOW", "LoraCard"]

WORKFLOW = "workflow.json"
"""The file of the workflow for ComfyUI."""


@dataclass(frozen=True, kw_only=True)
class LoraCard:
    """The model card of a folder of adapters.

    Attributes:
        student: The student.
        intervals: The time intervals of its networks, all adapters.
        layout: The layout of its family.
        base: The pipeline that it was distilled from.
        names: The file of each interval.
        folders: The folder of each format.
        renoises: Whether steps draw noise.
    """

    student: Student
    intervals: Sequence[NetworkInterval]
    layout: PipelineLayout
    base: BasePipeline
    names: Sequence[str]
    folders: Mapping[str, str]
    renoises: bool

    def text(self) -> str:
        """Returns the card, in Markdown with a YAML header."""
        plan, model = self.student.plan, escaped(self.base.model)
        parts = [
            header(self.layout, self.base, "lora"),
            f"# Adapters of {model} for {plan.nfe} steps",
            f"Low-rank adapters of {model}, distilled by Phased DMD. Use them without "
            "guidance: the guidance of their teacher is distilled into them."
            + (unguided_note(self.layout) if "diffusers" in self.folders else ""),
            "They contain no code: stock diffusers and ComfyUI load them.",
            "## Files",
            self._files(),
        ]
        if "diffusers" in self.folders:
            parts += ["## In diffusers", f"```python\n{self.snippet()}\n```"]
        if "comfyui" in self.folders:
            parts += ["## In ComfyUI", self._comfyui()]
        if self.renoises:
            parts.append(
                "This student renoises between the steps of a phase, which the scheduler above "
                "does not: `pdmd export --to diffusers` writes one that does."
            )
        parts += ["## Grid", grid_table(self.student, self.intervals)]
        parts += [*size_notes(self.student), licence(self.base)]
        return "\n\n".join(parts)

    def slot(self, interval: NetworkInterval) -> str:
        """Returns the pipeline's component whose network an interval adapts."""
        networks = [id(network) for network in base_networks(self.intervals)]
        return self.layout.slots[networks.index(id(interval.network))]

    def snippet(self) -> str:
        """Returns the lines that load the base and the adapters, and sample."""
        folder, own = self.folders["diffusers"], self.base
        name = quoted(own.hub_name or str(own.folder.resolve()))
        dtype = weight_type(self.intervals[0].network)
        variants = own.variants()
        variant = f', variant="{min(variants)}"' if len(variants) == 1 else ""
        lines = [
            *import_lines(self.layout),
            f'folder = "{folder}"  # of these files, or their name on the hub',
            f"pipe = DiffusionPipeline.from_pretrained({name}, torch_dtype={dtype}{variant})",
        ]
        for interval, file in zip(self.intervals, self.names, strict=True):
            more = ", load_into_transformer_2=True" if self.slot(interval) != "transformer" else ""
            given = f'weight_name="{file}", adapter_name="{Path(file).stem}"{more}'
            lines.append(f"pipe.load_lora_weights(folder, {given})")
        if len(base_networks(self.intervals)) > 1:
            cut = midpoints(self.intervals)[self._first_of_second() - 1]
            lines.append(f"pipe.register_to_config(boundary_ratio={cut})")
        for slot in self.layout.slots:
            lines += self._routing(slot)
        steps = f"num_inference_steps={self.student.plan.nfe}"
        lines += scheduler_lines(self.student.plan.timesteps[:-1])
        return "\n".join([*lines, *call_lines(self.student, self.intervals, steps)])

    def _routing(self, slot: str) -> list[str]:
        """Returns the lines that select among several adapters of one network."""
        mine = [i for i, interval in enumerate(self.intervals) if self.slot(interval) == slot]
        if len(mine) < 2:
            return []
        cuts = midpoints([self.intervals[i] for i in mine])
        argument, layout = self.layout.time_argument, self.layout
        return [
            "",
            "",
            f"def select(network, args, more):  # the adapter of the time, for {slot}",
            f'    time = more["{argument}"] if "{argument}" in more else args[1]',
            f"    t = (float(time.flatten()[0]) - {layout.time_offset}) / {layout.time_scale}",
            f"    names = {[Path(self.names[i]).stem for i in mine]}",
            f"    network.set_adapter(names[sum(t < cut for cut in {cuts})])",
            "",
            "",
            f"pipe.{slot}.register_forward_pre_hook(select, with_kwargs=True)",
        ]

    def _first_of_second(self) -> int:
        return [self.slot(interval) for interval in self.intervals].index(self.layout.slots[1])

    def _files(self) -> str:
        rows = ["| file | of | times |", "| --- | --- | --- |"]
        ends = [interval.times[0] for interval in self.intervals[1:]] + [0.0]
        for interval, name, end in zip(self.intervals, self.names, ends, strict=True):
            rows.append(
                f"| `{name}` | `{self.slot(interval)}` | {interval.times[0]:.6g} to {end:.6g} |"
            )
        assert self.intervals[0].adapter is not None
        spec = self.intervals[0].adapter.spec
        places = ", ".join(f"`{place}/`: names of {kind}" for kind, place in self.folders.items())
        return "\n".join(rows) + f"\n\nRank {spec.rank}, alpha {spec.alpha:g}. {places}."

    def _comfyui(self) -> str:
        grid = ", ".join(f"{t:.6g}" for t in self.student.plan.timesteps)
        after = [
            sum(len(s.times) for s in self.intervals[: i + 1]) for i in range(len(self.intervals))
        ]
        text = f"Load each file at strength 1, sample with `euler` at CFG 1 and the sigmas {grid}"
        if len(self.intervals) > 1:
            cuts = " and ".join(str(step) for step in after[:-1])
            text += f"; switch to the next file after step {cuts}"
        text += "."
        if self.workflow() is not None:
            text += (
                f" `{WORKFLOW}` beside the files does so: open it in ComfyUI, choose the files of "
                "the base, its text encoder and VAE, and put the adapters into `models/loras`."
            )
        return text

    def workflow(self) -> dict[str, Any] | None:
        """Returns a workflow of the adapters for ComfyUI; ``None`` where there is none.

        There is none for students that renoise or that are given a first image, nor for families
        whose nodes are not known.
        """
        if self.renoises or self.layout.takes_image:
            return None
        ends = [interval.times[0] for interval in self.intervals[1:]] + [0.0]
        return workflow(
            self.layout.pipeline,
            self.names,
            [f"{self.slot(interval)}.safetensors" for interval in self.intervals],
            [(*i.times, end) for i, end in zip(self.intervals, ends, strict=True)],
            call=self.intervals[0].network.call_arguments,
            video=self.layout.output == "frames",
        )
