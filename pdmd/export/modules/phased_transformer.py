"""The networks of a student's phases as one transformer of a pipeline.

This file is exported beside a student's weights and depends on diffusers only. The time of a call
selects the phase, and the phase its network. Phases may share a network and differ in low-rank
additions :math:`s B A` to some of its linear maps.
"""

import contextlib
import inspect
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

__all__ = ["PhasedLinear", "PhasedTransformer"]

INHERITED = (
    "_keep_in_fp32_modules",
    "_keys_to_ignore_on_load_unexpected",
    "_no_split_modules",
    "_skip_layerwise_casting_patterns",
)


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
        ranks = {str(phase): rank for phase, (rank, _) in additions.items()}
        self.lora_A = nn.ParameterDict({k: torch.zeros(rank, inside) for k, rank in ranks.items()})
        self.lora_B = nn.ParameterDict(
            {k: torch.zeros(outside, rank) for k, rank in ranks.items()}
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Applies the linear map and the current phase's addition."""
        out = super().forward(input)
        scale = self.scales.get(self.phase)
        if scale is None:
            return out
        low, high = self.lora_A[str(self.phase)], self.lora_B[str(self.phase)]
        added = nn.functional.linear(nn.functional.linear(input.to(low.dtype), low), high)
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
    """

    # A saved copy is found under this file's name.
    __module__ = __name__.rpartition(".")[2]

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
    ) -> None:
        super().__init__()
        cls = getattr(diffusers, network_class)
        _inherit(type(self), cls)
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

    @property
    def config(self) -> Any:
        """The networks' configuration, which pipelines read, merged with this one."""
        own = self._internal_dict
        return FrozenDict({**own["network_config"], **own})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **more: Any) -> Any:
        """Loads the networks, with the float32 modules of their class."""
        places = {k: more[k] for k in ("subfolder", "revision", "token") if k in more}
        config: Any = cls.load_config(pretrained_model_name_or_path, **places)
        _inherit(cls, getattr(diffusers, config["network_class"]))
        return super().from_pretrained(pretrained_model_name_or_path, **more)

    def save_pretrained(self, save_directory: Any, *args: Any, **more: Any) -> None:
        """Saves the networks and this file, so that the copy can be loaded."""
        super().save_pretrained(save_directory, *args, **more)
        shutil.copy(__file__, Path(save_directory) / f"{type(self).__module__}.py")

    def phase_of(self, timestep: Any) -> int:
        """Returns the phase of the noisiest of the network's times."""
        own = self._internal_dict
        t = (torch.as_tensor(timestep).double() - own["time_offset"]) / own["time_scale"]
        noisiest = float(t.max())
        return sum(noisiest < boundary for boundary in own["boundaries"])

    def forward(self, *args: Any, **more: Any) -> Any:
        """Evaluates the network of the call's phase with all arguments."""
        name = self._internal_dict["time_argument"]
        phase = self.phase_of(more[name] if name in more else args[self._time_index])
        for layer in self.adapted:
            layer.phase = phase
        return self.networks[self._internal_dict["networks_of"][phase]](*args, **more)

    @contextlib.contextmanager
    def cache_context(self, *args: Any, **more: Any) -> Any:
        """Enters the cache context of every network."""
        with contextlib.ExitStack() as stack:
            for network in self.networks:
                context: Any = network
                stack.enter_context(context.cache_context(*args, **more))
            yield


def _inherit(cls: Any, network_class: Any) -> None:
    for name in INHERITED:
        setattr(cls, name, getattr(network_class, name, None))
    cls._keep_in_fp32_modules = [*(cls._keep_in_fp32_modules or ()), "lora_A", "lora_B"]


def _adapt(network: Any, path: str, additions: dict[int, tuple[int, float]]) -> PhasedLinear:
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    old = getattr(owner, name)
    layer = PhasedLinear((old.in_features, old.out_features), old.bias is not None, additions)
    setattr(owner, name, layer)
    return layer
