"""Exact accounting of network evaluations, by role.

A forward of one sample through one network counts one; under guidance the teacher counts what it
really runs. A forward that records the gradient of the network's output is counted again as
``backward``, which costs about two forwards, and where the backward pass computes the network's
units again, as ``recomputed``, which costs about one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.distillation.adapters import adapting
from pdmd.distributed.activation_checkpointing import recomputes
from pdmd.typing import Times

__all__ = ["ROLES", "WAYS", "Account"]

ROLES = ("teacher", "fake", "generator", "frozen")
WAYS = ("forward", "backward", "recomputed")


class Account:
    """Counts evaluations of denoisers by role, through their forward hooks.

    Attributes:
        ranks: Ranks that share out a batch; each counts its own rows this many times.
        forward: Forwards of one sample by role.
        backward: Of these, those that record a gradient.
        recomputed: Of these, those whose units the backward pass computes again.
    """

    def __init__(self) -> None:
        self.ranks = 1
        self._pause = False
        self._times: dict[str, Times] = {}
        self.forward: dict[str, int] = {role: 0 for role in ROLES}
        self.backward: dict[str, int] = {role: 0 for role in ROLES}
        self.recomputed: dict[str, int] = {role: 0 for role in ROLES}
        self._handles: list[RemovableHandle] = []

    def watch(self, role: str, denoiser: Denoiser) -> None:
        """Counts a denoiser's calls under a role until :meth:`close`.

        Args:
            role: The role.
            denoiser: The denoiser, placed by its runtime.
        """
        again = recomputes(denoiser)

        def hook(module: Any, args: Any, output: Prediction) -> None:
            if self._pause or adapting():  # under an adapter the adapted one's own call counts
                return
            rows = len(output.value) * denoiser.evaluations * self.ranks
            self._times[role] = output.t
            self.forward[role] += rows
            if torch.is_grad_enabled() and output.value.requires_grad:
                self.backward[role] += rows
                self.recomputed[role] += rows * again

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
    def evaluated_at(times: Mapping[str, Times]) -> str:
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
        """Forwards of one sample: a backward counts as two, a recomputation as one."""
        return sum(self.equivalents.values())

    @property
    def equivalents(self) -> dict[str, int]:
        """The forward equivalents of each role."""
        return {
            role: self.forward[role] + 2 * self.backward[role] + self.recomputed[role]
            for role in ROLES
        }

    def scalars(self) -> dict[str, float]:
        """Returns the counts that are not zero, as ``evaluations/fake_backward``."""
        return {
            f"evaluations/{role}_{way}": float(number)
            for way in WAYS
            for role, number in getattr(self, way).items()
            if number
        }

    def state(self) -> dict[str, dict[str, int]]:
        """Returns the counts, for a checkpoint or a report."""
        return {way: dict(getattr(self, way)) for way in WAYS}

    def restore(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Takes the counts that :meth:`state` returned."""
        for way in WAYS:
            getattr(self, way).update(state[way])
