"""Teachers of a model family without a folder, whose weights are random.

They serve to measure costs and to try settings. At the released sizes they fill the memory of most
machines, where the operating system ends the process without a word; this is checked before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdmd.distillation.student_networks import random_weights
from pdmd.teachers.base import outline_arguments, teachers

__all__ = ["available_memory", "check_room", "weights_notice"]

REMEDY = "name a pipeline's folder with --{}.arguments folder FOLDER"


def weights_notice(name: str, arguments: Mapping[str, Any]) -> str:
    """Returns a line for the user if a teacher has random weights, else ``""``.

    Args:
        name: Its registered name.
        arguments: Its arguments.
    """
    if not random_weights(name, dict(arguments)):
        return ""
    return (
        f"the teacher ({name}) has random weights, of which students learn nothing but the cost; "
        f"{REMEDY.format('teacher')}"
    )


def check_room(name: str, arguments: Mapping[str, Any], section: str = "teacher") -> None:
    """Checks that the weights of a network fit into memory, if they would be drawn there.

    Args:
        name: Its registered name.
        arguments: Its arguments.
        section: The configuration's section that names it.

    Raises:
        ValueError: If they do not fit.
    """
    outline = outline_arguments(name)
    if not outline or arguments.get("meta") or not random_weights(name, dict(arguments)):
        return
    parameters = list(teachers[name](**{**arguments, **outline}).parameters())
    needed, found = sum(p.numel() * p.itemsize for p in parameters), available_memory()
    if needed > found:
        raise ValueError(
            f"{sum(p.numel() for p in parameters) / 1e9:.1f} billion random weights need "
            f"{needed / 1e9:.0f} GB, and {found / 1e9:.0f} GB of memory are free; "
            f"{REMEDY.format(section)}, try "
            "its recipe by --tiny, or estimate its cost by 'pdmd plan'"
        )


def available_memory() -> float:
    """Returns the bytes that this process can still take; infinite where no system tells."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * float(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" is none
        limit, used = (
            float(Path("/sys/fs/cgroup", name).read_text())
            for name in ("memory.max", "memory.current")
        )
        found.append(limit - used)
    return max(min(found), 0.0)
