"""Parts of diffusers' pipelines: networks with weights or without, encoders, configurations.

A pipeline is named by a folder that its ``save_pretrained`` wrote, or by its name on the hub.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdmd.distributed.weight_files import WeightFiles
from pdmd.distributed.weight_sources import FileWeight, Region, attach_sources
from pdmd.documents import read_json
from pdmd.extras import require
from pdmd.files import say
from pdmd.teachers.families.pipeline_checks import (
    UnusableWeights,
    check_index,
    check_tensor,
    check_values,
    check_weights,
    variant_of,
)

__all__ = [
    "build_part",
    "configuration",
    "dtype_argument",
    "dtype_of",
    "load_backbone",
    "load_backbone_part",
    "hub_refusal",
    "network_configuration",
    "reading",
    "reporting",
]

FORMER_NAMES = {"DiTTransformer2DModel": "Transformer2DModel"}
"""Older names of classes that folders still state."""


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """Returns a floating-point type by name.

    Raises:
        ValueError: If it is not one.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    return found


def dtype_argument(dtype: str | torch.dtype) -> dict[str, torch.dtype]:
    """Returns the type as an argument of diffusers' ``from_pretrained``, by its name there.

    The argument of another name would be ignored.
    """
    require("diffusers", "diffusers")
    from diffusers.utils import deprecation_utils

    renamed = hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if renamed else "torch_dtype": dtype_of(dtype)}


def build_part(
    name: str,
    config: Mapping[str, Any],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    meta: bool = False,
    seed: int = 0,
) -> Any:
    """Builds a model of diffusers with random weights.

    Args:
        name: Its class.
        config: Its arguments.
        dtype: Type of its weights; parts that the family keeps in float32 stay so.
        device: Where they live.
        meta: Whether to build it on the meta device, without memory for its weights.
        seed: Seed of the weights.
    """
    require("diffusers", "diffusers")
    import diffusers

    cls = getattr(diffusers, name)
    place = torch.device("meta" if meta else device)
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype_of(dtype))  # weights need never exist in float32
        try:
            with place:
                model = cls.from_config(dict(config))
        finally:
            torch.set_default_dtype(default)
        for path, parameter in model.named_parameters():
            if path.endswith("pad_token"):  # memory that diffusers does not initialize
                torch.nn.init.normal_(parameter, std=0.02)
    kept = set(cls._keep_in_fp32_modules or ())
    for path, parameter in model.named_parameters():
        if kept & set(path.split(".")):
            parameter.data = parameter.data.float()
    return model.eval()


def load_backbone(
    name: str,
    folder: str | Path,
    subfolder: str,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
    meta: bool = False,
) -> Any:
    """Loads a network of a pipeline, tensor by tensor, or outlines it.

    Tables that a network computes when it is built, such as those of positions, stay on the meta
    device and must be recomputed.

    Args:
        name: Its class.
        folder: The pipeline's folder or hub name.
        subfolder: The model's place in it.
        dtype: Type of its weights; parts that the family keeps in float32 stay so.
        device: Where they live.
        meta: Whether to build an outline of it instead (:mod:`pdmd.distributed.weight_sources`):
            on the meta device, with its weights' places in the files, which are opened, and
            downloaded, when the first is read.

    Raises:
        ValueError: If it is missing or of another class.
    """
    config = network_configuration(name, folder, subfolder)
    check_index(folder, name)
    check_values(folder, config)
    with reporting(folder, subfolder):
        model = build_part(name, config, dtype=dtype, meta=True)
    if subfolder and not meta:
        check_weights(folder, (subfolder,))
    types = {path: tensor.dtype for path, tensor in model.state_dict().items()}
    files = _weight_files(model, folder, subfolder)
    if meta:
        _attach_files(model, files, folder, subfolder)
        return model
    with reporting(folder, subfolder):
        state = {
            path: files.read(path).to(device=device, dtype=kept) for path, kept in types.items()
        }
        model.load_state_dict(state, assign=True)
    return model


def load_backbone_part(
    name: str,
    folder: str | Path,
    subfolder: str,
    path: str,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device: str | torch.device = "cpu",
) -> Any:
    """Loads one module of a pipeline's network, and nothing else of it.

    Args:
        name: The network's class.
        folder: The pipeline's folder or hub name.
        subfolder: The network's place in it.
        path: The module's path in the network.
        dtype: Type of its weights; parts that the family keeps in float32 stay so.
        device: Where they live.

    Raises:
        ValueError: If it is missing or of another class.
    """
    outline = load_backbone(name, folder, subfolder, dtype=dtype, meta=True)
    with reporting(folder, subfolder):
        part = outline.get_submodule(path)
        files = _weight_files(outline, folder, subfolder)
        state = {
            own: files.read(f"{path}.{own}").to(device=device, dtype=tensor.dtype)
            for own, tensor in part.state_dict().items()
        }
        part.load_state_dict(state, assign=True)
    return part


def network_configuration(name: str, folder: str | Path, subfolder: str) -> dict[str, Any]:
    """Reads the configuration of a pipeline's network.

    Args:
        name: The class expected.
        folder: The pipeline's folder or hub name.
        subfolder: The network's place in it.

    Raises:
        ValueError: If it is missing or of another class.
    """
    config = configuration(name, folder, subfolder)
    found = config.get("_class_name", name)
    if found not in (name, FORMER_NAMES.get(name)):
        raise ValueError(
            f"{folder}/{subfolder} is a {found}, and this teacher's is a {name}; name the teacher "
            "of its family"
        )
    return config


def configuration(name: str, folder: str | Path, subfolder: str | None = None) -> dict[str, Any]:
    """Reads the configuration of a pipeline, or of one of its parts.

    Args:
        name: The class.
        folder: The pipeline's folder or hub name.
        subfolder: The part's place in it; ``None`` for the pipeline.

    Raises:
        ValueError: If it is missing.
    """
    require("diffusers", "diffusers")
    import diffusers

    with reporting(folder, subfolder):
        return dict(getattr(diffusers, name).load_config(str(folder), subfolder=subfolder))


def _weight_files(model: Any, folder: str | Path, subfolder: str) -> WeightFiles:
    """Returns the files of a network's weights, which are checked when they are opened."""
    place = f"{folder}/{subfolder}" if subfolder else str(folder)
    ignored = type(model)._keys_to_ignore_on_load_unexpected or ()
    outline = dict(model.state_dict())

    def check(forms: Mapping[str, Tensor]) -> None:
        kept = {
            path: form
            for path, form in forms.items()
            if not any(re.search(pattern, path) for pattern in ignored)
        }
        for path, form in kept.items():
            own = outline.get(path)
            check_tensor(place, path, form, None if own is None else own.dtype)
        for path in sorted(outline.keys() ^ kept.keys()):
            where = "missing" if path in outline else "unexpected"
            raise ValueError(f"{where} key {path}")
        for path, form in kept.items():
            if form.shape != outline[path].shape:
                shapes = f"{tuple(form.shape)} in the file, {tuple(outline[path].shape)} in"
                raise ValueError(f"{path} has the shape {shapes} the {type(model).__name__}")

    return WeightFiles(partial(_paths, folder, subfolder), check)


def _attach_files(model: Any, files: WeightFiles, folder: str | Path, subfolder: str) -> None:
    def read(name: str, region: Region) -> Tensor:
        with reporting(folder, subfolder):
            return files.read(name, region)

    stored = model.state_dict()
    for path, module in model.named_modules():
        names = {
            own: f"{path}.{own}".strip(".") for own in (*module._parameters, *module._buffers)
        }
        attach_sources(
            module,
            {
                own: FileWeight(partial(read, name), stored[name].dtype)
                for own, name in names.items()
                if name in stored
            },
        )


def _paths(folder: str | Path, subfolder: str) -> list[Path]:
    """Returns the safetensors files of a pipeline's network, downloaded from the hub if needed."""
    place = Path(folder)
    if not place.is_dir():
        require("diffusers", "huggingface_hub")
        from huggingface_hub import snapshot_download

        name = f"{subfolder}/" * bool(subfolder) + "diffusion_pytorch_model"
        patterns = [
            f"{name}.safetensors*",
            f"{name}-*.safetensors",
        ]  # no other formats or variants
        place = Path(snapshot_download(str(folder), allow_patterns=patterns))
    stem = place / subfolder / "diffusion_pytorch_model.safetensors"
    shards = stem.with_name(f"{stem.name}.index.json")
    names = {stem.name}
    if variant := variant_of(place, subfolder, "diffusion_pytorch_model"):
        found = [path.name for path in stem.parent.glob(f"{stem.stem}*.safetensors")]
        names = {name for name in found if variant in name}
    elif shards.is_file():
        names = set(read_json(shards)["weight_map"].values())
    return [stem.with_name(file) for file in sorted(names)]


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Turns what unexpected values of configurations lead to into a ``ValueError`` of one line."""
    try:
        yield
    except (LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise ValueError(
            f"a configuration in {folder} is damaged ({say(error)}); download or save the folder "
            "again"
        ) from error


@contextlib.contextmanager
def reporting(folder: str | Path, subfolder: str | None = None) -> Iterator[None]:
    """Turns errors of loading a missing or damaged folder into a ``ValueError`` of one line."""
    try:
        yield
    except UnusableWeights:
        raise
    except Exception as error:  # what a file states reaches libraries, which raise any class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        part = f"{folder}/{subfolder}" if subfolder else str(folder)
        if refusal := hub_refusal(error, str(folder)):
            raise ValueError(f"cannot load {part}: {refusal}") from error
        raise ValueError(
            f"cannot load {part} ({first}); give a folder that a diffusers pipeline's "
            "save_pretrained wrote, or its name on the hub"
        ) from error


def hub_refusal(error: BaseException, name: str) -> str:
    """Returns why the hub gives no access to a repository, and what to do about it.

    Libraries put another error in the place of the hub's, which names the cause.

    Args:
        error: What loading raised.
        name: The repository.

    Returns:
        A sentence; empty for other errors.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    token = "log in by 'hf auth login' or set HF_TOKEN"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return (
                f"{name} is gated; accept its terms on https://huggingface.co/{name}, and {token}"
            )
        if isinstance(cause, RepositoryNotFoundError):
            what = "is neither a folder nor a repository that you may read"
            return f"{name} {what}; correct the name, or {token}"
        cause = cause.__cause__ or cause.__context__
    return ""
