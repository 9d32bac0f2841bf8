"""The command `pdmd pretrain`: pretrains a packaged network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdmd.cli.arguments import parse, take_name
from pdmd.files import local_path, save_tensors

__all__ = ["pretrain_command"]


@dataclass(kw_only=True)
class PretrainOptions:
    """Pretrains a packaged network on its images."""

    out: str = ""
    """The safetensors file to write, NAME.safetensors by default; a folder for glyphs."""
    updates: int = 0
    """Number of updates; 0 for that of the shipped weights."""
    seed: int | None = None
    """Seed; by default that of the shipped weights."""
    data: str = ""
    """Folder of Fashion-MNIST's files, for fashion and fashion-classifier."""


def pretrain_command(words: list[str]) -> int:
    """Pretrains a packaged network.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    known = f"{', '.join([*PACKAGED][:-1])} or {[*PACKAGED][-1]}"
    name, rest = take_name(words, f"what to pretrain: {known}")
    options = parse(PretrainOptions, rest, "pdmd pretrain NAME", flat=True)
    if name not in PACKAGED:
        raise ValueError(f"cannot pretrain {name!r}; choose {known}")
    if options.updates < 0:
        raise ValueError(f"--updates must not be negative, got {options.updates}")
    default, pretrain = PACKAGED[name]
    out = local_path(options.out or default, "a network")
    out.parent.mkdir(parents=True, exist_ok=True)  # for its errors, before any work
    more: dict[str, Any] = {"updates": options.updates or None, "seed": options.seed}
    if name in ON_DATA:
        more["folder"] = options.data
    elif options.data:
        raise ValueError(f"{name} is pretrained without --data, got {options.data!r}")
    pretrain(out, {key: value for key, value in more.items() if value is not None})
    size = sum(p.stat().st_size for p in (out, *out.rglob("*")) if p.is_file())
    print(f"wrote {out} ({size / 1e6:.2f} MB)")
    return 0


def _pretrain_digits(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.teachers.packaged.pretraining import pretrain_digits

    pretrain_digits(**chosen).save(out)


def _pretrain_digits_classifier(out: Path, chosen: dict[str, Any]) -> None:

    from pdmd.evaluation.classifier import train_digits_classifier

    save_tensors(train_digits_classifier(**chosen).layers.state_dict(), out)


def _pretrain_glyphs(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.teachers.packaged.pretraining_glyphs import pretrain_glyphs

    pretrain_glyphs(out, **chosen)


def _pretrain_glyph_classifier(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.evaluation.glyph_classifier import train_glyph_classifier

    train_glyph_classifier(**chosen).save(out)


def _pretrain_fashion(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.teachers.packaged.pretraining_fashion import pretrain_fashion

    pretrain_fashion(**chosen).save(out)


def _pretrain_fashion_classifier(out: Path, chosen: dict[str, Any]) -> None:
    from pdmd.evaluation.fashion_classifier import train_fashion_classifier

    train_fashion_classifier(**chosen).save(out)


PACKAGED: dict[str, tuple[str, Callable[[Path, dict[str, Any]], None]]] = {
    "digits": ("digits.safetensors", _pretrain_digits),
    "digits-classifier": ("digits-classifier.safetensors", _pretrain_digits_classifier),
    "fashion": ("fashion.safetensors", _pretrain_fashion),
    "fashion-classifier": ("fashion-classifier.safetensors", _pretrain_fashion_classifier),
    "glyphs": ("glyphs", _pretrain_glyphs),
    "glyph-classifier": ("glyph-classifier.safetensors", _pretrain_glyph_classifier),
}
"""Packaged networks: their default file, and the function that pretrains them."""
ON_DATA = ("fashion", "fashion-classifier")
