"""Templates: networks with the architecture of a student's experts, built from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.student_folders import build, found_place
from pdmd.distillation.student_networks import matched
from pdmd.distillation.student_sizes import FolderSizes
from pdmd.teachers.base import Teacher, networks, outline_arguments, teachers

__all__ = ["student_template"]


def student_template(folder: Path, content: Mapping[str, Any], teacher: Teacher) -> Denoiser:
    """Builds a network with the architecture of a student's experts.

    They are copies of the teacher, of another registered teacher (``student`` in the folder's
    source), or of a registered network (``network``).

    Args:
        folder: The student's folder.
        content: The content of its ``student.json``.
        teacher: The teacher, on whose schedule the network is.

    Raises:
        ValueError: If it cannot be built, or is larger than the folder's files.
    """
    source = content["source"] or {}
    if source.get("student") is not None:
        return _of_teacher(folder, content, source["student"], teacher)
    network = source.get("network")
    if network is None:
        return teacher
    own, name = network.get("arguments", {}), network["name"]
    sizes = FolderSizes.read(folder, content)
    sizes.check_arguments(name, own)
    make = partial(build, networks, name, {**own, "schedule": teacher.schedule}, folder)
    sizes.check_network(name, make, content)
    return make()


def _of_teacher(
    folder: Path, content: Mapping[str, Any], source: Mapping[str, Any], teacher: Teacher
) -> Denoiser:
    name, own = source["teacher"], dict(source.get("arguments", {}))
    own = {key: found_place(key, value, folder) for key, value in own.items()}
    sizes = FolderSizes.read(folder, content)
    sizes.check_arguments(name, own)
    if name in teachers and not own.get("folder"):
        outline = outline_arguments(name)
        if outline:
            sizes.check_outline(name, build(teachers, name, {**own, **outline}, folder))
    return matched(build(teachers, name, own, folder), teacher)
