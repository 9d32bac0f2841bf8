r"""Low-rank changes of linear layers: the factors, and their rank, scale and target layers.

.. math:: y = W x + b + \frac{\alpha}{r} B A x, \qquad A \in \mathbb R^{r \times n_{in}}, \quad
    B \in \mathbb R^{n_{out} \times r}

References:
    Hu et al., LoRA, arXiv:2106.09685, Section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdmd.arguments import checked
from pdmd.distributed.plans import plain_path, units_of
from pdmd.distributed.weight_sources import UniformDraws, ZeroWeight, attach_sources, whole

__all__ = ["Factor", "Factors", "LowRank", "is_linear", "layers_of"]

HIGHEST_RANK, HIGHEST_ALPHA = 65_536, 1e9


@checked
@dataclass(frozen=True, kw_only=True)
class LowRank:
    r"""Rank, scale and target layers of an adapter.

    Attributes:
        rank: The rank :math:`r`.
        alpha: The scale :math:`\alpha`; :math:`B A x` is multiplied by :math:`\alpha / r`.
        targets: ``fnmatch`` patterns of the paths of linear layers. A pattern matches a whole path
            (``transformer.blocks.*.to_q``) or its last components (``to_q``, ``attn.to_out.0``).
            By default all linear layers in the network's repeated blocks, or all linear layers if
            it states no blocks.

    Raises:
        ValueError: If a value is out of its range.
    """

    rank: int = 64
    alpha: float = 8.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            not isinstance(self.rank, int)
            or isinstance(self.rank, bool)
            or not 1 <= self.rank <= HIGHEST_RANK
        ):
            raise ValueError(
                f"the rank of an adapter must be an integer from 1 to {HIGHEST_RANK:,}, got "
                f"{_short(self.rank)}"
            )
        if (
            not isinstance(self.alpha, int | float)
            or isinstance(self.alpha, bool)
            or not 0 < self.alpha <= HIGHEST_ALPHA
        ):
            raise ValueError(
                f"the alpha of an adapter must be in (0, {HIGHEST_ALPHA:g}], got "
                f"{_short(self.alpha)}"
            )
        if isinstance(self.targets, str) or not all(
            isinstance(target, str) and target for target in self.targets
        ):
            raise ValueError(
                "the targets of an adapter must be a tuple of patterns of paths, for example "
                f"('to_q', 'to_v'), got {_short(self.targets)}"
            )
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self) -> float:
        r"""The factor :math:`\alpha / r`."""
        return self.alpha / self.rank


class Factors(nn.Module):
    r"""The low-rank factors of one linear layer.

    Args:
        layer: The layer; the factors are created on its device.
        spec: Rank and scale.
        draws: The random values of :math:`A`.

    Attributes:
        lora_A: Module with :math:`A` as its ``weight``.
        lora_B: Module with :math:`B` as its ``weight``.
        scale: The factor :math:`\alpha / r`.
        collective: Applied to :math:`A x` under tensor parallelism.
    """

    def __init__(self, layer: nn.Linear, spec: LowRank, draws: UniformDraws) -> None:
        super().__init__()
        device, shape = layer.weight.device, (spec.rank, layer.in_features)
        values = draws.add(shape, layer.in_features**-0.5)
        b = torch.zeros(layer.out_features, spec.rank, device=device)
        if device.type == "meta":
            self.lora_A, self.lora_B = Factor(torch.empty(shape, device=device)), Factor(b)
            attach_sources(self.lora_A, {"weight": values})
            attach_sources(self.lora_B, {"weight": ZeroWeight()})
        else:
            self.lora_A, self.lora_B = Factor(values.read(whole(shape)).to(device)), Factor(b)
        self.scale = spec.scale
        self.collective: Callable[[Tensor], Tensor] | None = None

    def output_change(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\frac{\alpha}{r} B A x`."""
        a, b = self.lora_A.weight, self.lora_B.weight
        if x.dtype != a.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(a.dtype)
        hidden = functional.linear(x, a)
        if self.collective is not None:
            hidden = self.collective(hidden)
        return self.scale * functional.linear(hidden, b)

    def weight_change(self) -> Tensor:
        r"""Returns :math:`\frac{\alpha}{r} B A`, in float32."""
        return self.scale * (self.lora_B.weight.float() @ self.lora_A.weight.float())


class Factor(nn.Module):
    """One factor, with its parameter named ``weight`` as in other libraries.

    Args:
        weight: The initial values.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def layers_of(base: nn.Module, targets: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """Returns the target layers of an adapter, by path.

    Args:
        base: The network.
        targets: Patterns, as in :class:`LowRank`.

    Raises:
        ValueError: If a pattern matches no linear layer, or there are none.
    """
    linear = {
        plain_path(path): cast("nn.Linear", module)
        for path, module in base.named_modules()
        if is_linear(module)
    }
    if not targets:
        units = tuple(f"{plain_path(path)}." for path, _ in units_of(base))
        found = {p: m for p, m in linear.items() if p.startswith(units)} if units else linear
        if not found:
            raise ValueError(
                f"{type(base).__name__} has no linear layers to adapt; train full weights, or "
                "adapt another network"
            )
        return found
    selected: set[str] = set()
    for target in targets:
        matched = {p for p in linear if _matches(p, target)}
        if not matched:
            names = sorted({_short_path(p) for p in linear})
            raise ValueError(
                f"the adapter's target {target!r} matches no linear layer of the "
                f"{type(base).__name__}; there are {', '.join(names[:24]) or 'none'}"
            )
        selected |= matched
    return {p: m for p, m in linear.items() if p in selected}


def is_linear(module: nn.Module) -> bool:
    """Returns whether a module is a linear layer that is called, so that hooks can change it."""
    # torch's multi-head attention uses the weight of its output layer without calling the layer.
    return isinstance(module, nn.Linear) and not isinstance(
        module, nn.modules.linear.NonDynamicallyQuantizableLinear
    )


def _matches(path: str, target: str) -> bool:
    return fnmatchcase(path, target) or fnmatchcase(path, f"*.{target}")


def _short_path(path: str) -> str:
    parts = path.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
