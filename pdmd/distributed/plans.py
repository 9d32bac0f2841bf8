r"""Plans: how a network is split over ranks, stated once, next to the network.

A :class:`ParallelPlan` is data. It names a network's repeated blocks, how the weights of its
layers are split (:class:`TensorPlan`) and how its tokens are (:class:`ContextPlan`); every name is
a path of submodules as ``named_modules()`` gives it, in which ``*`` stands for one part of a path.

A module states its own plan by a method ``parallel_plan()``. A class that cannot be changed is
looked up by its name in :data:`parallel_plans`::

    @parallel_plans.register("TheirTransformer")
    def plan(network):
        return ParallelPlan(units=("blocks.*",), ...)

:func:`plans_of` finds the plans in a network from the outside in, so that a denoiser that wraps a
transformer, or a routed one that wraps two, has no more to say.
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
        "FluxTransformer2DModel": _DIFFUSERS + "flux",
        "LTXVideoTransformer3DModel": _DIFFUSERS + "ltx",
        "QwenImageTransformer2DModel": _DIFFUSERS + "qwen_image",
        "SD3Transformer2DModel": _DIFFUSERS + "stable_diffusion_3",
        "WanTransformer3DModel": _DIFFUSERS + "wan",
        "ZImageTransformer2DModel": _DIFFUSERS + "z_image",
    },
)
"""Plans of classes that state none themselves: a class's name to a function of the network."""


@dataclass(frozen=True)
class TensorPlan:
    """How the weights of a network are split.

    Attributes:
        styles: Paths of layers, and the style in which each is split. Every layer that sees a
            rank's own features must be named; all others are computed alike on every rank.
        divided: Paths of modules, and names of their integer attributes that count what is
            split (heads, or features of all heads), which are divided by the number of ranks.
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
        ndim: The argument carries tokens only if it has this many dimensions; any by default.
    """

    module: str
    argument: str
    dim: int
    ndim: int | None = None


@dataclass(frozen=True)
class Output:
    """An output of a module that carries tokens.

    Attributes:
        module: The module's path.
        dim: The dimension of the tokens.
        index: Which output, if the module returns several.
    """

    module: str
    dim: int
    index: int | None = None


@dataclass(frozen=True)
class ContextPlan:
    """How the tokens of a network are split.

    Attributes:
        split: Where each stream of tokens is split. All that enters attention together is split.
        gather: Where the tokens are joined: at the last layer that has parameters, or before an
            operation that mixes tokens.
        attention: Paths of the modules in which tokens attend to each other, and the name of
            their attribute that counts heads. They exchange heads for tokens around
            ``scaled_dot_product_attention``. Attention to tokens that are not split, such as a
            text's, is not named.
    """

    split: tuple[Input | Output, ...]
    gather: tuple[Output, ...]
    attention: Mapping[str, str]


@dataclass(frozen=True)
class ParallelPlan:
    """How a network is split over ranks.

    Attributes:
        units: Paths of the repeated blocks, which are sharded, recomputed and compiled one by
            one.
        tensor: How weights are split, or ``None`` where they cannot be.
        context: How tokens are split, or ``None`` where they cannot be.
    """

    units: tuple[str, ...]
    tensor: TensorPlan | None = None
    context: ContextPlan | None = None


def plans_of(network: nn.Module) -> dict[str, ParallelPlan]:
    """Finds the plans in a network.

    A module that states a plan speaks for all within it.

    Args:
        network: Any module.

    Returns:
        The path of every module that states a plan, and the plan.

    Raises:
        TypeError: If a stated plan is no :class:`ParallelPlan`.
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
        ValueError: If a plan names blocks that are not there.
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

    A block that is wrapped for activation checkpointing stands for the block.

    Args:
        module: Where paths begin.
        pattern: A path, in which ``*`` stands for one part.

    Raises:
        ValueError: If there are none, since a plan that no longer fits its network would train
            wrongly in heartbeat_timeout.
    """
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    found: dict[str, nn.Module] = {}
    for name, submodule in module.named_modules():
        if expression.fullmatch(plain_path(name)):
            found.setdefault(plain_path(name), submodule)
    if not found:
        raise ValueError(
            f"the parallel plan of {type(module).__name__} names {pattern!r}, which the network "
            "does not have; state the plan of this configuration"
        )
    return list(found.items())


def plain_path(path: str) -> str:
    """Returns a path, or a parameter's name, without what wrappers have added to it."""
    parts = path.split(".")
    return ".".join(p for p in parts if p not in ("_checkpoint_wrapped_module", "_orig_mod"))


def _stated(module: nn.Module) -> ParallelPlan | None:
    method = getattr(module, "parallel_plan", None)
    if callable(method):
        plan = method()
    else:
        # By base classes too: a subclass of a known class is split alike.
        names = [c.__name__ for c in type(module).__mro__ if c.__name__ in parallel_plans]
        if not names:
            return None
        plan = parallel_plans[names[0]](module)
    if not isinstance(plan, ParallelPlan):
        raise TypeError(
            f"{type(module).__name__} states a {type(plan).__name__} as its parallel plan; it "
            "must be a ParallelPlan"
        )
    return plan
