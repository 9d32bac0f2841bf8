r"""Export of low-rank experts as LoRA files, one per expert network.

Two formats store the same factors. The diffusers format names linear maps as the diffusers network
does, and stores rank and :math:`\alpha` as metadata. The ComfyUI format, which other tools read
too, names them as the released network does, with an ``alpha`` per map; for maps whose readers
support no ``alpha``, the second factor is multiplied by :math:`\alpha / r` instead. Only linear
maps are stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pdmd.arguments import checked
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.distillation.low_rank import LowRank
from pdmd.distillation.students import Student
from pdmd.export.atomic_export import atomic_folder, check_destination
from pdmd.export.bases import check_networks, open_base_pipeline
from pdmd.export.lora_card import WORKFLOW, LoraCard
from pdmd.export.network_schedule import (
    NetworkInterval,
    export_type,
    network_intervals,
    pipeline_layout,
    renoise_times,
)
from pdmd.export.weights import check_range
from pdmd.files import save_tensors
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["comfyui_weights", "diffusers_weights", "export_lora", "file_names"]


@checked
def export_lora(
    student: Student,
    folder: str | Path,
    *,
    format: Literal["diffusers", "comfyui", "both"] = "both",
    dtype: str = "",
    base: str = "",
    overwrite: bool = False,
) -> Path:
    """Writes a student's adapters, with a model card.

    Args:
        student: A student whose experts are adapters over a family with a pipeline layout.
        folder: The destination, written atomically. With ``"both"``, it has a subfolder per
            format.
        format: The naming convention.
        dtype: float32, bfloat16 or float16, the type of the weights; the student's by default.
        base: The base pipeline, if it has moved.
        overwrite: Whether to replace an earlier export.

    Returns:
        The folder.

    Raises:
        ValueError: If an expert is not an adapter, its family has no pipeline in diffusers, the
            base pipeline is missing or of another class, the folder cannot be replaced, or a
            value is beyond the range of float16.
    """
    folder = Path(folder)
    check_destination(folder, overwrite=overwrite)
    kept = export_type(dtype)
    if format not in ("diffusers", "comfyui", "both"):
        raise ValueError(f"expected the format 'diffusers', 'comfyui' or 'both', got {format!r}")
    intervals = network_intervals(student)
    if any(interval.adapter is None for interval in intervals):
        raise ValueError(
            "this student's experts are full networks, not low-rank adapters; export it with --to "
            "diffusers, or distill adapters"
        )
    layout = pipeline_layout(intervals)
    if not isinstance(student.schedule, RectifiedFlow):
        raise ValueError(
            "the card of adapter files samples on rectified flow, and this student is on "
            f"{student.schedule!r:.60}; export it with --to diffusers, which merges its adapters"
        )
    formats = ("diffusers", "comfyui") if format == "both" else (format,)
    chosen = open_base_pipeline(student, layout, base)
    check_networks(intervals, layout, chosen)
    card = LoraCard(
        student=student,
        intervals=intervals,
        layout=layout,
        base=chosen,
        names=file_names(intervals),
        folders={name: name if format == "both" else "." for name in formats},
        renoises=renoise_times(student) is not None,
    )
    with atomic_folder(folder, overwrite=overwrite) as draft:
        for kind, place in card.folders.items():
            (draft / place).mkdir(exist_ok=True)
            for name, interval in zip(card.names, intervals, strict=True):
                _write(draft / place / name, interval, layout, kind, kept)
        nodes = card.workflow()
        if "comfyui" in card.folders and nodes is not None:
            text = json.dumps(nodes, indent=2) + "\n"
            (draft / card.folders["comfyui"] / WORKFLOW).write_text(text)
        (draft / "README.md").write_text(card.text())
    return folder


def file_names(intervals: Sequence[NetworkInterval]) -> list[str]:
    """Returns the file name of each interval; for one and two, the conventional names."""
    if len(intervals) == 1:
        return ["pytorch_lora_weights.safetensors"]
    if len(intervals) == 2:
        return ["high_noise_model.safetensors", "low_noise_model.safetensors"]
    return [f"network_{i + 1}.safetensors" for i in range(len(intervals))]


def diffusers_weights(interval: NetworkInterval) -> dict[str, Tensor]:
    """Returns an interval's factors under the names of diffusers."""
    weights = {}
    for path, factors in interval.factors().items():
        weights[f"transformer.{path}.lora_A.weight"] = factors.lora_A.weight
        weights[f"transformer.{path}.lora_B.weight"] = factors.lora_B.weight
    return weights


def comfyui_weights(interval: NetworkInterval, layout: PipelineLayout) -> dict[str, Tensor]:
    """Returns an interval's factors under the names of ComfyUI.

    Raises:
        ValueError: If a map has no name there.
    """
    weights = {}
    first, second = layout.factors
    for path, factors in interval.factors().items():
        name = layout.released_name(path)
        low, high = factors.lora_A.weight, factors.lora_B.weight
        at = f"{layout.prefix}.{name}"
        if re.match(layout.bare, name):
            high = high * factors.scale
        else:
            weights[f"{at}.alpha"] = torch.tensor(_spec(interval).alpha)
        weights[f"{at}.{first}.weight"] = low
        weights[f"{at}.{second}.weight"] = high
    return weights


def _write(
    path: Path,
    interval: NetworkInterval,
    layout: PipelineLayout,
    kind: str,
    dtype: torch.dtype | None,
) -> None:

    metadata = {"format": "pt"}
    if kind == "diffusers":
        weights = diffusers_weights(interval)
        spec = _spec(interval)
        content = {
            "transformer.r": spec.rank,
            "transformer.lora_alpha": spec.alpha,
            "transformer.target_modules": sorted(interval.factors()),
        }
        metadata["lora_adapter_metadata"] = json.dumps(content, indent=2, sort_keys=True)
    else:
        weights = comfyui_weights(interval, layout)
    kept = {}
    for name, value in weights.items():
        written = value.dtype if dtype is None or name.endswith(".alpha") else dtype
        check_range(name, value.detach(), written)
        kept[name] = value.detach().to("cpu", written).contiguous().clone()
    save_tensors(kept, path, metadata=metadata)


def _spec(interval: NetworkInterval) -> LowRank:
    assert interval.adapter is not None
    return interval.adapter.spec
