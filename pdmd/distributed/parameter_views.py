"""Views: what a module's code reads where its parameters are held otherwise.

A parameter may be held as a distributed tensor, so that optimizers, gradient clipping and
checkpoints see one kind of tensor throughout, while the module computes with the rank's own part.
The module is given a class of its own, a subclass of what it was, in which the parameter's name
is a property. A parameter that is sharded for storage, as ``fully_shard`` keeps it between uses,
is read as it is. Nothing is bound to the instance, so copies are independent, and modules of one
class share one subclass, so that a compiled block serves its siblings.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from pdmd.distributed.collectives import Ranks, enter, scale_gradient

__all__ = ["View", "extend", "local", "place", "replicate", "scaled", "summed", "view"]

View: TypeAlias = Callable[[Any, Tensor], Tensor]
"""What a module reads: a function of the module and of the parameter that it holds."""

_classes: dict[tuple[type, type | None, tuple[tuple[str, View], ...]], type] = {}


def local(module: Any, parameter: Tensor) -> Tensor:
    """Reads a tensor parallel parameter as the rank's own part."""
    if not isinstance(parameter, DTensor) or parameter.device_mesh.mesh_dim_names != ("tp",):
        return parameter
    return parameter.to_local()


def summed(module: Any, parameter: Tensor) -> Tensor:
    """Reads a replicated parameter that each rank uses for its own features."""
    part = local(module, parameter)
    return part if isinstance(part, DTensor) else enter(part, module.tensor_ranks)


def scaled(module: Any, parameter: Tensor) -> Tensor:
    """Reads a parameter whose gradient is whole so that the gradients' sum over ranks is."""
    if isinstance(parameter, DTensor):
        return parameter
    return scale_gradient(parameter, 1 / module.context_ranks.size)


def extend(
    module: nn.Module, mixin: type | None = None, views: Mapping[str, View] | None = None
) -> None:
    """Changes what a module computes, by a subclass of its class.

    Args:
        module: The module, changed in place.
        mixin: A class whose methods come before the module's own.
        views: Parameter names, and how the module's code reads them.
    """
    cls = type(module)
    key = (cls, mixin, tuple((views or {}).items()))
    if key not in _classes:
        properties = {n: property(_reader(cls, n, v)) for n, v in (views or {}).items()}

        def fill(namespace: dict[str, Any]) -> None:
            namespace |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
            namespace |= properties

        bases = (cls,) if mixin is None else (mixin, cls)
        _classes[key] = types.new_class(cls.__name__, bases, exec_body=fill)
    module.__class__ = _classes[key]


def view(module: nn.Module, how: View) -> None:
    """Has a module's code read all its own parameters by one view."""
    names = [name for name, p in module._parameters.items() if p is not None]
    if names:
        extend(module, views=dict.fromkeys(names, how))


def place(module: nn.Module, name: str, value: Tensor, mesh: DeviceMesh, placement: Any) -> None:
    """Holds a parameter as a distributed tensor.

    Args:
        module: The module, changed in place.
        name: The parameter's name in it.
        value: The rank's own part.
        mesh: The ranks.
        placement: How the parts make the whole.
    """
    old = module._parameters[name]
    assert old is not None
    part = DTensor.from_local(value.detach(), mesh, [placement], run_check=False)
    module._parameters[name] = nn.Parameter(part, requires_grad=old.requires_grad)


def replicate(network: nn.Module, mesh: DeviceMesh) -> None:
    """Computes a network alike on all ranks of a tensor or context parallel mesh.

    For small networks that state no plan, such as a critic, beside others that are split. Over a
    mesh named ``tp``, parameters become replicated distributed tensors. Over one named ``cp``,
    gradients of parameters are divided by the number of ranks, so that their sum is the gradient,
    as it is for a network whose tokens are split.

    Args:
        network: The network, changed in place. Parameters that are distributed already stay.
        mesh: A one-dimensional mesh named ``tp`` or ``cp``.

    Raises:
        ValueError: If the mesh is another.
    """
    if mesh.mesh_dim_names == ("cp",):
        ranks = Ranks.of(mesh)
        for module in network.modules():
            module.context_ranks = ranks  # type: ignore[assignment]
            view(module, scaled)
        return
    ranks = Ranks.of(mesh, "tp")
    held: dict[int, nn.Parameter] = {}
    for module in network.modules():
        fresh = {
            name: parameter
            for name, parameter in module._parameters.items()
            if parameter is not None and not isinstance(parameter, DTensor)
        }
        for name, parameter in fresh.items():
            if id(parameter) not in held:  # tied parameters stay tied
                place(module, name, parameter, mesh, Replicate())
                held[id(parameter)] = module._parameters[name]  # type: ignore[assignment]
            module._parameters[name] = held[id(parameter)]
        if fresh:
            module.tensor_ranks = ranks  # type: ignore[assignment]
            extend(module, views=dict.fromkeys(fresh, local))


def _reader(cls: type, name: str, how: View) -> Callable[[Any], Tensor]:
    inherited = getattr(cls, name, None)
    if isinstance(inherited, property) and inherited.fget is not None:
        read = inherited.fget
        return lambda module: how(module, read(module))
    return lambda module: how(module, module._parameters[name])
