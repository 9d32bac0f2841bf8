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
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pdmd.distributed.weight_files import WeightFiles, WholeTensor, write_tensors
from pdmd.extras import require
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipeline_checks import UnusableWeights, check_tensors
from pdmd.teachers.families.pipelines import build_part, network_configuration, reporting

__all__ = ["is_single_file", "with_network_file"]

SUFFIX = ".safetensors"
PREFIX = "model.diffusion_model."
"""What the names of a network's weights begin with in the file of a whole model."""


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
    own = dict(outline.state_dict())
    files = WeightFiles(lambda: [Path(file)])
    with reporting(file):
        forms = files.forms()
    if forms.keys() == own.keys():  # checked where it is read
        (place / f"diffusion_pytorch_model{SUFFIX}").symlink_to(file)
        return folder
    named = {name.removeprefix(PREFIX): name for name in forms if name.startswith(PREFIX)}
    named = named or {name: name for name in forms}  # of a whole model, the network alone
    check_tensors(
        file,
        {given: forms[given] for given in named.values()},
        {given: own[name].dtype for name, given in named.items() if name in own},
    )
    if named.keys() == own.keys():
        write_tensors(
            place / f"diffusion_pytorch_model{SUFFIX}",
            [
                WholeTensor(
                    name, forms[given].shape, forms[given].dtype, partial(files.read, given)
                )
                for name, given in named.items()
            ],
        )
    elif 2 * len(named.keys() & own.keys()) > len(own):  # the names are those of diffusers
        for name in sorted(named.keys() ^ own.keys()):
            what = "lacks" if name in own else "has what the network has not,"
            raise UnusableWeights(
                f"{file} {what} {name}; give the file of a {network} as {config} configures it"
            )
    else:
        types = (forms[given].dtype for given in named.values())
        dtype = functools.reduce(torch.promote_types, types)
        values = sum(forms[given].numel() for given in named.values())
        if (left := values - _convert(network, file, base, place, dtype)) > 0:
            warnings.warn(
                f"{left:,} of the {values:,} values in {file} have no place in the {network} of "
                f"{config}, and are not used; check that it is a file of this network",
                stacklevel=4,
            )
    return folder


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            _link(entry, target / entry.name)
    else:
        target.symlink_to(source.resolve())


def _convert(network: str, file: str, base: Path, place: Path, dtype: torch.dtype) -> int:
    """Writes the network of a file with the names of the first release; returns its values."""
    require("diffusers", "diffusers")
    import diffusers

    cls: Any = getattr(diffusers, network)
    with reporting(file):
        try:
            model = cls.from_single_file(
                file, config=str(base), subfolder=place.name, torch_dtype=dtype
            )
        except NotImplementedError as error:  # of tensors that were not in the file
            raise UnusableWeights(
                f"{file} lacks weights of a {network}, or has other names for them than the first "
                "release and diffusers; give the whole network, or a pipeline's folder"
            ) from error
        model.save_pretrained(place)
    return sum(value.numel() for value in model.state_dict().values())


def _local(config: str, slots: Sequence[str]) -> Path:
    if Path(config).is_dir():
        return Path(config)
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download

    weights = [f"{slot}/*.{end}" for slot in slots for end in ("safetensors", "bin")]
    with reporting(config):
        return Path(snapshot_download(config, ignore_patterns=weights))
