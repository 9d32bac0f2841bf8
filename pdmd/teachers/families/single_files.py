"""Networks in a single file, as pipelines' folders.

A checkpoint of one network, ``model.safetensors``, lacks the other parts of its pipeline. They
come from a pipeline's folder, and both together are a folder of links that loads as any other.
Weights with the names of the first release are converted by diffusers, in the memory of the CPU.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdmd.extras import require
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import build_part, network_configuration, reporting

__all__ = ["is_single_file", "with_network_file"]

SUFFIX = ".safetensors"


def is_single_file(folder: str | Path) -> bool:
    """Returns whether a place is a network's file and not a pipeline's folder."""
    return str(folder).endswith(SUFFIX)


def with_network_file(layout: PipelineLayout, file: str | Path, config: str | Path) -> Path:
    """Returns a pipeline's folder with the network of a file.

    Args:
        layout: The pipeline's layout.
        file: The file of one network, with the names of diffusers or of the first release.
        config: The pipeline with the other parts and the network's configuration: a folder, or a
            name on the hub.

    Returns:
        A temporary folder of links, removed at the end of the process.

    Raises:
        ValueError: If the file is missing, there is no ``config``, or weights do not fit.
    """
    if not config:
        raise ValueError(
            f"{file} is one network; give its pipeline, whose text encoder, VAE and configuration "
            "are used, as config = FOLDER"
        )
    if not Path(file).is_file():
        raise ValueError(f"{file} is missing; name the file of a network, or a pipeline's folder")
    return _linked(layout.network, layout.slots, str(Path(file).resolve()), str(config))


@functools.cache
def _linked(network: str, slots: Sequence[str], file: str, config: str) -> Path:
    base, slot = _local(config, slots), slots[0]
    others = [other for other in slots if other != slot and (base / other).is_dir()]
    if others:
        raise ValueError(
            f"{config} has two networks, and {file} is one; save both as a pipeline's folder, in "
            f"{slot}/ and {others[0]}/"
        )
    folder = Path(tempfile.mkdtemp(prefix="pdmd-single-file-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for entry in base.iterdir():
        if entry.name != slot:
            _link(entry, folder / entry.name)
    place = folder / slot
    place.mkdir()
    shutil.copyfile(base / slot / "config.json", place / "config.json")
    outline = build_part(network, network_configuration(network, folder, slot), meta=True)
    if set(_names(file)) == set(outline.state_dict()):
        (place / f"diffusion_pytorch_model{SUFFIX}").symlink_to(file)
    else:
        _convert(network, file, base, place)
    return folder


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            _link(entry, target / entry.name)
    else:
        target.symlink_to(source.resolve())


def _names(file: str) -> list[str]:
    from safetensors import safe_open

    with reporting(file), safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _convert(network: str, file: str, base: Path, place: Path) -> None:
    """Writes the network of a file with the names of the first release, with its own types."""
    require("diffusers", "diffusers")
    import diffusers
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
    cls: Any = getattr(diffusers, network)
    with reporting(file):
        model = cls.from_single_file(
            file, config=str(base), subfolder=place.name, torch_dtype=dtype
        )
        model.save_pretrained(place)


def _local(config: str, slots: Sequence[str]) -> Path:
    if Path(config).is_dir():
        return Path(config)
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download

    weights = [f"{slot}/*.{end}" for slot in slots for end in ("safetensors", "bin")]
    with reporting(config):
        return Path(snapshot_download(config, ignore_patterns=weights))
