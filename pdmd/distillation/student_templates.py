"""Templates of students whose experts are copies of another registered teacher than theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.student_folders import build, found_place
from pdmd.distillation.student_networks import matched
from pdmd.distillation.student_sizes import FolderSizes
from pdmd.teachers.base import Teacher, outline_arguments, teachers

__all__ = ["student_template"]


def student_template(folder: Path, content: Mapping[str, Any], teacher: Teacher) -> Denoiser:
    """Builds the network of experts that are copies of another registered teacher.

    Args:
        folder: The student's folder.
        content: The content of its ``student.json``.
        teacher: The teacher, on whose schedule the network is returned.

    Raises:
        ValueError: If it cannot be built, or is larger than the folder's files.
    """
    source = content["source"]["student"]
    name, own = source["teacher"], dict(source.get("arguments", {}))
    own = {key: found_place(key, value, folder) for key, value in own.items()}
    sizes = FolderSizes.read(folder, content)
    sizes.check_arguments(name, own)
    if name in teachers and not own.get("folder"):
        outline = outline_arguments(name)
        if outline:
            sizes.check_outline(name, build(teachers, name, {**own, **outline}, folder))
    return matched(build(teachers, name, own, folder), teacher)
