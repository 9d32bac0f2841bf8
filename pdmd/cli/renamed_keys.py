"""Keys of a configuration that had another name before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["RENAMED", "check_renamed", "check_renamed_options"]

RENAMED: Mapping[str, str] = {
    "network.width": "network.arguments.width",
    "network.depth": "network.arguments.depth",
    "objective.draws": "objective.timestep_samples",
    "train.anchored": "train.fake_updates_per_rollout",
    "train.clip": "train.max_grad_norm",
    "train.entries": "train.phase_inputs",
    "train.fake_lag": "train.fake_error_tolerance",
    "train.init": "train.initializer",
    "train.patience": "train.max_consecutive_skips",
    "train.ring_batches": "train.buffer_batches",
    "train.ring_folder": "train.buffer_folder",
    "train.ring_together": "train.buffer_chunk",
    "train.ring_uses": "train.buffer_uses",
    "train.share": "train.update_shares",
    "parallel.recompute": "parallel.activation_checkpointing",
    "parallel.silence": "parallel.heartbeat_timeout",
}
"""Former key paths and the present ones."""


def check_renamed(path: str) -> None:
    """Raises an error for a key path that was renamed.

    Raises:
        ValueError: With the new name.
    """
    if path in RENAMED:
        raise ValueError(f"{path!r} was renamed; use {RENAMED[path]!r}")


def check_renamed_options(words: Sequence[str]) -> None:
    """Raises an error for an option of the command line that was renamed.

    Raises:
        ValueError: With the new name.
    """
    for word in words:
        if word.startswith("--"):
            check_renamed(word[2:].split("=")[0].replace("-", "_"))
