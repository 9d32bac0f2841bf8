r"""Processes of a student's experts: the kind of their predictions, and their schedule.

A file of weights says neither, and a network that is taken for another kind, or evaluated on
another schedule, samples noise. ``student.json`` has the kind and the coefficients
:math:`(\alpha_t, \sigma_t)` at three times, which are those of any class of schedules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import check_kind

__all__ = ["check_process", "describe_process", "process_of"]

TIMES = (0.25, 0.5, 0.75)


def describe_process(denoiser: Denoiser) -> dict[str, Any]:
    """Returns a network's kind and the coefficients of its schedule, as JSON values."""
    pairs = [[float(c) for c in denoiser.schedule(t)] for t in TIMES]
    return {"kind": denoiser.kind, "coefficients": pairs}


def process_of(entry: Mapping[str, Any]) -> tuple[str, list[float]] | None:
    """Returns the kind and the coefficients in the description of an expert.

    Args:
        entry: The description; one of an older version has none.

    Raises:
        ValueError: If they are not valid.
    """
    if "process" not in entry:
        return None
    kind = check_kind(entry["process"]["kind"])
    numbers = [float(c) for pair in entry["process"]["coefficients"] for c in pair]
    if len(numbers) != 2 * len(TIMES):
        raise ValueError(f"coefficients must be {len(TIMES)} pairs, got {numbers!r:.100}")
    return kind, numbers


def check_process(template: Denoiser, entry: Mapping[str, Any]) -> None:
    """Checks that a network has the kind and the schedule of an expert.

    Args:
        template: The network.
        entry: The description of the expert.

    Raises:
        ValueError: If it has others.
    """
    saved, own = process_of(entry), process_of({"process": describe_process(template)})
    if saved is None or own is None:
        return
    name = type(template).__name__
    remedy = "pass a template= or teacher= like the one that the student was distilled with"
    if saved[0] != own[0]:
        raise ValueError(
            f"the student's experts predict {saved[0]}, but the {name} at hand {own[0]}; {remedy}"
        )
    close = (
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)
        for a, b in zip(saved[1], own[1], strict=True)
    )
    if not all(close):
        alpha, sigma = saved[1][2:4]
        raise ValueError(
            f"the student's experts are on a schedule with alpha = {alpha:.4g} and sigma = "
            f"{sigma:.4g} at t = {TIMES[1]}, but the {name} at hand is on {template.schedule!r}; "
            f"{remedy}"
        )
