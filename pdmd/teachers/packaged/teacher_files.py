"""Files of packaged teachers: a network's weights, with its configuration in the header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pdmd.files import save_tensors
from pdmd.teachers.base import Teacher

__all__ = ["read_teacher", "write_teacher"]

T = TypeVar("T", bound=Teacher)


def read_teacher(
    name: str, path: str | Path, build: Callable[[Mapping[str, str], dict[str, Tensor]], T]
) -> T:
    """Reads a teacher's file.

    Args:
        name: The teacher's name, which ``pdmd pretrain`` takes.
        path: The safetensors file.
        build: Maps the texts of the header and the weights, as float32, to the teacher.

    Returns:
        The teacher, for evaluation.

    Raises:
        ValueError: If the file is missing, damaged or not one of this teacher.
    """
    from safetensors import SafetensorError, safe_open

    remedy = f"train one with 'pdmd pretrain {name}'"
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; {remedy}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}
        teacher = build(header, state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a {name} teacher ({first}); {remedy}") from error
    return teacher.eval()


def write_teacher(network: nn.Module, config: Mapping[str, Any], path: str | Path) -> None:
    """Writes the weights of a network, rounded to float16, and a configuration.

    Args:
        network: The network.
        config: The configuration, which JSON can hold; the header's text ``config``.
        path: The safetensors file.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    save_tensors(state, path, metadata={"config": json.dumps(config)})
