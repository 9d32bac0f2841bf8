"""Accounting: exact number of network evaluations (NFE), by role.

A forward pass of one sample through one network counts 1, so a guided teacher counts 2. Of several
networks behind a router, the one that is evaluated counts, and a padding row counts too. One that
records a gradient counts as ``backward`` too, at a cost of about two forwards, and, under
activation checkpointing, as ``recomputed``, at a cost of about one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.adapters import in_adapted_call
from pdmd.distributed.activation_checkpointing import recomputes
from pdmd.typing import Times

__all__ = ["ROLES", "WAYS", "Account"]

ROLES = ("teacher", "fake", "generator", "frozen")
WAYS = ("forward", "backward", "recomputed")


class Account:
    """Counts evaluations of denoisers by role, through their forward hooks.

    Attributes:
        ranks: Ranks between which a batch is split; counts of this rank are multiplied by it.
        forward: Forward passes of one sample, by role.
        backward: Those that recorded a gradient.
        recomputed: Those that the backward pass recomputed.
    """

    def __init__(self) -> None:
        self.ranks = 1
        self._pause = False
        self._times: dict[str, Times] = {}
        self.forward: dict[str, int] = {role: 0 for role in ROLES}
        self.backward: dict[str, int] = {role: 0 for role in ROLES}
        self.recomputed: dict[str, int] = {role: 0 for role in ROLES}
        self._handles: list[RemovableHandle] = []

    def count(self, role: str, denoiser: Denoiser) -> None:
        """Counts a denoiser's evaluations under a role until :meth:`close`.

        Args:
            role: One of ``ROLES``.
            denoiser: The denoiser, placed by its runtime.
        """
        recomputed = recomputes(denoiser)

        def hook(module: Any, args: Any, output: Prediction) -> None:
            if self._pause or in_adapted_call():  # the adapted denoiser counts the call
                return
            rows = len(output.value) * module.evaluations * self.ranks
            self._times[role] = output.t
            self.forward[role] += rows
            if torch.is_grad_enabled() and output.value.requires_grad:
                self.backward[role] += rows
                self.recomputed[role] += rows * recomputed

        for network in _networks(denoiser):
            self._handles.append(network.register_forward_hook(hook))

    @contextlib.contextmanager
    def paused(self, pause: bool = True) -> Iterator[None]:
        """Pauses counting within a block, if ``pause``."""
        before = self._pause
        self._pause = before or pause
        try:
            yield
        finally:
            self._pause = before

    @property
    def times(self) -> dict[str, Times]:
        """The times at which each role was last evaluated."""
        return dict(self._times)

    @staticmethod
    def evaluated_at(times: Mapping[str, Times]) -> str:
        """Formats the range of times of each role, as ``; fake at t = 0.2 to 0.9``."""
        parts = []
        for role, t in times.items():
            low, high = (float(v) for v in torch.as_tensor(t).aminmax())
            parts.append(f"; {role} at t = {low:.3g}" + (f" to {high:.3g}" if high > low else ""))
        return "".join(parts)

    def close(self) -> None:
        """Stops counting."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def forward_equivalents(self) -> int:
        """Total NFE, with a backward as two forwards and a recomputation as one."""
        return sum(self.equivalents.values())

    @property
    def equivalents(self) -> dict[str, int]:
        """NFE of each role, with a backward as two forwards and a recomputation as one."""
        return {
            role: self.forward[role] + 2 * self.backward[role] + self.recomputed[role]
            for role in ROLES
        }

    def scalars(self) -> dict[str, float]:
        """Returns the nonzero counts, under names like ``evaluations/fake_backward``."""
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
        """Restores the counts that :meth:`state` returned."""
        for way in WAYS:
            getattr(self, way).update(state[way])


def _networks(denoiser: Denoiser) -> list[Denoiser]:
    """Returns the networks behind the routers of a denoiser, or the denoiser itself."""
    routed = next((m for m in denoiser.modules() if isinstance(m, RoutedDenoiser)), None)
    if routed is None:
        return [denoiser]
    return [network for part in routed.parts for network in _networks(part)]
