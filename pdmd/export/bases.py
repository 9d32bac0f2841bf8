"""The base pipeline of a student, whose other components an export copies."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdmd.distillation.students import Student
from pdmd.documents import naming, read_json, read_text
from pdmd.export.markdown import one_line
from pdmd.export.network_schedule import NetworkInterval
from pdmd.extras import require
from pdmd.files import is_hub_name, say
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_checks import (
    PICKLES,
    check_index,
    check_weights,
    read_index,
    variant_of,
    weight_paths,
)
from pdmd.teachers.families.pipelines import configuration, hub_refusal

__all__ = ["BasePipeline", "check_links", "check_networks", "open_base_pipeline"]

REPLACED = ("scheduler",)
"""Components that an export writes itself, beside the networks."""

METADATA = ("model_index.json", "README.md", "LICEN[CS]E*", "*/config.json")
"""Files of a few kilobytes that describe a pipeline."""

EXCLUDED = ("*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.*.safetensors")
"""Weights in other formats, and variants such as ``model.fp16.safetensors``."""

STEMS = ("model", "diffusion_pytorch_model")
"""What the files of weights are called in transformers and diffusers."""

CODE = (".py", *PICKLES)
"""Ends of files that are code, or are run as such when they are read, and not copied."""


@dataclass(frozen=True)
class BasePipeline:
    """A pipeline's folder on the local disk.

    Attributes:
        name: The folder or hub name given by the student.
        folder: The local folder.
        index: The content of its ``model_index.json``.
        licence: The licence fields of its model card, under the card's keys.
        remote: Whether the folder is a download; until :meth:`fetch` it contains only
            ``METADATA``.
    """

    name: str
    folder: Path
    index: dict[str, Any]
    licence: dict[str, str]
    remote: bool = False

    @property
    def model(self) -> str:
        """The name in a model card: the hub name if it is known."""
        return self.hub_name or one_line(self.folder.name)

    @property
    def hub_name(self) -> str:
        """The name on the hub; empty if it is not known."""
        if not Path(self.name).exists():
            return self.name
        known = str(self.index.get("_name_or_path", ""))
        return known if is_hub_name(known) and not Path(known).exists() else ""

    def parts(self, layout: PipelineLayout) -> list[str]:
        """Returns the components that an export copies unchanged.

        Raises:
            ValueError: If a component's name is a path outside the pipeline's folder.
        """
        ours = {*layout.slots, *REPLACED}
        for name in self.index:
            if name != Path(name).name or name == "..":
                raise ValueError(
                    f"{self.name} has a component {name!r}, which is not a folder name"
                )
        return [
            name
            for name, value in self.index.items()
            if isinstance(value, list) and name not in ours and value[:1] not in ([None], [])
        ]

    def fetch(self, layout: PipelineLayout) -> None:
        """Downloads the components that an export copies, if the pipeline is on the hub.

        Raises:
            ValueError: If a component or its weights are missing or cannot be downloaded.
        """
        if self.remote:
            patterns = [f"{part}/*" for part in self.parts(layout)]
            try:
                _download(self.name, patterns, revision=self.folder.name)
            except ValueError:  # offline, the client looks for no part of a known revision
                if not all(_complete(self.folder / part) for part in self.parts(layout)):
                    raise
        for part in self.parts(layout):
            if not any((self.folder / part).glob("*")):
                raise ValueError(
                    f"{self.folder} has no {part}; restore it, or name another with --base"
                )
            if not _complete(self.folder / part):
                raise ValueError(
                    f"{self.folder / part} lacks weights, without which the export would not "
                    "load; download them, or name another pipeline with --base"
                )

    def copy(self, layout: PipelineLayout, to: Path, tell: Callable[[int], object]) -> None:
        """Copies components and licence files; calls ``tell`` with the bytes copied.

        Weights that are there in a variant alone, such as ``model.fp16.safetensors``, are copied
        without it, so that they load as the networks do.
        """
        for source, place in self.files(layout).items():
            target = to / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if place.name != source.name and source.suffix == ".json":
                _copy_index(source, target)
            else:
                shutil.copyfile(source, target)
            tell(source.stat().st_size)

    def files(self, layout: PipelineLayout) -> dict[Path, Path]:
        """Returns what :meth:`copy` copies, and where to in the export's folder.

        Raises:
            ValueError: If a link among them leads out of the folder; all are named. If a component
                has weights in several variants, and none without.
        """
        found = sorted(self.folder.glob("LICEN[CS]E*"))
        for part in self.parts(layout):
            found += [self.folder / part, *sorted((self.folder / part).rglob("*"))]
        check_links(self.name, self.folder, found)
        kept = [path for path in found if path.is_file() and path.suffix not in CODE]
        variants = self._variants(self.parts(layout))
        return {
            path: path.relative_to(self.folder).with_name(_plain_name(path, variants))
            for path in kept
        }

    def variants(self) -> set[str]:
        """Returns the variants of components whose weights are in one alone."""
        parts = [name for name, value in self.index.items() if isinstance(value, list)]
        return set(self._variants(parts).values())

    def _variants(self, parts: Iterable[str]) -> dict[tuple[Path, str], str]:
        """Returns the variants by folder and by what the files of weights are called."""
        return {
            (self.folder / part, stem): variant
            for part in parts
            for stem in STEMS
            if (variant := variant_of(self.folder, part, stem))
        }


def _plain_name(path: Path, variants: Mapping[tuple[Path, str], str]) -> str:
    """Returns the name of a file of weights, or of their index, without its variant."""
    for stem in STEMS:
        variant = variants.get((path.parent, stem))
        shard = r"(-\d+-of-\d+)?"
        for pattern in (
            rf"({stem})\.{variant}{shard}(\.safetensors)",
            rf"({stem}){shard}\.{variant}(\.safetensors)",
            rf"({stem}\.safetensors\.index)\.{variant}()(\.json)",
        ):
            if variant and (found := re.fullmatch(pattern, path.name)):
                return "".join(part or "" for part in found.groups())
    return path.name


def _copy_index(source: Path, target: Path) -> None:
    """Copies the index of weights in a variant, with the names of files without it."""
    with naming(source, "download it again"):
        content = read_json(source)
        variant = source.name.split(".")[-2]
        stem = target.name.partition(".")[0]
        known = {(source.parent, stem): variant}
        content["weight_map"] = {
            name: _plain_name(source.parent / file, known)
            for name, file in content["weight_map"].items()
        }
    target.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_links(name: str, folder: Path, paths: Sequence[Path]) -> None:
    """Checks that no link leads out of a folder, but to the blobs of the hub's cache.

    Args:
        name: What the folder is called, for the error.
        folder: The folder.
        paths: Files and folders in it.

    Raises:
        ValueError: If one does; all are named.
    """
    roots = [folder.resolve()]
    blobs = roots[0].parent.parent / "blobs"  # where the hub's cache has a snapshot's files
    if roots[0].parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
        roots.append(blobs)
    away = [
        str(path.relative_to(folder))
        for path in paths
        if not any(path.resolve().is_relative_to(root) for root in roots)
    ]
    if away:
        more = f" and {len(away) - 4} more" if away[4:] else ""
        raise ValueError(
            f"{name} links to files outside of it: {', '.join(away[:4])}{more}; replace the links "
            "by copies if these files belong to it, or remove them"
        )


def open_base_pipeline(student: Student, layout: PipelineLayout, folder: str = "") -> BasePipeline:
    """Opens the pipeline that a student was distilled from.

    Args:
        student: The student.
        layout: The layout of its family.
        folder: The pipeline's folder or hub name; by default the one given by the student.

    Raises:
        ValueError: If no pipeline is known, or it has another class, a VAE with other latents, or
            a damaged model card.
    """
    source: Mapping[str, Any] = student.source or {}
    own: Mapping[str, Any] = source.get("arguments", {})
    # a network's file lacks the other parts, which come of its config
    name = folder or str(own.get("config") or own.get("folder") or layout.folder)
    if not name:
        raise ValueError(
            "this student's teacher was not loaded from a pipeline's folder, whose text encoder, "
            "VAE and licence an export needs; name a pipeline of its family with --base FOLDER"
        )
    place = Path(name)
    remote = not place.is_dir()
    if remote:
        place = _download(name, METADATA)
    try:
        if not (index := read_index(place)):
            raise ValueError("it has none")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place} is not a pipeline's folder: its model_index.json cannot be read "
            f"({say(error)}); name another with --base FOLDER"
        ) from error
    if index.get("_class_name") != layout.pipeline:
        raise ValueError(
            f"{name} is a {index.get('_class_name')}, and this student's family needs a "
            f"{layout.pipeline}; name another with --base FOLDER"
        )
    check_index(place)
    check_weights(place, (part for part in index if re.fullmatch(r"\w+", part)))
    base = BasePipeline(name, place, index, _read_licence(place), remote)
    base.parts(layout)  # raises for invalid names
    _check_vae(base, student)
    return base


def check_networks(
    intervals: Sequence[NetworkInterval], layout: PipelineLayout, base: BasePipeline
) -> None:
    """Checks that a pipeline's network has the student's configuration.

    Raises:
        ValueError: If the configuration differs or is missing.
    """
    own = json.loads(json.dumps(dict(intervals[0].network.backbone.config)))
    theirs = json.loads(json.dumps(configuration(layout.network, base.folder, layout.slots[0])))
    for key in sorted(own.keys() & theirs.keys()):
        if not key.startswith("_") and own[key] != theirs[key]:
            raise ValueError(
                f"the {layout.slots[0]} of {base.name} has {key} = {theirs[key]}, and this "
                f"student's {own[key]}; name the pipeline it was distilled from with --base FOLDER"
            )


def _download(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download

    only: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(EXCLUDED)}
    try:
        return Path(snapshot_download(name, revision=revision, **only))
    except Exception as error:  # the hub's client raises many classes
        if refusal := hub_refusal(error, name):
            raise ValueError(f"{refusal}, or name the pipeline's folder with --base") from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{name} is no folder and cannot be downloaded from the hub ({first}); name the "
            "pipeline's folder with --base FOLDER"
        ) from error


def _complete(part: Path) -> bool:
    """Returns whether a component's files are all in its folder, a model's weights among them."""
    if not (part / "config.json").is_file():
        return any(part.glob("*"))
    return any(
        all(
            path.is_file()
            for path in weight_paths(
                part,
                stem,
                variant_of(part.parent, part.name, stem),
                shards_first=stem != "model",
            )
        )
        for stem in STEMS
    )


def _check_vae(base: BasePipeline, student: Student) -> None:
    path = base.folder / "vae" / "config.json"
    if not path.is_file():
        return
    with naming(path, "restore it, or name another with --base FOLDER"):
        config = read_json(path)
        channels = config.get("z_dim", config.get("latent_channels"))
        if "batch_norm_eps" in config:  # FLUX.2's latents are packed before they are normalised
            channels *= math.prod(config["patch_size"])
    own = student.latent_shape[0]
    if channels is not None and channels != own:
        raise ValueError(
            f"the VAE of {base.name} has latents of {channels} channels, and this student's have "
            f"{own}; name the pipeline it was distilled from with --base FOLDER"
        )


def _read_licence(folder: Path) -> dict[str, str]:
    require("diffusers", "huggingface_hub")
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        data = ModelCard(read_text(path), ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # the parser raises classes of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"the header of {path}, which states the licence, cannot be parsed ({first}); fix it"
        ) from error
    keys = ("license", "license_name", "license_link")
    found = {key: one_line(str(data[key])) for key in keys if data.get(key)}
    link = found.get("license_link", "")
    if link and not re.fullmatch(r"https://[\w.~/?=&%#:@+-]+|[\w.-]+", link, re.ASCII):
        warnings.warn(
            f"{path} has the license_link {link!r:.80}, which is neither an https address nor a "
            "file's name; the card of the export has none",
            stacklevel=2,
        )
        del found["license_link"]
    return found
