"""Text encoders of a student's pipeline: are prompts encoded as they were in its training?

The pipeline that a student names may have been replaced, or another one given in its place. Its
network is checked where experts are adapters of it; its text encoder is only seen in pictures that
do not follow their prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pdmd.files import is_hub_name
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint

__all__ = ["check_encoder", "with_encoder"]


def with_encoder(source: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns a student's source with the fingerprint of its pipeline's text encoder.

    Args:
        source: As :class:`~pdmd.distillation.students.Student` takes it; one that has a
            fingerprint keeps it, and one without such a pipeline on this disk has none.
    """
    if source is None or "encoder" in source:
        return None if source is None else dict(source)
    found = _fingerprint(source.get("arguments") or {})
    return dict(source) if found is None else {**source, "encoder": found}


def check_encoder(source: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Warns of a text encoder that a student was not trained with.

    Args:
        source: The student's source, as :func:`with_encoder` returns it.
        arguments: The arguments of its teacher now.
    """
    expected = source.get("encoder")
    found = None if expected is None else _fingerprint(arguments)
    if found is not None and found != expected:
        warnings.warn(
            f"the text encoder or tokenizer of {_pipeline(arguments)} is not the one with which "
            "this student was trained, or cleans prompts with another ftfy, so that samples may "
            "not follow their prompts; give the pipeline of its training",
            stacklevel=3,
        )


def _pipeline(arguments: Mapping[str, Any]) -> str:
    """Returns the folder or hub name of the pipeline among a teacher's arguments."""
    return str(arguments.get("config") or arguments.get("folder") or "")


def _fingerprint(arguments: Mapping[str, Any]) -> str | None:
    place = _pipeline(arguments)
    of_hub = is_hub_name(place) and find_spec("huggingface_hub") is not None
    if not (place and (Path(place).is_dir() or of_hub)):
        return None
    try:
        return encoder_fingerprint(place)
    except (OSError, ValueError):  # damaged, of which loading it tells
        return None
