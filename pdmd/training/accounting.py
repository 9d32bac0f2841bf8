"""Exact accounting of network evaluations, by role.

A forward of one sample through one network counts one; under guidance the teacher counts what it
really runs. A forward that records the gradient of the network's output is counted again as
``backward``, which costs about two forwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pdmd.adapters import adapting
from pdmd.denoisers import Denoiser
from pdmd.predictions import Prediction
from pdmd.typing import Times

__all__ = ["Account", "ROLES"]

ROLES = ("teacher", "fake", "generator", "frozen")


class Account:
    """Counts evaluations of denoisers by role, through their forward hooks.

    Attributes:
        ranks: Ranks that share out a batch; each counts its own rows this many times.
    """

    def __init__(self) -> None:
        self.ranks = 1
        self._pause = False
        self._times: dict[str, Times] = {}
        self.forward: dict[str, int] = {role: 0 for role in ROLES}
        self.backward: dict[str, int] = {role: 0 for role in ROLES}
        self._handles: list[RemovableHandle] = []

    def watch(self, role: str, denoiser: Denoiser) -> None:
        """Counts a denoiser's calls under a role until :meth:`close`."""

        def hook(module: Any, args: Any, output: Prediction) -> None:
            if self._pause or adapting():  # under an adapter the adapted one's own call counts
                return
            rows = len(output.value) * denoiser.evaluations * self.ranks
            self._times[role] = output.t
            self.forward[role] += rows
            if torch.is_grad_enabled() and output.value.requires_grad:
                self.backward[role] += rows

        self._handles.append(denoiser.register_forward_hook(hook))

    @contextlib.contextmanager
    def paused(self, pause: bool = True) -> Iterator[None]:
        """Does not count within a block, if ``pause``."""
        before = self._pause
        self._pause = before or pause
        try:
            yield
        finally:
            self._pause = before

    @property
    def times(self) -> dict[str, Times]:
        """The times at which each role was last asked."""
        return dict(self._times)

    @staticmethod
    def asked(times: Mapping[str, Times]) -> str:
        """Says of times by role at which each was asked, as ``; fake at t = 0.2 to 0.9``."""
        words = []
        for role, t in times.items():
            low, high = (float(v) for v in torch.as_tensor(t).aminmax())
            words.append(f"; {role} at t = {low:.3g}" + (f" to {high:.3g}" if high > low else ""))
        return "".join(words)

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
