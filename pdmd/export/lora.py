r"""A student of adapters as files of adapters, one for each network it asks.

Two formats hold the same numbers. That of diffusers names maps as its networks do, and keeps rank
and :math:`\alpha` beside the weights. That of ComfyUI, which others read too, names them as the
released network does and holds an ``alpha`` for each map; where its readers know none, the second
factor is multiplied by :math:`\alpha / r` instead. Linear maps alone, and no other keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pdmd.distillation.low_rank import LowRank
from pdmd.distillation.students import Student
from pdmd.export.atomic_export import check_place, drafted
from pdmd.export.bases import check_networks, open_base
from pdmd.export.lora_card import LoraCard
from pdmd.export.network_schedule import Stage, jumps, layout_of, stages
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import dtype_of

__all__ = ["comfyui_weights", "diffusers_weights", "export_lora", "names_of"]


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
        student: A student whose experts are adapters over a family with a layout.
        folder: Where to write; it appears whole or not at all. With both formats each has a
            folder in it.
        format: Whose names to go by.
        dtype: Type of the weights; the student's own by default.
        base: The pipeline that it was distilled from, if it has moved.
        overwrite: Whether to replace an earlier export.

    Returns:
        The folder.

    Raises:
        ValueError: If an expert is a whole network, its family has no pipeline in diffusers, the
            pipeline is missing or of another kind, or the folder is in the way.
    """
    folder = Path(folder)
    check_place(folder, overwrite=overwrite)
    if format not in ("diffusers", "comfyui", "both"):
        raise ValueError(f"a format is 'diffusers', 'comfyui' or 'both', got {format!r}")
    found = stages(student)
    if any(stage.adapter is None for stage in found):
        raise ValueError(
            "this student's experts are whole networks, which no adapter of low rank holds; "
            "export it with --to diffusers, or distill adapters"
        )
    layout = layout_of(found)
    kept = dtype_of(dtype) if dtype else None
    formats = ("diffusers", "comfyui") if format == "both" else (format,)
    chosen = open_base(student, layout, base)
    check_networks(found, layout, chosen)
    card = LoraCard(
        student=student,
        stages=found,
        layout=layout,
        base=chosen,
        names=names_of(found),
        folders={name: name if format == "both" else "." for name in formats},
        renoises=jumps(student) is not None,
    )
    with drafted(folder, overwrite=overwrite) as draft:
        for kind, place in card.folders.items():
            (draft / place).mkdir(exist_ok=True)
            for name, stage in zip(card.names, found, strict=True):
                _write(draft / place / name, stage, layout, kind, kept)
        (draft / "README.md").write_text(card.text())
    return folder


def names_of(found: Sequence[Stage]) -> list[str]:
    """Returns the file of each stage: for two, the names that go by convention."""
    if len(found) == 1:
        return ["pytorch_lora_weights.safetensors"]
    if len(found) == 2:
        return ["high_noise_model.safetensors", "low_noise_model.safetensors"]
    return [f"network_{i + 1}.safetensors" for i in range(len(found))]


def diffusers_weights(stage: Stage) -> dict[str, Tensor]:
    """Returns a stage's factors by the names of diffusers."""
    weights = {}
    for path, factors in stage.factors().items():
        weights[f"transformer.{path}.lora_A.weight"] = factors.lora_A.weight
        weights[f"transformer.{path}.lora_B.weight"] = factors.lora_B.weight
    return weights


def comfyui_weights(stage: Stage, layout: PipelineLayout) -> dict[str, Tensor]:
    """Returns a stage's factors by the names of ComfyUI.

    Raises:
        ValueError: If a map has none there.
    """
    weights = {}
    first, second = layout.factors
    for path, factors in stage.factors().items():
        name = layout.released_name(path)
        low, high = factors.lora_A.weight, factors.lora_B.weight
        at = f"{layout.prefix}.{name}"
        if re.match(layout.bare, name):
            high = high * factors.scale
        else:
            weights[f"{at}.alpha"] = torch.tensor(_spec(stage).alpha)
        weights[f"{at}.{first}.weight"] = low
        weights[f"{at}.{second}.weight"] = high
    return weights


def _write(
    path: Path, stage: Stage, layout: PipelineLayout, kind: str, dtype: torch.dtype | None
) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if kind == "diffusers":
        weights = diffusers_weights(stage)
        spec = _spec(stage)
        content = {
            "transformer.r": spec.rank,
            "transformer.lora_alpha": spec.alpha,
            "transformer.target_modules": sorted(stage.factors()),
        }
        metadata["lora_adapter_metadata"] = json.dumps(content, indent=2, sort_keys=True)
    else:
        weights = comfyui_weights(stage, layout)
    kept = {
        name: value.detach()
        .to("cpu", None if name.endswith(".alpha") else dtype)
        .contiguous()
        .clone()
        for name, value in weights.items()
    }
    save_file(kept, path, metadata=metadata)


def _spec(stage: Stage) -> LowRank:
    assert stage.adapter is not None
    return stage.adapter.spec
