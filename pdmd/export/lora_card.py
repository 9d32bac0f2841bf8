"""The model card of adapter files: which goes where, and how to load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdmd.distillation.students import Student
from pdmd.export.bases import Base
from pdmd.export.card import call, grid_table, header, licence, walking
from pdmd.export.network_schedule import Stage, bases, midpoints, weight_type
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["LoraCard"]


@dataclass(frozen=True, kw_only=True)
class LoraCard:
    """A model card of a folder of adapters.

    Attributes:
        student: The student.
        stages: Its stages, all adapters.
        layout: Its family's layout.
        base: The pipeline that it was distilled from.
        names: The file of each stage.
        folders: Where the files of each format are.
        renoises: Whether steps draw noise.
    """

    student: Student
    stages: Sequence[Stage]
    layout: PipelineLayout
    base: Base
    names: Sequence[str]
    folders: Mapping[str, str]
    renoises: bool

    def text(self) -> str:
        """Returns the card, in Markdown with a YAML header."""
        plan = self.student.plan
        parts = [
            header(self.layout, self.base, "lora"),
            f"# Adapters of {self.base.model} for {plan.nfe} steps",
            f"Low-rank adapters of {self.base.model}, distilled by Phased DMD. They take no "
            "guidance: what guidance their teacher had, they have learnt.",
            "## Files",
            self._files(),
        ]
        if "diffusers" in self.folders:
            parts += ["## In diffusers", f"```python\n{self.snippet()}\n```"]
        if "comfyui" in self.folders:
            parts += ["## In ComfyUI", self._comfyui()]
        if self.renoises:
            parts.append(
                "Within a phase this student renoises between steps, which the scheduler above "
                "does not do: `pdmd export --to diffusers` writes one that does."
            )
        parts += ["## Grid", grid_table(self.student, self.stages), licence(self.base)]
        return "\n\n".join(parts)

    def slot(self, stage: Stage) -> str:
        """Returns the pipeline's place of the network that a stage adapts."""
        networks = [id(network) for network in bases(self.stages)]
        return self.layout.slots[networks.index(id(stage.network))]

    def snippet(self) -> str:
        """Returns the lines that load the base and the adapters, and draw a sample."""
        folder, own = self.folders["diffusers"], self.base
        name = str(own.folder.resolve()) if Path(own.name).exists() else own.name
        dtype = weight_type(self.stages[0].network)
        lines = [
            "import torch",
            "from diffusers import DiffusionPipeline",
            "",
            f'folder = "{folder}"  # of these files, or their name on the hub',
            f'pipe = DiffusionPipeline.from_pretrained("{name}", torch_dtype={dtype})',
        ]
        for stage, file in zip(self.stages, self.names, strict=True):
            more = ", load_into_transformer_2=True" if self.slot(stage) != "transformer" else ""
            given = f'weight_name="{file}", adapter_name="{Path(file).stem}"{more}'
            lines.append(f"pipe.load_lora_weights(folder, {given})")
        if len(bases(self.stages)) > 1:
            cut = midpoints(self.stages)[self._first_of_second() - 1]
            lines.append(f"pipe.register_to_config(boundary_ratio={cut})")
        for slot in self.layout.slots:
            lines += self._routing(slot)
        steps = f"num_inference_steps={self.student.plan.nfe}"
        lines += walking(self.student.plan.timesteps[:-1])
        return "\n".join([*lines, *call(self.student, self.stages, steps)])

    def _routing(self, slot: str) -> list[str]:
        """Returns the lines that switch among several adapters of one network."""
        mine = [i for i, stage in enumerate(self.stages) if self.slot(stage) == slot]
        if len(mine) < 2:
            return []
        cuts = midpoints([self.stages[i] for i in mine])
        argument, layout = self.layout.time_argument, self.layout
        return [
            "",
            "",
            f"def choose(network, args, more):  # the adapter of the time, for {slot}",
            f'    time = more["{argument}"] if "{argument}" in more else args[1]',
            f"    t = (float(time.flatten()[0]) - {layout.time_offset}) / {layout.time_scale}",
            f"    names = {[Path(self.names[i]).stem for i in mine]}",
            f"    network.set_adapter(names[sum(t < cut for cut in {cuts})])",
            "",
            "",
            f"pipe.{slot}.register_forward_pre_hook(choose, with_kwargs=True)",
        ]

    def _first_of_second(self) -> int:
        return [self.slot(stage) for stage in self.stages].index(self.layout.slots[1])

    def _files(self) -> str:
        rows = ["| file | of | times |", "| --- | --- | --- |"]
        ends = [stage.times[0] for stage in self.stages[1:]] + [0.0]
        for stage, name, end in zip(self.stages, self.names, ends, strict=True):
            rows.append(f"| `{name}` | `{self.slot(stage)}` | {stage.times[0]:.6g} to {end:.6g} |")
        assert self.stages[0].adapter is not None
        spec = self.stages[0].adapter.spec
        places = ", ".join(f"`{place}/`: names of {kind}" for kind, place in self.folders.items())
        return "\n".join(rows) + f"\n\nRank {spec.rank}, alpha {spec.alpha:g}. {places}."

    def _comfyui(self) -> str:
        grid = ", ".join(f"{t:.6g}" for t in self.student.plan.timesteps)
        after = [sum(len(s.times) for s in self.stages[: i + 1]) for i in range(len(self.stages))]
        words = f"Load each file at strength 1, sample with `euler` at CFG 1 and the sigmas {grid}"
        if len(self.stages) > 1:
            cuts = " and ".join(str(step) for step in after[:-1])
            words += f"; go over to the next file after step {cuts}"
        return words + "."
