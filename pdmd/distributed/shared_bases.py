"""Shared bases: frozen networks that several roles share as the base of their adapters.

The teacher's networks are sharded once. An adapter created over the plain teacher is moved to the
sharded network, and its factors are split in the tensor parallel style of their layer, with
partial gradients under context parallelism where the layer's are.

The unit of sharding is the module that states a parallel plan, usually a transformer, rather than
the denoiser around it, because several denoisers may call one transformer. Parameters outside of
any plan stay whole on every rank; they need no gradient.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any, cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import AdaptedDenoiser
from pdmd.distributed import plans_of, replicate
from pdmd.distributed.collectives import Ranks
from pdmd.distributed.parameter_views import scaled, view_parameters
from pdmd.distributed.plans import matching, plain_path
from pdmd.distributed.styles import Style

__all__ = ["SharedBases", "split_factors"]


class SharedBases:
    """Maps plain networks to the sharded ones that roles share, without keeping either alive."""

    def __init__(self) -> None:
        self._sharded: dict[int, tuple[weakref.ref[nn.Module], weakref.ref[nn.Module]]] = {}

    def add(self, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
        """Adds pairs of a plain module and its sharded counterpart."""
        known = self._sharded.items()
        self._sharded = {k: (a, b) for k, (a, b) in known if None not in (a(), b())}
        for plain, sharded in pairs:
            self._sharded[id(plain)] = (weakref.ref(plain), weakref.ref(sharded))

    def find(self, base: Denoiser) -> Denoiser | None:
        """Returns the sharded counterpart of a base, while it is in use.

        Returns:
            It, or ``None`` if its networks were not added or are gone.
        """
        known: dict[int, Any] = {}
        for module in base.modules():
            plain, sharded = (ref() for ref in self._sharded.get(id(module), (_gone, _gone)))
            if plain is module and sharded is not None:
                known[id(module)] = sharded
        if not known:
            return None
        found = copy.deepcopy(base, known)  # copies new wrappers only, around sharded modules
        return None if any(p.is_meta for p in found.parameters()) else found


def _gone() -> None:
    """A dead reference."""


def split_factors(
    part: AdaptedDenoiser, tensor: DeviceMesh | None, context: DeviceMesh | None
) -> None:
    """Splits an adapter's factors over tensor and context parallel ranks, in place.

    Args:
        part: The adapted denoiser, over a sharded base.
        tensor: The tensor parallel mesh, if there are several ranks.
        context: The context parallel mesh, if there are several ranks.

    Raises:
        ValueError: If the style of a layer does not support low-rank factors.
    """
    layers = {plain_path(name): module for name, module in part.base.named_modules()}
    styles, planned = _styles(part.base)
    for path, factors in part.factors().items():
        layer = layers[path]
        if tensor is not None and layer in styles:
            factors.collective = styles[layer].split_factors(
                layer, factors.lora_A, factors.lora_B, tensor
            )
        if context is not None and layer not in planned:  # its gradient is whole
            for factor in (factors.lora_A, factors.lora_B):
                factor.context_ranks = Ranks.of(context)  # type: ignore[assignment]
                view_parameters(factor, scaled)
    if tensor is not None:
        replicate(part, tensor)


def _styles(base: nn.Module) -> tuple[dict[nn.Module, Style], set[nn.Module]]:
    """Returns the style of every layer that has one, and all modules covered by plans."""
    styles: dict[nn.Module, Style] = {}
    planned: set[nn.Module] = set()
    for path, plan in plans_of(base).items():
        module = base.get_submodule(path)
        planned |= set(module.modules())
        for pattern, style in (plan.tensor.styles if plan.tensor else {}).items():
            for _, layer in matching(module, pattern):
                styles[layer] = cast("Style", style)
    return styles, planned
