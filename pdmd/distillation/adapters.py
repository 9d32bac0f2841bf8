r"""Adapters: low-rank networks that share one frozen base.

.. math:: y = W x + b + \frac{\alpha}{r} B A x, \qquad A \in \mathbb R^{r \times n_{in}}, \quad
    B \in \mathbb R^{n_{out} \times r}

:math:`W` and :math:`b` are the base's and stay. An :class:`AdaptedDenoiser` owns the factors
alone: teacher, generator and fake score are then roles over one network in memory, with the
losses and gradients of separate copies, to the bit.

Which factors a linear layer adds is a matter of the call, not of the layer: a context variable
holds those of the adapted denoiser that is being called, and nothing while the base itself is.
Activation checkpointing computes a block again in the backward pass, long after the call, so it
must be told whose call it was: :func:`checkpoint_contexts` does that, and base networks that
checkpoint by themselves are refused.

References:
    Hu et al., LoRA, arXiv:2106.09685, Section 4.1.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, cast

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.distillation.low_rank import Factors, LowRank, layers_of
from pdmd.distributed.plans import plain_path
from pdmd.typing import Condition, Latents

__all__ = [
    "AdaptedDenoiser",
    "LowRank",
    "adapt",
    "adapted_parts",
    "adapting",
    "base_digest",
    "layers_of",
    "checkpoint_contexts",
]


class AdaptedDenoiser(Denoiser):
    r"""A denoiser's network with low-rank changes of its linear layers.

    Its parameters are the factors alone, in float32, and so is its state:
    ``PATH.lora_A.weight`` of shape :math:`(r, n_{in})` and ``PATH.lora_B.weight`` of shape
    :math:`(n_{out}, r)`, where ``PATH`` is the linear layer's within the base. :math:`B` starts
    at zero, so it starts at the base. Copies share the base.

    Args:
        base: The network, which is frozen: its parameters need no gradient and it is put in
            evaluation mode.
        spec: Rank, scale and place of the change.
        seed: Seed of :math:`A`, drawn uniformly within :math:`\pm 1 / \sqrt{n_{in}}`.

    Attributes:
        base: As given; not among its modules.
        spec: As given.

    Raises:
        ValueError: If a target matches no linear layer, or the base is adapted already.
    """

    base: Denoiser

    def __init__(self, base: Denoiser, spec: LowRank, *, seed: int) -> None:
        for module in base.modules():
            if isinstance(module, AdaptedDenoiser):
                raise ValueError(
                    "this network is adapted already, and adapters don't stack; adapt its "
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
        self._bound: dict[nn.Module, Factors] = {}
        generator = torch.Generator().manual_seed(seed)
        for path, layer in layers_of(base, spec.targets).items():
            _plant(self, path.split("."), Factors(layer, spec, generator))
        self.over(base)

    def over(self, base: Denoiser) -> AdaptedDenoiser:
        """Runs from now on over another copy of the base, such as one that ranks share out.

        Args:
            base: A denoiser with the same linear layers.

        Returns:
            This denoiser.

        Raises:
            ValueError: If it lacks a layer.
        """
        base.requires_grad_(False).eval()
        layers = {plain_path(name): module for name, module in base.named_modules()}
        bound: dict[nn.Module, Factors] = {}
        for path, factors in self.factors().items():
            if path not in layers:
                raise ValueError(f"{type(base).__name__} has no layer {path} to adapt")
            bound[layers[path]] = factors
        for layer in bound:
            if _add not in layer._forward_hooks.values():
                layer.register_forward_hook(_add, prepend=True, with_kwargs=True)
        object.__setattr__(self, "base", base)  # not a module of this one
        self._bound = bound
        self._switches = [m for m in base.modules() if hasattr(m, "gradient_checkpointing")]
        return self

    def factors(self) -> dict[str, Factors]:
        """Returns the factors by the path of their linear layer within the base."""
        return {
            plain_path(name): module
            for name, module in self.named_modules()
            if isinstance(module, Factors)
        }

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the base with the factors added.

        Raises:
            ValueError: If the base checkpoints activations by itself.
        """
        for module in self._switches:
            if module.gradient_checkpointing:
                raise ValueError(
                    f"{type(module).__name__} checkpoints its own activations, which would be "
                    "computed again without the adapter; call its disable_gradient_checkpointing()"
                    " and let the runtime do it: OneProcess(activation_checkpointing=True)"
                )
        with _Active(self._bound):
            return self.base(x_t, t, condition).value

    def trainable_copy(self) -> AdaptedDenoiser:
        """Returns a copy of the factors that trains, over the same base."""
        return copy.deepcopy(self).requires_grad_(True).train()

    @torch.no_grad()
    def merged(self) -> Denoiser:
        r"""Returns a plain trainable copy of the base, with the change added to its weights.

        .. math:: W' = W + \frac{\alpha}{r} B A

        The sum is taken in float32 and then held as the base's weights are.
        """
        merged = self.base.trainable_copy()
        layers = {plain_path(name): module for name, module in merged.named_modules()}
        for path, factors in self.factors().items():
            weight = cast("nn.Linear", layers[path]).weight
            weight.copy_(weight.float() + factors.change().to(weight.device))
        return merged

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedDenoiser:
        """Moves the factors, and the base after them: it is asked where they are."""
        super()._apply(fn, recurse)
        device = self.device
        if device.type != "meta" and self.base.device not in (device, torch.device("meta")):
            self.base.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptedDenoiser:
        base = memo.get(id(self.base), self.base)
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for name, value in vars(self).items():
            if name not in ("base", "_bound", "_switches"):
                object.__setattr__(made, name, copy.deepcopy(value, memo))
        return made.over(base)


def adapt(denoiser: Denoiser, spec: LowRank, *, seed: int) -> Denoiser:
    """Returns a network with an adapter; of a routed one, with an adapter for each of its parts.

    Args:
        denoiser: The network, or several behind a router, frozen from here on.
        spec: Rank, scale and place of the change.
        seed: Seed of the factors; parts have seeds of their own.

    Raises:
        ValueError: As :class:`AdaptedDenoiser`.
    """
    if not isinstance(denoiser, RoutedDenoiser):
        return AdaptedDenoiser(denoiser, spec, seed=seed)
    parts = [cast("Denoiser", part) for part in denoiser.denoisers]
    adapted = [adapt(part, spec, seed=seed + i) for i, part in enumerate(parts)]
    return RoutedDenoiser(adapted, denoiser.router)


def adapted_parts(network: nn.Module) -> list[AdaptedDenoiser]:
    """Returns the adapted denoisers within a network."""
    return [module for module in network.modules() if isinstance(module, AdaptedDenoiser)]


def base_digest(network: nn.Module) -> str:
    """Digests the weights that a network's adapters were trained over.

    Of every tensor some of its numbers count, rounded to bfloat16: the same weights in float32
    and in bfloat16 have one digest.

    Args:
        network: A network with adapted denoisers in it.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in adapted_parts(network):
        for name, value in sorted(part.base.state_dict().items()):
            step = max(1, value.numel() // 256)
            some = value.detach().flatten()[::step].to("cpu", torch.bfloat16).view(torch.int16)
            digest.update(f"{name} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def adapting() -> bool:
    """Says whether an adapted denoiser is being called, and so its base for it."""
    return _active.get() is not None


def checkpoint_contexts(
    inner: Callable[[], tuple[Any, Any]] | None = None,
) -> tuple[Any, Any]:
    """Returns the contexts of a checkpoint: the forward pass's, and that of computing it again.

    The ``context_fn`` of :func:`torch.utils.checkpoint.checkpoint` for every block of a network
    that may be called under adapters: it is computed again under the adapter of its forward.

    Args:
        inner: Another ``context_fn``, whose contexts are entered too.
    """
    before, again = inner() if inner is not None else (contextlib.nullcontext(),) * 2
    return before, _Both(_Active(_active.get()), again)


_active: ContextVar[Mapping[nn.Module, Factors] | None] = ContextVar("adapter", default=None)


class _Active:
    """Adds factors to their layers; may be entered again, by any thread."""

    def __init__(self, factors: Mapping[nn.Module, Factors] | None) -> None:
        self._factors = factors
        self._tokens: list[Token[Any]] = []

    def __enter__(self) -> None:
        self._tokens.append(_active.set(self._factors))

    def __exit__(self, *error: object) -> None:
        _active.reset(self._tokens.pop())


class _Both:
    """Two contexts, one in the other."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


def _add(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    active = _active.get()
    factors = None if active is None else active.get(layer)
    if factors is None:
        return None
    added = factors.added(args[0] if args else kwargs["input"])
    return output + added.to(output.dtype)


def _plant(root: nn.Module, path: list[str], factors: Factors) -> None:
    """Hangs factors where their layer is; past ``add_module``, which some names would offend."""
    for part in path[:-1]:
        root = root._modules.setdefault(part, nn.Module())  # pyright: ignore[reportAssignmentType]
    root._modules[path[-1]] = factors
