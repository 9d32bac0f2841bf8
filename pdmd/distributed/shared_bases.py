"""Shared bases: frozen networks that several roles run over, as ranks share them out.

The teacher's networks are spread once. An adapter made over the plain teacher goes over to the
network that its ranks hold, and its factors are spread beside it: by the tensor parallel style of
their layer, with partial gradients under context parallelism where the layer's are.

What is sharded together is what states a parallel plan, such as a transformer, and not the
denoiser around it: roles call the one by way of several of the others. Parameters outside of any
plan stay whole on every rank; they need no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import AdaptedDenoiser
from pdmd.distributed import plans_of, replicate
from pdmd.distributed.collectives import Ranks
from pdmd.distributed.parameter_views import scaled, view
from pdmd.distributed.plans import matching, plain_path
from pdmd.distributed.styles import Style

__all__ = ["SharedBases", "split_factors"]


class SharedBases:
    """The networks that were spread for several roles, by the plain ones that they stand for."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[nn.Module, nn.Module]] = {}

    def add(self, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        """Enters plain modules, each with what it has become on the ranks."""
        for plain, spread in pairs:
            self._held[id(plain)] = (plain, spread)  # held, so that the number stays its own

    def find(self, base: Denoiser) -> Denoiser | None:
        """Returns what stands for a base, or ``None`` if its networks were not spread."""
        known: dict[int, Any] = {}
        for module in base.modules():
            if id(module) in self._held:
                known[id(module)] = self._held[id(module)][1]
        if not known:
            return None
        return copy.deepcopy(base, known)  # of a wrapper that is new, the wrapper alone


def split_factors(
    part: AdaptedDenoiser, tensor: DeviceMesh | None, context: DeviceMesh | None
) -> None:
    """Spreads an adapter's factors over tensor and context parallel ranks, in place.

    Args:
        part: The adapted denoiser, over a base that is spread.
        tensor: The tensor parallel ranks, if there are several.
        context: The context parallel ranks, likewise.

    Raises:
        ValueError: If a layer is split in a style that says nothing of low-rank changes.
    """
    layers = {plain_path(name): module for name, module in part.base.named_modules()}
    styles, planned = _styles(part.base)
    for path, factors in part.factors().items():
        layer = layers[path]
        if tensor is not None and layer in styles:
            factors.between = styles[layer].beside(layer, factors.lora_A, factors.lora_B, tensor)
        if context is not None and layer not in planned:  # its gradient is whole
            for factor in (factors.lora_A, factors.lora_B):
                factor.context_ranks = Ranks.of(context)  # type: ignore[assignment]
                view(factor, scaled)
    if tensor is not None:
        replicate(part, tensor)


def _styles(base: nn.Module) -> tuple[dict[nn.Module, Style], set[nn.Module]]:
    """Returns the style of every layer that has one, and all modules within plans."""
    styles: dict[nn.Module, Style] = {}
    planned: set[nn.Module] = set()
    for path, plan in plans_of(base).items():
        module = base.get_submodule(path)
        planned |= set(module.modules())
        for pattern, style in (plan.tensor.styles if plan.tensor else {}).items():
            for _, layer in matching(module, pattern):
                styles[layer] = cast("Style", style)
    return styles, planned
