r"""Adapters: low-rank networks that share one frozen base.

.. math:: y = W x + b + \frac{\alpha}{r} B A x, \qquad A \in \mathbb R^{r \times n_{in}}, \quad
    B \in \mathbb R^{n_{out} \times r}

:math:`W` and :math:`b` belong to the base and are frozen; the parameters of an
:class:`AdaptedDenoiser` are the factors :math:`A` and :math:`B` only. Teacher, generator and fake
score then share one network in memory, with bitwise the losses and gradients of separate copies.

The factors that a linear layer adds depend on the caller: a context variable contains those of the
adapted denoiser that is being evaluated, and ``None`` while the base itself is. Activation
checkpointing recomputes a block in the backward pass, after the call has ended, so it must restore
that variable: :func:`checkpoint_contexts` does this. Base networks with their own checkpointing
would not, and raise.

References:
    Hu et al., LoRA, arXiv:2106.09685, Section 4.1.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from typing import Any, cast

import torch
from torch import Tensor, nn

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.low_rank import Factors, LowRank, is_linear, layers_of
from pdmd.distributed.plans import plain_path
from pdmd.distributed.weight_files import whole_tensors
from pdmd.distributed.weight_sources import UniformDraws
from pdmd.typing import Condition, Latents

__all__ = [
    "AdaptedDenoiser",
    "LowRank",
    "activate_factors",
    "adapt",
    "adapted_parts",
    "in_adapted_call",
    "base_digest",
    "layers_of",
    "checkpoint_contexts",
    "prepare_layers",
]


@checked
class AdaptedDenoiser(Denoiser):
    r"""A denoiser with low-rank changes of its linear layers.

    Its parameters, and its state dict, are the factors only, in float32: ``PATH.lora_A.weight`` of
    shape :math:`(r, n_{in})` and ``PATH.lora_B.weight`` of shape :math:`(n_{out}, r)`, where
    ``PATH`` is that of the linear layer in the base. :math:`B` is initialized to zero, so the
    initial output is that of the base. Copies share the base.

    Args:
        base: The base network. It is frozen and set to evaluation mode.
        spec: Rank, scale and target layers.
        seed: Seed of :math:`A`, sampled uniformly in :math:`\pm 1 / \sqrt{n_{in}}`.

    Attributes:
        base: The base network; not a submodule.
        spec: Rank, scale and target layers.

    Raises:
        ValueError: If a target matches no linear layer, or the base is adapted already.
    """

    base: Denoiser

    def __init__(self, base: Denoiser, spec: LowRank, *, seed: int) -> None:
        for module in base.modules():
            if isinstance(module, AdaptedDenoiser):
                raise ValueError(
                    "this network is adapted already, and adapters cannot be stacked; adapt its "
                    "merged() copy, or copy it by trainable_copy()"
                )
        super().__init__(
            schedule=base.schedule,
            kind=base.kind,
            latent_shape=base.latent_shape,
            time_range=base.time_range,
        )
        self.evaluations = base.evaluations
        self.spec = spec
        self._factors_of: dict[nn.Module, Factors] = {}
        draws = UniformDraws(seed)
        for path, layer in layers_of(base, spec.targets).items():
            _insert(self, path.split("."), Factors(layer, spec, draws))
        self.use_base(base)

    def use_base(self, base: Denoiser) -> AdaptedDenoiser:
        """Replaces the base by another copy of it, for example a sharded one.

        Args:
            base: A denoiser with the same linear layers.

        Returns:
            This denoiser.

        Raises:
            ValueError: If an adapted layer does not exist in it.
        """
        base.requires_grad_(False).eval()
        layers = {plain_path(name): module for name, module in base.named_modules()}
        factors_of: dict[nn.Module, Factors] = {}
        for path, factors in self.factors().items():
            if path not in layers:
                raise ValueError(f"{type(base).__name__} has no layer {path} to adapt")
            factors_of[layers[path]] = factors
        for layer in factors_of:
            _hook(layer)
        object.__setattr__(self, "base", base)  # not a submodule
        self._factors_of = factors_of
        self._checkpointing = [m for m in base.modules() if hasattr(m, "gradient_checkpointing")]
        return self

    def factors(self) -> dict[str, Factors]:
        """Returns the factors by path of their linear layer in the base."""
        return {
            plain_path(name): module
            for name, module in self.named_modules()
            if isinstance(module, Factors)
        }

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the base with the low-rank terms added.

        Raises:
            ValueError: If the base has its own activation checkpointing enabled.
        """
        for module in self._checkpointing:
            if module.gradient_checkpointing:
                raise ValueError(
                    f"{type(module).__name__} has its own activation checkpointing, which would "
                    "recompute without the adapter; call its disable_gradient_checkpointing() "
                    "and use OneProcess(activation_checkpointing=True)"
                )
        with _Active(self._factors_of):
            return self.base(x_t, t, condition).value

    @property
    def switches(self) -> tuple[float, ...]:
        """The times at which the base switches between networks."""
        return self.base.switches

    def trainable_copy(self) -> AdaptedDenoiser:
        """Returns a copy with trainable factors, over the same base."""
        return copy.deepcopy(self).requires_grad_(True).train()

    @torch.no_grad()
    def merged(self) -> Denoiser:
        r"""Returns a plain trainable copy of the base, with the factors merged into its weights.

        .. math:: W' = W + \frac{\alpha}{r} B A

        The sum is computed in float32 and cast to the dtype of the base.
        """
        merged = self.base.trainable_copy()
        layers = {plain_path(name): module for name, module in merged.named_modules()}
        for path, factors in self.factors().items():
            weight = cast("nn.Linear", layers[path]).weight
            weight.copy_(weight.float() + factors.weight_change().to(weight.device))
        return merged

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedDenoiser:
        """Moves the base along with the factors, because they are evaluated together."""
        super()._apply(fn, recurse)
        device = self.device
        if device.type != "meta" and self.base.device not in (device, torch.device("meta")):
            self.base.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedDenoiser:
        base = memo.get(id(self.base), self.base)
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            if name not in ("base", "_factors_of", "_checkpointing"):
                object.__setattr__(copied, name, copy.deepcopy(value, memo))
        return copied.use_base(base)


@checked
def adapt(denoiser: Denoiser, spec: LowRank, *, seed: int) -> Denoiser:
    """Adds an adapter to a network, or to each network behind a router.

    Args:
        denoiser: The network, or several behind a router. It is frozen.
        spec: Rank, scale and target layers.
        seed: Seed of the factors; the i-th network behind a router uses ``seed + i``.

    Raises:
        ValueError: As for :class:`AdaptedDenoiser`.
    """
    if not isinstance(denoiser, RoutedDenoiser):
        return AdaptedDenoiser(denoiser, spec, seed=seed)
    parts = [cast("Denoiser", part) for part in denoiser.denoisers]
    adapted = [adapt(part, spec, seed=seed + i) for i, part in enumerate(parts)]
    return RoutedDenoiser(adapted, denoiser.router)


def adapted_parts(network: nn.Module) -> list[AdaptedDenoiser]:
    """Returns the adapted denoisers in a network."""
    return [module for module in network.modules() if isinstance(module, AdaptedDenoiser)]


@checked
def base_digest(network: nn.Module) -> str:
    """Returns a digest of the base weights under a network's adapters.

    It covers a subset of the values of every tensor, rounded to bfloat16, so the same weights in
    float32 and in bfloat16 have the same digest.

    Args:
        network: A network that contains adapted denoisers.

    Returns:
        The SHA-256, in hexadecimal.
    """
    digest = hashlib.sha256()
    for part in adapted_parts(network):
        for tensor in sorted(whole_tensors(part.base), key=lambda tensor: tensor.name):
            value = tensor.read().flatten()  # gathered on all ranks, if it is sharded
            step = max(1, value.numel() // 256)
            subset = value[::step].to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(f"{tensor.name} {tensor.shape}".encode() + subset.numpy().tobytes())
    return digest.hexdigest()


def in_adapted_call() -> bool:
    """Returns whether an adapted denoiser is being evaluated."""
    return _active.get() is not None


def checkpoint_contexts(
    inner: Callable[[], tuple[Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """Returns the contexts of a checkpoint's forward pass and of its recomputation.

    The ``context_fn`` of :func:`torch.utils.checkpoint.checkpoint` for the blocks of a base: it
    recomputes a block with the factors of its forward pass.

    Args:
        inner: Another ``context_fn``, whose contexts are entered too.
    """
    forward, recompute = inner() if inner is not None else (contextlib.nullcontext(),) * 2
    return forward, _Both(_Active(_active.get()), recompute)


_active: ContextVar[Mapping[nn.Module, Factors] | None] = ContextVar("adapter", default=None)


class _Active:
    """Activates the factors of a call; reentrant, from any thread."""

    def __init__(self, factors: Mapping[nn.Module, Factors] | None) -> None:
        self._factors = factors
        self._tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        self._tokens.append(_active.set(self._factors))

    def __exit__(self, *error: object) -> None:
        _active.reset(self._tokens.pop())


class _Both:
    """Two nested contexts."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


def prepare_layers(unit: nn.Module) -> list[nn.Module]:
    """Returns the linear layers of a unit that is to be compiled, ready for adapters.

    A graph only contains the hooks that are there when it is traced, so every layer gets its hook
    here, with or without an adapter. See :func:`activate_factors`.
    """
    layers = [module for module in unit.modules() if is_linear(module)]
    for layer in layers:
        _hook(layer)
    activate_factors(layers)
    return layers


def activate_factors(layers: Iterable[nn.Module]) -> None:
    """Sets the factors that layers add in their next calls: those of the current call's adapter.

    Without this, a layer finds them when it is called.
    """
    active = _active.get() or {}
    for layer in layers:
        object.__setattr__(layer, "active_factors", active.get(layer))  # not a submodule


def _hook(layer: nn.Module) -> None:
    if _add_low_rank not in layer._forward_hooks.values():
        layer.register_forward_hook(_add_low_rank, prepend=True, with_kwargs=True)


def _add_low_rank(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    if hasattr(layer, "active_factors"):
        factors = cast("Factors | None", layer.active_factors)
    else:
        active = _active.get()
        factors = None if active is None else active.get(layer)
    if factors is None:
        return None
    change = factors.output_change(args[0] if args else kwargs["input"])
    return output + change.to(output.dtype)


def _insert(root: nn.Module, path: list[str], factors: Factors) -> None:
    """Inserts factors at the path of their layer; ``add_module`` would reject some names."""
    for part in path[:-1]:
        root = root._modules.setdefault(part, nn.Module())  # pyright: ignore[reportAssignmentType]
    root._modules[path[-1]] = factors
