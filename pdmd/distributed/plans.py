r"""Parallel plans: how a network is split over ranks, stated once, next to the network.

A :class:`ParallelPlan` is data. It names the repeated blocks of a network, how the weights of its
layers are split (:class:`TensorPlan`) and how its tokens are split (:class:`ContextPlan`). Names
are paths of submodules as in ``named_modules()``, in which ``*`` matches one component.

A module states its plan by a method ``parallel_plan()``. The plan of a class that cannot be
changed is registered under the name of the class in :data:`parallel_plans`::

    @parallel_plans.register("TheirTransformer")
    def plan(network):
        return ParallelPlan(units=("blocks.*",), ...)

:func:`plans_of` searches a network from the outside in, so a denoiser that wraps a transformer, or
a routed one that wraps two, needs no plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from pdmd.registry import Registry

if TYPE_CHECKING:
    from pdmd.distributed.styles import Style

__all__ = [
    "ContextPlan",
    "Input",
    "Output",
    "ParallelPlan",
    "TensorPlan",
    "matching",
    "parallel_plans",
    "plain_path",
    "plans_of",
    "units_of",
]

_DIFFUSERS = "pdmd.distributed.diffusers_plans:"

parallel_plans: Registry[Callable[[nn.Module], ParallelPlan]] = Registry(
    "parallel plan",
    {
        "ChromaTransformer2DModel": _DIFFUSERS + "double_and_single",
        "CogVideoXTransformer3DModel": _DIFFUSERS + "blocks",
        "CosmosTransformer3DModel": _DIFFUSERS + "blocks",
        "Flux2Transformer2DModel": _DIFFUSERS + "double_and_single",
        "FluxTransformer2DModel": _DIFFUSERS + "flux",
        "HunyuanVideo15Transformer3DModel": _DIFFUSERS + "blocks",
        "Kandinsky5Transformer3DModel": _DIFFUSERS + "text_and_visual",
        "LTX2VideoTransformer3DModel": _DIFFUSERS + "blocks",
        "LTXVideoTransformer3DModel": _DIFFUSERS + "blocks",
        "QwenImageTransformer2DModel": _DIFFUSERS + "qwen_image",
        "SanaTransformer2DModel": _DIFFUSERS + "blocks",
        "SD3Transformer2DModel": _DIFFUSERS + "stable_diffusion_3",
        "WanTransformer3DModel": _DIFFUSERS + "wan",
        "ZImageTransformer2DModel": _DIFFUSERS + "z_image",
    },
)
"""Plans of classes without a method ``parallel_plan``: functions of the network, by class name."""


@dataclass(frozen=True)
class TensorPlan:
    """How the weights of a network are split.

    Attributes:
        styles: The style of each split layer, by path. Every layer that sees a rank's own features
            must be named; all others are replicated.
        divided: Names of integer attributes to divide by the number of ranks (counts of heads, or
            of features of all heads), by path of their module.
    """

    styles: Mapping[str, Style]
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """An argument of a module that carries tokens.

    Attributes:
        module: The module's path; ``""`` is the network itself.
        argument: The argument's name in the module's ``forward``.
        dim: The dimension of the tokens.
        ndim: The number of dimensions if the argument carries tokens; any by default.
        stream: The stream that the tokens are from, such as ``"image"``. A stream with a name may
            have any number of tokens; one without must divide by the ranks.
    """

    module: str
    argument: str
    dim: int
    ndim: int | None = None
    stream: str | None = None


@dataclass(frozen=True)
class Output:
    """An output of a module that carries tokens.

    Attributes:
        module: The module's path.
        dim: The dimension of the tokens.
        index: Index of the output, if the module returns several.
        stream: The stream that the tokens are from, as of an :class:`Input`.
    """

    module: str
    dim: int
    index: int | None = None
    stream: str | None = None


@dataclass(frozen=True)
class ContextPlan:
    """How the tokens of a network are split.

    Attributes:
        split: Where each stream of tokens is split. All streams of one attention must be split.
        gather: Where the tokens are gathered: at the last layer with parameters, or before an
            operation that mixes tokens.
        attention: The name of the attribute that counts heads, by path of each self-attention
            module. These exchange heads for tokens around ``scaled_dot_product_attention``.
            Attention to tokens that are not split, for example to text, is not named.
        streams: The named streams that a self-attention module sees, by its path; all of them by
            default.
    """

    split: tuple[Input | Output, ...]
    gather: tuple[Output, ...]
    attention: Mapping[str, str]
    streams: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ParallelPlan:
    """How a network is split over ranks.

    Attributes:
        units: Paths of the repeated blocks, each of which is sharded, checkpointed and compiled
            separately.
        tensor: How weights are split; ``None`` if unsupported.
        context: How tokens are split; ``None`` if unsupported.
    """

    units: tuple[str, ...]
    tensor: TensorPlan | None = None
    context: ContextPlan | None = None


def plans_of(network: nn.Module) -> dict[str, ParallelPlan]:
    """Finds the plans in a network.

    The plan of a module covers all modules in it.

    Args:
        network: Any module.

    Returns:
        The plans by path of the module that states them.

    Raises:
        TypeError: If a stated plan is not a :class:`ParallelPlan`.
    """
    plans: dict[str, ParallelPlan] = {}

    def visit(module: nn.Module, path: str) -> None:
        plan = _stated(module)
        if plan is not None:
            plans[path] = plan
            return
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(network, "")
    return plans


def units_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the repeated blocks of a network with their paths, in the order of its modules.

    Raises:
        ValueError: If a plan names blocks that do not exist.
    """
    units = []
    for path, plan in plans_of(network).items():
        module = network.get_submodule(path)
        order = {unit: i for i, unit in enumerate(module.modules())}
        found = dict(pair for pattern in plan.units for pair in matching(module, pattern))
        for name, unit in sorted(found.items(), key=lambda pair: order[pair[1]]):
            units.append((f"{path}.{name}".strip("."), unit))
    return units


def matching(module: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Returns the submodules whose path matches a pattern, with their paths.

    For a block wrapped for activation checkpointing, the wrapper is returned.

    Args:
        module: The root of the paths.
        pattern: A path, in which ``*`` matches one component.

    Raises:
        ValueError: If there are none: a plan that no longer matches its network would silently
            give wrong gradients.
    """
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    found: dict[str, nn.Module] = {}
    for name, submodule in module.named_modules():
        if expression.fullmatch(plain_path(name)):
            found.setdefault(plain_path(name), submodule)
    if not found:
        raise ValueError(
            f"the parallel plan of {type(module).__name__} names {pattern!r}, which the network "
            "does not have; state a plan for this configuration"
        )
    return list(found.items())


def plain_path(path: str) -> str:
    """Returns a path, or a parameter's name, without the components that wrappers added."""
    parts = path.split(".")
    return ".".join(p for p in parts if p not in ("_checkpoint_wrapped_module", "_orig_mod"))


def _stated(module: nn.Module) -> ParallelPlan | None:
    method = getattr(module, "parallel_plan", None)
    if callable(method):
        plan = method()
    else:
        # Includes base classes: a subclass of a registered class is split in the same way.
        names = [c.__name__ for c in type(module).__mro__ if c.__name__ in parallel_plans]
        if not names:
            return None
        plan = parallel_plans[names[0]](module)
    if not isinstance(plan, ParallelPlan):
        raise TypeError(
            f"{type(module).__name__}.parallel_plan() returned a {type(plan).__name__}; return a "
            "ParallelPlan"
        )
    return plan
