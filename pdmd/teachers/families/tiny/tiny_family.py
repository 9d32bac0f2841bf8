"""A tiny pipeline as data: sizes of its network, and what builds its other parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TinyFamily", "named_parts"]


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """A family's tiny pipeline.

    Attributes:
        sizes: Sizes of the network, as ``from_config`` takes them.
        options: The size of a sample, as the teacher's constructor takes it.
        vae: Builds the VAE from the number of latent channels.
        encoders: Builds text encoders and tokenizers, by their names in the pipeline.
        scheduler: Arguments of the scheduler.
        scheduler_class: Its class in diffusers.
        components: Classes of diffusers of further parts, by their names in the pipeline.
        more: Further arguments of the pipeline.
        processors: Builds image processors, by their names in the pipeline, where the pipeline
            is built without them.
        processor_class: The class that the pipeline's index names for them.
    """

    sizes: Mapping[str, Any]
    options: Mapping[str, Any]
    vae: Callable[[int], Any]
    encoders: Callable[[], Mapping[str, Any]]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    scheduler_class: str = "FlowMatchEulerDiscreteScheduler"
    components: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    processors: Callable[[], Mapping[str, Any]] = dict
    processor_class: str = "Qwen2VLProcessor"


def named_parts(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """Names tokenizers and text encoders as pipelines do."""
    found: dict[str, Any] = {}
    for i, (tokenizer, encoder) in enumerate(pairs):
        end = f"_{i + 1}" if i else ""
        found |= {f"tokenizer{end}": tokenizer, f"text_encoder{end}": encoder}
    return found
