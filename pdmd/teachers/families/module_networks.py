"""Networks of published code: built by the name of their class in an importable module.

SiT, EDM and EDM2 are no pipelines of diffusers. Their authors' code is imported from where it is
on the path, such as ``models:SiT_XL_2`` in a clone of the repository, and called as published.
Weights are safetensors files: published checkpoints are pickles, which can run code and are not
read. They are converted once, in the authors' environment, by
``safetensors.torch.save_file(network.state_dict(), path)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distributed.weight_files import WeightFiles
from pdmd.distributed.weight_sources import FileWeight, attach_sources
from pdmd.teachers.base import Teacher
from pdmd.teachers.families.pipelines import dtype_of
from pdmd.teachers.mixture import encode_labels
from pdmd.typing import Condition, labels_of

__all__ = ["LabelTeacher", "build_network"]


def build_network(
    module: str,
    arguments: Mapping[str, Any],
    *,
    weights: str = "",
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    meta: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Builds a network of an importable module, with weights of a file or random ones.

    Parameters that do not train, such as tables of positions, become buffers of the same name.

    Args:
        module: The module and what builds the network in it, ``package.module:Class``.
        arguments: Of the call that builds it.
        weights: A safetensors file; random weights without one.
        dtype: Type of its weights.
        device: Where they live.
        meta: Whether to leave the weights on the meta device, with their places in the file.
        seed: Seed of random weights.

    Raises:
        ValueError: If the module or the class is missing, the arguments do not fit, or the file's
            tensors are not the network's.
    """
    dtype = dtype_of(dtype)
    place, _, name = module.partition(":")
    try:
        build = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot import {module!r} ({error}); name a module on the path and a class in it, "
            "as in models:SiT_XL_2"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with torch.device("meta" if meta and weights else "cpu"):
                network = build(**arguments)
        except TypeError as error:
            raise ValueError(f"{module} does not take {dict(arguments)}: {error}") from error
    _keep_constants(network)
    network = network.to(dtype)
    if weights:
        _attach(network, weights) if meta else _load(network, weights)
    return network.to("meta" if meta else device).eval()


def _keep_constants(network: nn.Module) -> None:
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.detach())


def _files(network: nn.Module, path: str) -> WeightFiles:
    if not (path.endswith(".safetensors") and Path(path).is_file()):
        raise ValueError(
            f"weights = {path} is no safetensors file; convert the published checkpoint by "
            "safetensors.torch.save_file(network.state_dict(), path)"
        )
    files, own = WeightFiles(lambda: [Path(path)]), network.state_dict()
    forms = files.forms()
    for name in sorted(own.keys() ^ forms.keys()):
        where = "lacks" if name in own else "has besides the network's"
        raise ValueError(f"{path} {where} {name}; is it of a {type(network).__name__}?")
    for name, form in forms.items():
        if form.shape != own[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(form.shape)} in {path}, {tuple(own[name].shape)} "
                f"in the {type(network).__name__}"
            )
    return files


def _load(network: nn.Module, path: str) -> None:
    files = _files(network, path)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(files.read(name))


def _attach(network: nn.Module, path: str) -> None:
    files, stored = _files(network, path), network.state_dict()
    for at, part in network.named_modules():
        names = {own: f"{at}.{own}".strip(".") for own in (*part._parameters, *part._buffers)}
        attach_sources(
            part,
            {
                own: FileWeight(partial(files.read, name), stored[name].dtype)
                for own, name in names.items()
                if name in stored
            },
        )


class LabelTeacher(Teacher):
    """A network of published code conditioned on classes.

    The network stays in evaluation mode, also in copies that train: in training mode it drops
    labels and features at random, or normalises its weights in place.

    Args:
        backbone: The network.
        classes: The number of classes; 0 for none.
        arguments: As :class:`~pdmd.diffusion.denoisers.Denoiser` takes.

    Attributes:
        backbone: As given.
        classes: As given.
    """

    def __init__(self, backbone: nn.Module, *, classes: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.backbone, self.classes = backbone, classes

    def train(self, mode: bool = True) -> LabelTeacher:
        """Changes the mode of all but the network."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def prompts(self) -> list[int | None]:
        """Every class."""
        return list(range(self.classes)) or [None]

    def encode(self, prompts: Any) -> Condition:
        """Turns classes into a condition."""
        return encode_labels(prompts, self.classes)

    def labels(self, condition: Condition, x_t: Tensor) -> Tensor:
        """Returns the labels of a batch, with shape :math:`(B)`; the null class without any."""
        if condition is None:
            return torch.full((len(x_t),), self.classes, device=x_t.device)
        return labels_of(condition).to(x_t.device)
