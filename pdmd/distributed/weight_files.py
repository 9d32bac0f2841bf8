"""Weight files: safetensors read by slices, and written from shards, tensor by tensor.

A file is a header of names, dtypes, shapes and offsets, and the bytes of one tensor after the
other. So a rank reads its slices alone, and a sharded network is written with one of its tensors
in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distributed.tensor_parallel import permutations
from pdmd.distributed.weight_sources import (
    FileWeight,
    Region,
    WeightSource,
    attach_sources,
    gathered,
    is_outline,
    sources_of,
    whole,
)

__all__ = ["WeightFiles", "WholeTensor", "load_weights", "whole_tensors", "write_tensors"]

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of dtypes in safetensors files, by growing alignment."""


class WeightFiles:
    """Safetensors files that are opened when one of their tensors is first read.

    Args:
        find: Returns the paths of the files; called once, for example to download them.
        check: Called once with the form of every tensor, a tensor on the meta device by name.
    """

    def __init__(
        self,
        find: Callable[[], Iterable[Path]],
        check: Callable[[Mapping[str, Tensor]], None] = lambda forms: None,
    ) -> None:
        self._find, self._check = find, check
        self._slices: dict[str, tuple[Any, str]] | None = None

    def open(self) -> dict[str, tuple[Any, str]]:
        """Opens the files, and returns the file of each tensor, and its name in it."""
        if self._slices is None:
            from safetensors import safe_open

            found: dict[str, tuple[Any, str]] = {}
            for path in self._find():
                opened = safe_open(str(path), framework="pt")
                found |= {name: (opened, name) for name in opened.keys()}
            self._check({name: _form(file.get_slice(key)) for name, (file, key) in found.items()})
            self._slices = found
        return self._slices

    def forms(self) -> dict[str, Tensor]:
        """Returns the form of every tensor, as a tensor on the meta device."""
        return {name: _form(file.get_slice(key)) for name, (file, key) in self.open().items()}

    def read(self, name: str, region: Region | None = None) -> Tensor:
        """Reads a tensor, or a part of it alone.

        Args:
            name: The tensor's name.
            region: The part; all of it by default.

        Raises:
            ValueError: If the files have no tensor of this name.
        """
        found = self.open()
        if name not in found:
            raise ValueError(f"the files have no tensor {name}; they may be of another network")
        file, key = found[name]
        return file.get_slice(key)[region] if region else file.get_tensor(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightFiles:
        return self


def load_weights(network: nn.Module, files: WeightFiles) -> None:
    """Loads a network's state from files, tensor by tensor.

    Args:
        network: The network. An outline only gets the places of its weights in the files, which
            are read when it is placed.
        files: The files.

    Raises:
        ValueError: If names or shapes are not the network's.
    """
    own, forms = network.state_dict(), files.forms()
    for name in sorted(own.keys() ^ forms.keys()):
        where = "missing" if name in own else "unexpected"
        raise ValueError(f"{where} key {name}")
    for name, value in own.items():
        if value.shape != forms[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(forms[name].shape)} in the file, and "
                f"{tuple(value.shape)} in the {type(network).__name__}"
            )
    if not is_outline(network):
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(files.read(name))
        return
    for path, module in network.named_modules():
        sources: dict[str, WeightSource] = {}
        for key in (*module._parameters, *module._buffers):
            name = f"{path}.{key}".strip(".")
            if name not in forms:
                continue
            sources[key] = FileWeight(partial(files.read, name), forms[name].dtype)
            parameter = module._parameters.get(key)
            if parameter is not None:
                parameter.data = parameter.data.to(forms[name].dtype)
        attach_sources(module, sources)


@dataclass(frozen=True)
class WholeTensor:
    """A tensor of a network in the plain order, which may have to be gathered or read.

    Attributes:
        name: Its name in the plain network.
        shape: Its whole shape.
        dtype: Its dtype.
        read: Returns it, on its device. On several ranks, all read together.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def whole_tensors(network: nn.Module) -> list[WholeTensor]:
    """Returns the tensors of a network's state, none of them in memory for it.

    Args:
        network: A plain network, a sharded one, or an outline.
    """
    permuted = permutations(network)
    sources = {
        f"{path}.{name}".strip("."): source
        for path, module in network.named_modules()
        for name, source in sources_of(module).items()
    }

    def reader(name: str, value: Tensor) -> Callable[[], Tensor]:
        def read() -> Tensor:
            if value.is_meta:
                return sources[name].read(whole(value.shape)).to(value.dtype)
            full = gathered(value)
            if name not in permuted:
                return full
            dim, order = permuted[name]
            return full.index_select(dim, order.to(full.device))

        return read

    return [
        WholeTensor(name, tuple(value.shape), value.dtype, reader(name, value.detach()))
        for name, value in network.state_dict().items()
    ]


def write_tensors(
    path: Path | None,
    tensors: Iterable[WholeTensor],
    *,
    metadata: Mapping[str, str] | None = None,
    tell: Callable[[int], object] = lambda written: None,
) -> None:
    """Writes a safetensors file with one tensor in memory at a time.

    Args:
        path: The file; ``None`` on ranks that only take part in gathering.
        tensors: The tensors.
        metadata: The file's metadata.
        tell: Called with the bytes of each written tensor.

    Raises:
        ValueError: If a tensor's type is not one that is written, such as float8, whose values
            mean nothing without their scales.
        OSError: If the file cannot be written; all tensors have been read then.
    """
    tensors = list(tensors)
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(
                f"{tensor.name} is in {str(tensor.dtype).removeprefix('torch.')}, which is not "
                f"written; convert it to one of {known}"
            )
    ordered = sorted(tensors, key=lambda t: (-list(DTYPES).index(t.dtype), t.name))
    failed: OSError | None = None
    file = None
    try:
        try:
            if path is not None:
                file = path.open("wb")
                file.write(_header(ordered, metadata))
        except OSError as error:
            failed = error
        for tensor in ordered:
            value = tensor.read()
            if file is None or failed is not None:
                continue
            try:
                data = value.detach().to("cpu", tensor.dtype).contiguous().reshape(-1)
                data.view(torch.uint8).numpy().tofile(file)
            except OSError as error:
                failed = error
            tell(value.numel() * tensor.dtype.itemsize)
    finally:
        if file is not None:
            try:
                file.close()
            except OSError as error:
                failed = failed or error
    if failed is not None:
        raise failed


def _header(tensors: Iterable[WholeTensor], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        size = tensor.dtype.itemsize
        for n in tensor.shape:
            size *= n
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + size],
        }
        start += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _form(part: Any) -> Tensor:
    return torch.empty(part.get_shape(), dtype=_dtype(part.get_dtype()), device="meta")


def _dtype(name: str) -> torch.dtype:
    known = {value: key for key, value in DTYPES.items()}
    return known.get(name) or {"F8_E5M2": torch.float8_e5m2}.get(name, torch.float8_e4m3fn)
