"""Parameter views: distributed parameters that a module's code reads as local tensors.

Optimizers, gradient clipping and checkpoints see a parameter as a distributed tensor, while the
module computes with the rank's local tensor: the module's class is replaced by a subclass in which
the parameter's name is a property. A parameter that ``fully_shard`` keeps sharded between uses is
read as is. Nothing is bound to the instance, so copies are independent, and modules of one class
share one subclass, so that sibling blocks share one compilation.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from pdmd.distributed.collectives import Ranks, enter, scale_gradient

__all__ = [
    "View",
    "distribute_parameter",
    "local",
    "override",
    "replicate",
    "scaled",
    "summed",
    "view_parameters",
]

View: TypeAlias = Callable[[Any, Tensor], Tensor]
"""Maps a module and its stored parameter to the tensor that the module's code reads."""

_classes: dict[tuple[type, type | None, tuple[tuple[str, View], ...]], type] = {}


def local(module: Any, parameter: Tensor) -> Tensor:
    """Views a tensor parallel parameter as the rank's local tensor."""
    if not isinstance(parameter, DTensor) or parameter.device_mesh.mesh_dim_names != ("tp",):
        return parameter
    return parameter.to_local()


def summed(module: Any, parameter: Tensor) -> Tensor:
    """Views a replicated parameter that each rank uses for its own features."""
    part = local(module, parameter)
    return part if isinstance(part, DTensor) else enter(part, module.tensor_ranks)


def scaled(module: Any, parameter: Tensor) -> Tensor:
    """Views a parameter with its whole gradient scaled, so that its sum over ranks is whole."""
    if isinstance(parameter, DTensor):
        return parameter
    return scale_gradient(parameter, 1 / module.context_ranks.size)


def override(
    module: nn.Module, mixin: type | None = None, views: Mapping[str, View] | None = None
) -> None:
    """Replaces a module's class by a subclass.

    Args:
        module: The module, changed in place.
        mixin: A class whose methods override the module's.
        views: The views of parameters, by name.
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


def view_parameters(module: nn.Module, view: View) -> None:
    """Sets one view for all direct parameters of a module."""
    names = [name for name, p in module._parameters.items() if p is not None]
    if names:
        override(module, views=dict.fromkeys(names, view))


def distribute_parameter(
    module: nn.Module, name: str, value: Tensor, mesh: DeviceMesh, placement: Any
) -> None:
    """Replaces a parameter by a distributed tensor.

    Args:
        module: The module, changed in place.
        name: Name of the parameter in the module.
        value: The rank's local tensor.
        mesh: The ranks.
        placement: The placement of the local tensors on the mesh.
    """
    old = module._parameters[name]
    assert old is not None
    part = DTensor.from_local(value.detach(), mesh, [placement], run_check=False)
    module._parameters[name] = nn.Parameter(part, requires_grad=old.requires_grad)


def replicate(network: nn.Module, mesh: DeviceMesh) -> None:
    """Replicates a network on all ranks of a tensor or context parallel mesh.

    For small networks without a plan, like a critic, beside others that are split. Over a mesh
    named ``tp``, parameters become replicated distributed tensors. Over one named ``cp``, the
    gradients of parameters are divided by the number of ranks, so that their sum is the gradient,
    as for a network whose tokens are split.

    Args:
        network: The network, changed in place. Distributed parameters are left unchanged.
        mesh: A one-dimensional mesh named ``tp`` or ``cp``.

    Raises:
        ValueError: If the mesh has another name or several dimensions.
    """
    if mesh.mesh_dim_names == ("cp",):
        ranks = Ranks.of(mesh)
        for module in network.modules():
            module.context_ranks = ranks  # type: ignore[assignment]
            view_parameters(module, scaled)
        return
    ranks = Ranks.of(mesh, "tp")
    replicated: dict[int, nn.Parameter] = {}
    for module in network.modules():
        plain = {
            name: parameter
            for name, parameter in module._parameters.items()
            if parameter is not None and not isinstance(parameter, DTensor)
        }
        for name, parameter in plain.items():
            if id(parameter) not in replicated:  # tied parameters stay tied
                distribute_parameter(module, name, parameter, mesh, Replicate())
                replicated[id(parameter)] = module._parameters[name]  # type: ignore[assignment]
            module._parameters[name] = replicated[id(parameter)]
        if plain:
            module.tensor_ranks = ranks  # type: ignore[assignment]
            override(module, views=dict.fromkeys(plain, local))


def _reader(cls: type, name: str, view: View) -> Callable[[Any], Tensor]:
    inherited = getattr(cls, name, None)
    if isinstance(inherited, property) and inherited.fget is not None:
        read = inherited.fget
        return lambda module: view(module, read(module))
    return lambda module: view(module, module._parameters[name])
