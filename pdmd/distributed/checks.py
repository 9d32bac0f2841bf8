"""Checks that a network can be split, before it is changed."""

from __future__ import annotations

import inspect

from torch import nn
from torch.distributed.tensor import DTensor

from pdmd.distributed.plans import (
    ContextPlan,
    Input,
    ParallelPlan,
    TensorPlan,
    matching,
    plans_of,
)

__all__ = ["check"]

PAGE = "docs/tutorials/write_a_parallel_plan.md"


def check(network: nn.Module, *, tensor: int | None = None, context: int | None = None) -> None:
    """Checks that a network can be split over ranks.

    Args:
        network: The network: whole, or tensor parallel if only ``context`` is given.
        tensor: The number of tensor parallel ranks, if any.
        context: The number of context parallel ranks, if any.

    Raises:
        ValueError: If the network states no plan, a plan does not match it, features or heads are
            not divisible by the ranks, or the network is split already.
    """
    plans = plans_of(network)
    if not plans and any(True for _ in network.parameters()):
        raise ValueError(
            f"{type(network).__name__} states no parallel plan; add a method parallel_plan() to "
            "the module that holds its blocks, or register a plan under the name of that "
            f"module's class in pdmd.distributed.parallel_plans ({PAGE} shows both); replicate a "
            "small network on all ranks by pdmd.distributed.replicate"
        )
    for path, plan in plans.items():
        module = network.get_submodule(path)
        for pattern in plan.units:
            matching(module, pattern)
        if tensor is not None:
            _check_tensor(network, module, plan.tensor, tensor)
        if context is not None:
            _check_context(module, plan, tensor or 1, context)


def _check_tensor(
    network: nn.Module, module: nn.Module, plan: TensorPlan | None, ranks: int
) -> None:
    for name, parameter in network.named_parameters():
        if isinstance(parameter, DTensor):
            raise ValueError(
                f"{name} is distributed already; split a network once: by tensor, then by "
                "context, then by fully_shard"
            )
    if plan is None:
        raise ValueError(_missing_plan(module, "tensor", "TensorPlan"))
    styled: dict[str, str] = {}
    for pattern, style in plan.styles.items():
        for path, layer in matching(module, pattern):
            if path in styled:
                raise ValueError(
                    f"{path} matches both {styled[path]!r} and {pattern!r} in the tensor plan of "
                    f"{type(module).__name__}; name it once"
                )
            styled[path] = pattern
            style.check(path, layer, ranks)
    for pattern, attributes in plan.divided.items():
        for path, part in matching(module, pattern):
            for attribute in attributes:
                count = _count(path, part, attribute)
                if count % ranks:
                    raise ValueError(
                        f"{path}.{attribute} is {count}, which is not divisible by {ranks} "
                        "tensor parallel ranks; use fewer"
                    )


def _check_context(module: nn.Module, plan: ParallelPlan, tensor: int, ranks: int) -> None:
    if plan.context is None:
        raise ValueError(_missing_plan(module, "context", "ContextPlan"))
    if hasattr(module, "context_ranks"):
        raise ValueError(f"{type(module).__name__} is split by context already; split it once")
    for tokens in (*plan.context.split, *plan.context.gather):
        for path, part in matching(module, tokens.module):
            if isinstance(tokens, Input):
                _check_argument(path, part, tokens)
    divided = {} if plan.tensor is None else plan.tensor.divided
    shares = {
        (path, attribute): tensor
        for pattern, attributes in divided.items()
        for path, _ in matching(module, pattern)
        for attribute in attributes
    }
    for path, attribute, part in _attention(module, plan.context):
        heads = _count(path, part, attribute) // shares.get((path, attribute), 1)
        if heads % ranks:
            raise ValueError(
                f"{path} has {heads} heads on each tensor parallel rank, which is not divisible "
                f"by {ranks} context parallel ranks; use fewer of either"
            )


def _attention(module: nn.Module, plan: ContextPlan) -> list[tuple[str, str, nn.Module]]:
    return [
        (path, attribute, part)
        for pattern, attribute in plan.attention.items()
        for path, part in matching(module, pattern)
    ]


def _check_argument(path: str, module: nn.Module, tokens: Input) -> None:
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    if tokens.argument not in names:
        raise ValueError(
            f"{path or type(module).__name__} has no argument {tokens.argument!r}, which its "
            f"context plan splits; it takes {', '.join(names)}"
        )


def _count(path: str, module: nn.Module, attribute: str) -> int:
    count = getattr(module, attribute, None)
    if not isinstance(count, int):
        raise ValueError(
            f"{path}.{attribute} is {count!r}; a plan must name an integer attribute that counts "
            "heads"
        )
    return count


def _missing_plan(module: nn.Module, kind: str, name: str) -> str:
    return (
        f"the parallel plan of {type(module).__name__} has no {kind} plan; state a {name} ({PAGE})"
    )
