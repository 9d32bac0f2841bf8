"""Bases: the pipeline that a student was distilled from, whose other parts exports take over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdmd.students import Student
from pdmd.teachers.layouts import PipelineLayout

__all__ = ["Base", "open_base"]

REPLACED = ("scheduler",)
"""Parts that an export brings itself, beside the networks."""


@dataclass(frozen=True)
class Base:
    """A pipeline's folder on this disk.

    Attributes:
        name: The folder or hub name that the student names.
        folder: Where it is.
        index: Its ``model_index.json``.
        licence: What its model card says of its licence, by the card's own keys.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    licence: dict[str, str]

    @property
    def model(self) -> str:
        """What a model card calls it: its hub name if that is known."""
        if not Path(self.name).exists():
            return self.name
        known = str(self.index.get("_name_or_path", ""))
        return known if known.count("/") == 1 and not Path(known).exists() else self.folder.name

    def parts(self, layout: PipelineLayout) -> list[str]:
        """Returns the parts that an export takes over as they are.

        Raises:
            ValueError: If the name of one leads out of the pipeline's folder.
        """
        ours = {*layout.slots, *REPLACED}
        for name in self.index:
            if name != Path(name).name or name == "..":
                raise ValueError(f"{self.name} has a part called {name!r}, which is no folder")
        return [
            name
            for name, value in self.index.items()
            if isinstance(value, list) and name not in ours and value[:1] not in ([None], [])
        ]

    def copy(self, layout: PipelineLayout, to: Path, tell: Callable[[int], object]) -> None:
        """Copies the other parts, and licences that stand beside the model card."""
        for source in self.files(layout):
            target = to / source.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            tell(source.stat().st_size)

    def files(self, layout: PipelineLayout) -> list[Path]:
        """Returns what :meth:`copy` copies."""
        found = [p for p in sorted(self.folder.glob("LICEN[CS]E*")) if p.is_file()]
        for part in self.parts(layout):
            found += [p for p in sorted((self.folder / part).rglob("*")) if p.is_file()]
        return found


def open_base(
    student: Student, layout: PipelineLayout, folder: str = "", *, parts: bool = True
) -> Base:
    """Finds the pipeline that a student was distilled from, but for its networks' weights.

    Args:
        student: The student.
        layout: Its family's layout.
        folder: The pipeline's folder or hub name, in place of the one that the student names.
        parts: Whether its other parts are needed, or only what it says of itself.

    Raises:
        ValueError: If there is none, it is of another class, or its VAE makes other latents.
    """
    source: Mapping[str, Any] = student.source or {}
    name = folder or str(source.get("arguments", {}).get("folder", "")) or layout.folder
    if not name:
        raise ValueError(
            "this student's teacher was not loaded from a pipeline's folder, whose text encoder, "
            "VAE and licence an export needs; name a pipeline of its family with --base FOLDER"
        )
    place = Path(name)
    if not place.is_dir():
        place = _download(name, layout, parts)
    path = place / "model_index.json"
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} is no pipeline's folder: its model_index.json cannot be read "
            f"({type(error).__name__}); name another with --base FOLDER"
        ) from error
    if index.get("_class_name") != layout.pipeline:
        raise ValueError(
            f"{name} is a {index.get('_class_name')}, and this student's family needs a "
            f"{layout.pipeline}; name another with --base FOLDER"
        )
    base = Base(name, place, index, _licence(place))
    for part in base.parts(layout) if parts else ():
        if not any((place / part).glob("*")):
            raise ValueError(f"{place} has no {part}; restore it, or name another with --base")
    _check_vae(base, student)
    return base


def _download(name: str, layout: PipelineLayout, parts: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = None if parts else ["model_index.json", "README.md", "*/config.json"]
        ignored = [*(f"{slot}/*.safetensors" for slot in layout.slots), "*.bin", "*.ckpt"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=ignored))
    except Exception as error:  # the hub's client raises of any class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{name} is neither a folder nor to be had from the hub ({first}); name the "
            "pipeline's folder with --base FOLDER"
        ) from error


def _check_vae(base: Base, student: Student) -> None:
    path = base.folder / "vae" / "config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text())
    channels = config.get("z_dim", config.get("latent_channels"))
    own = student.latent_shape[0]
    if channels is not None and channels != own:
        raise ValueError(
            f"the VAE of {base.name} makes latents of {channels} channels, and this student's "
            f"have {own}; name the pipeline it was distilled from with --base FOLDER"
        )


def _licence(folder: Path) -> dict[str, str]:
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        data = ModelCard(path.read_text(), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError):
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: str(data[key]) for key in keys if data.get(key)}
