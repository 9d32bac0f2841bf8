"""Inputs of a run: the files and folders that its configuration names, and their digests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from pdmd.cli.config import DistillConfig
from pdmd.extras import require
from pdmd.files import is_hub_name, is_url
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.training.checkpoints.inputs import InputDigests, digest_input

__all__ = ["digest_images", "digest_inputs"]

SECTIONS = ("teacher", "network", "student", "objective", "lora")
PLACES = (
    *("folder", "config", "embeddings", "prompts", "path", "file", "weights", "images", "start"),
)
"""Keys whose values are places even without a slash."""
PIPELINES = ("folder", "config")
"""Keys whose values may be names of models of the hub."""
IMAGES = 512
"""First images of prompts that are digested, at most."""


def digest_inputs(config: DistillConfig) -> InputDigests:
    """Digests the files that a configuration names.

    These are paths that exist, URLs (of other protocols than http), models of the hub that are in
    the local cache, and the modules of plugins.

    Args:
        config: The configuration.

    Raises:
        ValueError: If a URL is not accepted.
        OSError: If a file cannot be read.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k in SECTIONS}
    places = [*_places(settings), *_modules("teacher.plugins", config.teacher.plugins)]
    found = {key: digest_input(place) for key, place in places}
    return {key: digests for key, digests in found.items() if digests}


def digest_images(prompts: Sequence[Any]) -> InputDigests:
    """Digests the local files of first images, which a run reads by their paths.

    Args:
        prompts: The prompts; of more than 512, as many at equal distances are looked at.

    Raises:
        OSError: If a file cannot be read.
    """
    count = min(IMAGES, len(prompts))
    rows = {i * (len(prompts) - 1) // max(1, count - 1) for i in range(count)}
    images = [prompts[i].image for i in sorted(rows) if isinstance(prompts[i], ImagePrompt)]
    paths = sorted({str(image) for image in images if isinstance(image, str | Path)})
    found = {path: digest_input(path) for path in paths if not is_url(path)}
    digests = {path: next(iter(files.values())) for path, files in found.items() if files}
    return {"the first images": digests} if digests else {}


def _places(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the keys of places, and the places."""
    name = path.rsplit(".", 1)[-1]
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _places(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(cast(list[Any], value)):
            yield from _places(item, f"{path}.{i}")
    elif isinstance(value, str) and value and "cache" not in name:
        if is_url(value):
            if not value.startswith(("http:", "https:", "data:")):
                yield path, value
        elif (name in PLACES or "/" in value) and Path(value).expanduser().exists():
            yield path, str(Path(value).expanduser())
        elif name in PIPELINES and is_hub_name(value):
            if (snapshot := _snapshot(value)) is not None:
                yield path, snapshot


def _modules(path: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the keys and files of modules that are found."""
    for i, name in enumerate(names):
        with contextlib.suppress(ImportError, ValueError):
            spec = find_spec(name)
            if spec is not None and spec.origin and Path(spec.origin).is_file():
                yield f"{path}.{i}", spec.origin


def _snapshot(name: str) -> str | None:
    """Returns the folder in the cache of a model of the hub."""
    require("diffusers", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None
