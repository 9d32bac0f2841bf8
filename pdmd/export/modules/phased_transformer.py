"""The networks of a student's phases as one transformer of a pipeline.

This file is exported beside a student's weights and depends on diffusers only. The time of a call
selects the phase, and the phase its network. Phases may share a network and differ in low-rank
additions :math:`s B A` to some of its linear maps.

A transformer of phases is of the class of its networks too. Methods of diffusers that visit all
modules reach every network by themselves; the others, such as those that load adapters or enable a
cache, are called on each network. What cannot be done for several networks raises an error.
"""

import contextlib
import functools
import inspect
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["PhasedLinear", "PhasedTransformer"]

VISIT_MODULES = ("Module", "ModelMixin", "ConfigMixin", "PushToHubMixin", "AttentionMixin")
"""Classes whose methods visit all modules, or concern the transformer as a whole."""

PLACES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder")


class PhasedLinear(nn.Linear):
    """A linear map with a low-rank addition in some phases.

    Args:
        features: The numbers of input and output features.
        bias: Whether there is a bias.
        additions: The rank and scale of each phase's addition.
    """

    def __init__(
        self, features: tuple[int, int], bias: bool, additions: dict[int, tuple[int, float]]
    ) -> None:
        super().__init__(*features, bias=bias)
        self.scales = {phase: scale for phase, (_, scale) in additions.items()}
        self.phase = 0
        inside, outside = features
        for phase, (rank, _) in additions.items():
            down, up = _factor_names(phase)
            self.register_parameter(down, nn.Parameter(torch.zeros(rank, inside)))
            self.register_parameter(up, nn.Parameter(torch.zeros(outside, rank)))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Applies the linear map and the current phase's addition."""
        out = super().forward(input)
        scale = self.scales.get(self.phase)
        if scale is None:
            return out
        down, up = (getattr(self, name) for name in _factor_names(self.phase))
        added = nn.functional.linear(nn.functional.linear(input.to(down.dtype), down), up)
        return out + (scale * added).to(out.dtype)


class PhasedTransformer(ModelMixin, ConfigMixin):
    """A pipeline's transformer that routes each call to a network or adapter by its time.

    A network takes the time ``time_scale * t + time_offset``. A call with several times belongs to
    the phase of the noisiest.

    Args:
        network_class: The networks' class in diffusers.
        network_config: Their configuration.
        boundaries: Times between phases, decreasing; no timestep is equal to one.
        networks_of: The index of each phase's network.
        time_scale: The scale of the network's time.
        time_offset: The network's time at t = 0.
        time_argument: The name of the network's time argument.
        adapters: For each phase the linear maps with an addition, each with its rank and scale;
            none by default.
        unguided: The pipeline's arguments that turn guidance off, named in a warning if it guides
            by calls of their own; by default there is none, as the scheduler warns.
    """

    # A saved copy is found under this file's name.
    __module__ = __name__.rpartition(".")[2]

    def __new__(cls, *args: Any, **more: Any) -> Any:
        if hasattr(cls, "network_type"):
            return super().__new__(cls)
        name = args[0] if args else more["network_class"]
        return super().__new__(_specialised(cls, name, more.get("adapters")))

    @register_to_config
    def __init__(
        self,
        network_class: str,
        network_config: dict[str, Any],
        boundaries: list[float],
        networks_of: list[int],
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        time_argument: str = "timestep",
        adapters: list[dict[str, list[float]]] | None = None,
        unguided: dict[str, float] | None = None,
    ) -> None:
        ModelMixin.__init__(self)
        cls = getattr(diffusers, network_class)
        count = max(networks_of) + 1
        self.networks = nn.ModuleList([cls.from_config(network_config) for _ in range(count)])
        additions: dict[tuple[int, str], dict[int, tuple[int, float]]] = {}
        for phase, maps in enumerate(adapters or ()):
            for path, (rank, scale) in maps.items():
                chosen = additions.setdefault((networks_of[phase], path), {})
                chosen[phase] = (int(rank), float(scale))
        self.adapted = [
            _adapt(self.networks[network], path, chosen)
            for (network, path), chosen in sorted(additions.items())
        ]
        self._warned = False
        self._time_index = list(inspect.signature(cls.forward).parameters).index(time_argument) - 1

    def __getattr__(self, name: str) -> Any:
        """Returns attributes of the networks that pipelines read, such as ``in_channels``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            networks = self.__dict__.get("_modules", {}).get("networks")
            if name.startswith("_") or networks is None:
                raise
            return getattr(networks[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets attributes of the networks, such as ``gradient_checkpointing``, on all of them."""
        networks: Any = self.__dict__.get("_modules", {}).get("networks")
        own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if networks is not None and not own and hasattr(networks[0], name):
            for network in networks:
                setattr(network, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def config(self) -> Any:
        """The networks' configuration, which pipelines read, merged with this one."""
        own: Any = self._internal_dict
        return FrozenDict({**own["network_config"], **own})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **more: Any) -> Any:
        """Loads the networks, with the float32 modules of their class.

        Raises:
            ValueError: If adapters would be lost by quantisation.
        """
        places = {k: more[k] for k in (*PLACES, "token") if k in more}
        config: Any = cls.load_config(pretrained_model_name_or_path, **places)
        if config.get("adapters") and more.get("quantization_config") is not None:
            raise ValueError(
                "quantization_config would drop the phases' additions to linear maps; export the "
                "student with full networks, or load it without"
            )
        chosen: Any = _specialised(cls, config["network_class"], config.get("adapters"))
        load: Any = super(__class__, chosen)  # of this class, after another export is loaded too
        return load.from_pretrained(pretrained_model_name_or_path, **more)

    @cast(Any, functools.wraps(ModelMixin.save_pretrained, assigned=()))  # pipelines read it
    def save_pretrained(self, save_directory: Any, *args: Any, **more: Any) -> None:
        """Saves the networks and this file, so that the copy can be loaded.

        Raises:
            ValueError: If adapters were loaded and not unloaded.
        """
        if getattr(self.networks[0], "peft_config", None):
            raise ValueError(
                "this transformer has loaded adapters, with which its weights cannot be loaded "
                "again; call unload_lora_weights() of the pipeline first, after fuse_lora() to "
                "keep them"
            )
        super().save_pretrained(save_directory, *args, **more)
        shutil.copy(__file__, Path(save_directory) / f"{type(self).__module__}.py")

    def load_state_dict(self, state_dict: Any, *args: Any, **more: Any) -> Any:
        """Loads weights of the networks, ``networks.0.`` and so on.

        Raises:
            ValueError: If none of the weights is of these networks.
        """
        if not any(name.startswith("networks.") for name in state_dict):
            raise ValueError(
                f"expected weights of {len(self.networks)} networks, with names from networks.0. "
                f"on, got {list(state_dict)[:2]}; load others into each of transformer.networks"
            )
        return super().load_state_dict(state_dict, *args, **more)

    def phase_of(self, timestep: Any) -> int:
        """Returns the phase of the noisiest of the network's times."""
        own = self._internal_dict
        t = (torch.as_tensor(timestep).double() - own["time_offset"]) / own["time_scale"]
        return sum(map(float(t.max()).__lt__, own["boundaries"]))  # one wait for the device

    def forward(self, *args: Any, **more: Any) -> Any:
        """Evaluates the network of the call's phase with all arguments."""
        name = self._internal_dict["time_argument"]
        phase = self.phase_of(more[name] if name in more else args[self._time_index])
        for layer in self.adapted:
            layer.phase = phase
        return self.networks[self._internal_dict["networks_of"][phase]](*args, **more)

    @contextlib.contextmanager
    def cache_context(self, name: str, *args: Any, **more: Any) -> Iterator[None]:
        """Enters the cache context of every network, and warns of guidance, once."""
        unguided = self._internal_dict["unguided"]
        if unguided and name == "uncond" and not self._warned:  # evaluated without the prompt
            self._warned = True
            off = ", ".join(f"{name}={value:g}" for name, value in unguided.items())
            warnings.warn(
                "this student has its guidance within, and is evaluated without its prompt too, "
                f"which changes its samples; pass {off}, as the lines of its card do",
                stacklevel=3,
            )
        with contextlib.ExitStack() as stack:
            for network in self.networks:
                context: Any = network
                stack.enter_context(context.cache_context(name, *args, **more))
            yield

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Recomputes activations in the phase in which they were computed."""
        inner = gradient_checkpointing_func or functools.partial(checkpoint, use_reentrant=False)

        def in_phase(module: Callable[..., Any], *args: Any) -> Any:
            phases = [layer.phase for layer in self.adapted]

            def run(*args: Any) -> Any:
                current = [layer.phase for layer in self.adapted]
                self._set_phases(phases)
                try:
                    return module(*args)
                finally:
                    self._set_phases(current)

            return inner(run, *args)

        super().enable_gradient_checkpointing(in_phase if self.adapted else inner)

    def _set_phases(self, phases: list[int]) -> None:
        for layer, phase in zip(self.adapted, phases, strict=True):
            layer.phase = phase

    def enable_group_offload(self, *args: Any, **more: Any) -> None:
        """Offloads groups of each network's layers."""
        self._call_each("enable_group_offload", *args, **more)

    def enable_layerwise_casting(self, *args: Any, **more: Any) -> None:
        """Stores the weights of layers in another type, except those that the class excludes.

        Raises:
            ValueError: If phases have additions, which would lose their small values.
        """
        self._require_full_networks("store layers in another type")
        self._call_each("enable_layerwise_casting", *args, **more)

    def fuse_qkv_projections(self) -> None:
        """Fuses the projections of attention layers.

        Raises:
            ValueError: If phases have additions, which would be dropped.
        """
        self._require_full_networks("fuse projections")
        self._call_each("fuse_qkv_projections")

    def _call_each(self, method: str, *args: Any, **more: Any) -> list[Any]:
        # networks receive their own dictionaries, from which some methods remove items
        return [
            getattr(network, method)(
                *(dict(a) if isinstance(a, dict) else a for a in args),
                **{k: dict(a) if isinstance(a, dict) else a for k, a in more.items()},
            )
            for network in self.networks
        ]

    def _require_full_networks(self, purpose: str) -> None:
        if self.adapted:
            raise ValueError(
                f"the phases of this transformer share a network, with additions to its linear "
                f"maps, so it cannot {purpose}; export the student with full networks"
            )

    def enable_parallelism(self, *args: Any, **more: Any) -> None:
        """Raises an error: each network is split by its own plan.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a transformer of phases is not split as one; call enable_parallelism on each of "
            "transformer.networks"
        )

    def save_lora_adapter(
        self, save_directory: Any, adapter_name: Any = None, **more: Any
    ) -> None:
        """Saves an adapter that is equal on every network.

        Raises:
            ValueError: If it is not, as after training.
        """
        from peft.utils import get_peft_model_state_dict

        name = adapter_name or "default"
        networks: Any = self.networks
        if name in getattr(networks[0], "peft_config", {}):
            kept, *others = (
                get_peft_model_state_dict(network, adapter_name=name) for network in networks
            )
            if any(not torch.equal(kept[k], other[k]) for other in others for k in kept):
                raise ValueError(
                    f"the adapter {name!r} differs from network to network; save it from each of "
                    "transformer.networks"
                )
        networks[0].save_lora_adapter(save_directory, name, **more)

    def _load_ip_adapter_weights(self, *args: Any, **more: Any) -> None:
        raise ValueError(
            "IP adapters cannot be unloaded from a transformer of phases, so none are loaded"
        )


class _NetworkType(type):
    """The type of transformers of phases, which are equal to the class of their networks.

    Pipelines compare the classes of their components by ``==`` in ``from_pipe``.
    """

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is cls.__dict__.get("network_type")

    def __hash__(cls) -> int:
        return type.__hash__(cls)


def _specialised(cls: Any, name: str, adapters: Any = None) -> Any:
    """Returns a subclass of a transformer of phases and of the class of its networks."""
    network = getattr(diffusers, name)
    base: Any = next(c for c in cls.__mro__ if "network_type" not in c.__dict__)
    found: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__}
    found["network_type"] = network
    for key in dir(network):
        owner = next((c for c in network.__mro__ if key in c.__dict__), object)
        own = next((c for c in base.__mro__ if key in c.__dict__), None)
        hidden = key.startswith("__") or owner is object or owner.__name__ in VISIT_MODULES
        if hidden or own not in (None, ModelMixin, nn.Module):
            continue
        if routed := _on_every_network(key, inspect.getattr_static(network, key)):
            found[key] = routed
    factors = {f for i, maps in enumerate(adapters or ()) if maps for f in _factor_names(i)}
    if factors:
        found["_keep_in_fp32_modules"] = [*(network._keep_in_fp32_modules or ()), *sorted(factors)]
    return _NetworkType(base.__name__, (base, network), found)


def _on_every_network(key: str, value: Any) -> Any:
    """Returns what a transformer of phases has in the place of a network's attribute."""
    if isinstance(value, classmethod):

        def raises(cls: Any, *args: Any, **more: Any) -> None:
            raise ValueError(
                f"{key} makes one network, and a transformer of phases has several; call "
                f"{cls.network_type.__name__}.{key}"
            )

        return classmethod(raises) if not key.startswith("_") else None
    if isinstance(value, property):
        return property(lambda self: getattr(self.networks[0], key))
    if not inspect.isfunction(value):
        return None

    def call_each(self: Any, *args: Any, **more: Any) -> Any:
        return self._call_each(key, *args, **more)[0]

    call_each.__name__ = call_each.__qualname__ = key
    call_each.__doc__ = value.__doc__
    return call_each


def _factor_names(phase: int) -> tuple[str, str]:
    return f"phase_{phase + 1}_down", f"phase_{phase + 1}_up"


def _adapt(network: Any, path: str, additions: dict[int, tuple[int, float]]) -> PhasedLinear:
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    old = getattr(owner, name)
    layer = PhasedLinear((old.in_features, old.out_features), old.bias is not None, additions)
    setattr(owner, name, layer)
    return layer
