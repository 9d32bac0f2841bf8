"""Exact accounting of network evaluations, by role.

A forward of one sample through one network counts one; under guidance the teacher counts what it
really runs. A forward that records the gradient of the network's output is counted again as
``backward``, which costs about two forwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pdmd.denoisers import Denoiser
from pdmd.predictions import Prediction

__all__ = ["Account", "ROLES"]

ROLES = ("teacher", "fake", "generator", "frozen")


class Account:
    """Counts evaluations of denoisers by role, through their forward hooks."""

    def __init__(self) -> None:
        self.forward: dict[str, int] = {role: 0 for role in ROLES}
        self.backward: dict[str, int] = {role: 0 for role in ROLES}
        self._handles: list[RemovableHandle] = []

    def watch(self, role: str, denoiser: Denoiser) -> None:
        """Counts a denoiser's calls under a role until :meth:`close`."""

        def hook(module: Any, args: Any, output: Prediction) -> None:
            rows = len(output.value) * denoiser.evaluations
            self.forward[role] += rows
            if torch.is_grad_enabled() and output.value.requires_grad:
                self.backward[role] += rows

        self._handles.append(denoiser.register_forward_hook(hook))

    def close(self) -> None:
        """Stops counting."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def forward_equivalents(self) -> int:
        """Forwards of one sample, a backward counted as two."""
        return sum(self.forward.values()) + 2 * sum(self.backward.values())

    def state(self) -> dict[str, dict[str, int]]:
        """Returns the counts, for a checkpoint or a report."""
        return {"forward": dict(self.forward), "backward": dict(self.backward)}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Takes the counts that :meth:`state` returned."""
        self.forward.update(state["forward"])
        self.backward.update(state["backward"])
