"""Sources of students: which registered teacher and network a student is rebuilt from."""

from __future__ import annotations

import json
import math
from typing import Any

from pdmd.teachers.with_schedule import ENDS

__all__ = ["check_source"]


def check_source(source: Any) -> None:
    """Checks the ``source`` of a :class:`~pdmd.distillation.students.Student`.

    Args:
        source: The source, or ``None``.

    Raises:
        ValueError: If it names no teacher, a value is of another type, or no value of JSON.
    """
    if source is None:
        return
    try:
        json.dumps(source, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"a student's source is written as JSON, got {source!r:.200} ({error}); use texts, "
            "numbers, lists and dicts with texts as keys"
        ) from error
    for part, key in ((source, "teacher"), (source.get("network"), "name")):
        if part is not None and key not in part:
            raise ValueError(
                f"a student's source names its {key}, got {part!r:.200}; pass "
                '{"teacher": name, "arguments": {...}} of a registered teacher, or None'
            )
    guidance, interval = source.get("guidance", 1.0), source.get("guidance_interval", [0.0, 1.0])
    for scale in [*(guidance if isinstance(guidance, list) else [guidance]), *interval]:
        if isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"guidance must be finite, got {guidance!r} in {interval!r}")
    for key in ("negative_prompt", "encoder"):
        if not isinstance(source.get(key, ""), str):
            raise ValueError(f"{key} must be text, got {source[key]!r}")
    router = source.get("router", {"name": ""})
    if not (isinstance(router, dict) and isinstance(router.get("name"), str)):
        raise ValueError(f"a router must be a table with a name, got {router!r}")
    schedule = source.get("schedule")
    if schedule is not None and not (
        isinstance(schedule.get("name"), str) and schedule.get("end", "noise") in ENDS
    ):
        raise ValueError(f"schedule must have a name and an end, got {schedule!r}")
    named = ((source, "teacher"), (source.get("network"), "name"))
    for part, key in (*named, (source.get("student"), "teacher")):
        if part is not None and not (
            isinstance(part[key], str) and isinstance(part.get("arguments", {}), dict)
        ):
            raise ValueError(f"source must name a {key} and its arguments, got {part!r}")
