"""Guidance as an input: networks distilled for guidance take its strength beside their time."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["with_guidance"]


def with_guidance(config: Any, options: dict[str, Any], default: float) -> dict[str, Any]:
    """Returns options with the strength of guidance that a network takes as an input.

    Args:
        config: The network's configuration, which states ``guidance_embeds``.
        options: ``guidance_embedded``, ``None`` where it was not given, and others.
        default: The strength where it was not given.

    Raises:
        ValueError: If it is given to a network that takes none, or is not finite.
    """
    guidance, takes = options["guidance_embedded"], bool(config.guidance_embeds)
    if guidance is not None and not takes:
        raise ValueError(
            f"this transformer takes no guidance as an input, got guidance_embedded = "
            f"{guidance}; leave it out, and guide by two evaluations if at all"
        )
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(f"guidance_embedded must be finite, got {guidance}")
    return {**options, "guidance_embedded": default if guidance is None and takes else guidance}
