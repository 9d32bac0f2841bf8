"""Fingerprints of text encoders: do two pipelines have the same one?

A fingerprint is a digest of the class of a pipeline, which determines the prompt template, and of
its folders ``text_encoder*``, ``tokenizer*`` and ``connectors``: the configurations without
provenance, and the name, dtype, shape and up to 4 KiB of the values of every weight. It reads
megabytes of an encoder of gigabytes, and is independent of how the weights are sharded over files.
It misses changes of weights outside the sampled bytes. For pipelines that clean texts with
``ftfy`` where it is installed, its version is part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pdmd.documents import read_json
from pdmd.extras import require

__all__ = ["encoder_fingerprint", "tensor_fingerprint"]

PARTS = ("text_encoder*", "tokenizer*", "connectors")
IMAGE_PARTS = ("feature_extractor", "image_encoder", "image_processor", "processor", "vae")
SAMPLE = 4096
PROVENANCE = {"dtype", "torch_dtype", "transformers_version", "name_or_path"}
"""Keys of configurations that record how a folder was saved; so do keys with a leading
underscore."""

CLEANED = "Wan"
"""How pipelines' classes begin that clean texts with ``ftfy`` where it is installed."""


def encoder_fingerprint(folder: str | Path, *, images: bool = False) -> str | None:
    """Returns the fingerprint of the text encoders and tokenizers of a pipeline.

    Args:
        folder: Folder or hub name of the pipeline; hub files are read from the local cache only.
        images: Whether to include the image encoders: the VAE and, if there is one, CLIP.

    Returns:
        A SHA-256 in hexadecimal; ``None`` if the weights of an encoder are not available locally.

    Raises:
        ValueError: If a file is damaged.
    """
    local = _local(folder)
    if local is None:
        return None
    index_file = local / "model_index.json"
    index = read_json(index_file) if index_file.is_file() else {}
    pipeline = str(index.get("_class_name", ""))
    digest = hashlib.sha256(f"{pipeline}\n".encode())
    if pipeline.startswith(CLEANED) and (cleaner := _cleaner()):
        digest.update(f"{cleaner}\n".encode())
    weights: set[str] = set()
    patterns = (*PARTS, *IMAGE_PARTS) if images else PARTS
    for part in sorted({path for pattern in patterns for path in local.glob(pattern)}):
        lines: list[tuple[str, str]] = []
        for path in sorted(part.iterdir()):
            if path.suffix == ".safetensors":
                lines += _tensors(path)
            elif path.suffix == ".json" and not path.name.endswith(".index.json"):
                lines.append((path.name, _configuration(path)))
            elif path.suffix in (".txt", ".model", ".bin", ".jinja"):
                with path.open("rb") as file:
                    lines.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
            if path.suffix in (".safetensors", ".bin"):
                weights.add(part.name)
        for name, content in sorted(lines):
            digest.update(f"{part.name}/{name} {content}\n".encode())
    if images:
        networks = (part for part in IMAGE_PARTS if part in ("image_encoder", "vae"))
        if any((index.get(part) or [None])[0] and part not in weights for part in networks):
            return None
    return digest.hexdigest() if any(part.startswith("text") for part in weights) else None


def tensor_fingerprint(folder: str | Path, part: str, prefix: str) -> str | None:
    """Returns the fingerprint of some weights of a pipeline's part.

    Args:
        folder: Folder or hub name of the pipeline; hub files are read from the local cache only.
        part: The part.
        prefix: How the weights' names begin.

    Returns:
        A SHA-256 in hexadecimal; ``None`` if they are not available locally.

    Raises:
        ValueError: If a file is damaged.
    """
    local = _local(folder)
    if local is None:
        return None
    files = sorted((local / part).glob("*.safetensors"))
    lines = sorted(line for path in files for line in _tensors(path) if line[0].startswith(prefix))
    return hashlib.sha256(repr(lines).encode()).hexdigest() if lines else None


def _cleaner() -> str:
    """Returns the name and version of the package that cleans texts, if it is installed."""
    try:
        return f"ftfy {version('ftfy')}" if find_spec("ftfy") is not None else ""
    except (PackageNotFoundError, ValueError):
        return "ftfy"


def _local(folder: str | Path) -> Path | None:
    if Path(folder).is_dir():
        return Path(folder)
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(folder), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the name of every tensor, with its dtype, shape and a digest of its middle bytes."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                begin, end = tensor["data_offsets"]
                middle = max(begin, (begin + end - SAMPLE) // 2)
                file.seek(8 + size + middle)
                sha256 = hashlib.sha256(file.read(min(SAMPLE, end - begin)))
                yield name, f"{tensor['dtype']} {tensor['shape']} {sha256.hexdigest()}"
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        raise ValueError(f"{path} is damaged; download or save the folder again") from None


def _configuration(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged; download or save the folder again") from None
    if isinstance(content, dict):
        content = {
            key: value
            for key, value in content.items()
            if key not in PROVENANCE and not key.startswith("_")
        }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
