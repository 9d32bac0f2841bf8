"""The networks of a student's phases behind the one transformer of a pipeline.

It stands beside the weights of an exported student and needs diffusers alone. The time of a call
chooses the network: the first below whose noisiest boundary no time lies. With adapters there is
one network, and the time chooses a low-rank addition :math:`s B A` to some of its linear maps.
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

TAKEN_OVER = (
    "_keep_in_fp32_modules",
    "_keys_to_ignore_on_load_unexpected",
    "_no_split_modules",
    "_skip_layerwise_casting_patterns",
)


class PhasedLinear(nn.Linear):
    """A linear map with a low-rank addition for every phase.

    Args:
        features: Its inputs and outputs.
        bias: Whether it adds one.
        ranks: The rank of each phase's addition; 0 is none.
        scales: What each addition is multiplied by.
    """

    def __init__(
        self, features: tuple[int, int], bias: bool, ranks: list[int], scales: list[float]
    ) -> None:
        super().__init__(*features, bias=bias)
        self.scales = scales
        self.phase = 0
        inside, outside = features
        self.lora_A = nn.ParameterList([torch.zeros(rank, inside) for rank in ranks])
        self.lora_B = nn.ParameterList([torch.zeros(outside, rank) for rank in ranks])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps and adds."""
        out = super().forward(input)
        low, high = self.lora_A[self.phase], self.lora_B[self.phase]
        if not len(low):
            return out
        added = nn.functional.linear(nn.functional.linear(input.to(low.dtype), low), high)
        return out + self.scales[self.phase] * added.to(out.dtype)


class PhasedTransformer(ModelMixin, ConfigMixin):
    """A pipeline's transformer that is another network, or another adapter, at another time.

    The network takes ``time_scale * t + time_offset``. A call belongs to the phase of the
    noisiest time in it.

    Args:
        network_class: The networks' class in diffusers.
        network_config: Their configuration.
        boundaries: Times between phases, falling; none of them is ever asked.
        time_scale: The network's time per ours.
        time_offset: The network's time at our 0.
        time_argument: The name of the time among the network's arguments.
        adapters: For each phase the linear maps with an addition, each with its rank and scale;
            without, every phase has a network of its own.
    """

    __module__ = __name__.rpartition(".")[2]  # saved again, it is found by this file's name

    @register_to_config
    def __init__(
        self,
        network_class: str,
        network_config: dict[str, Any],
        boundaries: list[float],
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        time_argument: str = "timestep",
        adapters: list[dict[str, list[float]]] | None = None,
    ) -> None:
        super().__init__()
        cls = getattr(diffusers, network_class)
        _take_over(type(self), cls)
        count = len(boundaries) + 1 if adapters is None else 1
        self.networks = nn.ModuleList([cls.from_config(network_config) for _ in range(count)])
        self.adapted: list[PhasedLinear] = []
        for path in sorted({path for phase in adapters or () for path in phase}):
            parts = [(phase or {}).get(path, (0, 0.0)) for phase in adapters or ()]
            self.adapted.append(_adapt(self.networks[0], path, parts))
        named = inspect.signature(cls.forward).parameters
        self._place = list(named).index(time_argument) - 1  # without self

    @property
    def config(self) -> Any:
        """The networks' configuration, which pipelines read, and its own."""
        own = self._internal_dict
        return FrozenDict({**own["network_config"], **own})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **more: Any) -> Any:
        """Loads, with the types that the networks' class keeps."""
        places = {k: more[k] for k in ("subfolder", "revision", "token") if k in more}
        config: Any = cls.load_config(pretrained_model_name_or_path, **places)
        _take_over(cls, getattr(diffusers, config["network_class"]))
        return super().from_pretrained(pretrained_model_name_or_path, **more)

    def save_pretrained(self, save_directory: Any, *args: Any, **more: Any) -> None:
        """Saves with this file, so that the copy loads too."""
        super().save_pretrained(save_directory, *args, **more)
        shutil.copy(__file__, Path(save_directory) / f"{type(self).__module__}.py")

    def phase_of(self, timestep: Any) -> int:
        """Returns the phase of the noisiest of the network's times."""
        own = self._internal_dict
        t = (torch.as_tensor(timestep).double() - own["time_offset"]) / own["time_scale"]
        noisiest = float(t.max())
        return sum(noisiest < boundary for boundary in own["boundaries"])

    def forward(self, *args: Any, **more: Any) -> Any:
        """Evaluates the network of the time, which takes all arguments."""
        name = self._internal_dict["time_argument"]
        phase = self.phase_of(more[name] if name in more else args[self._place])
        if self._internal_dict["adapters"] is None:
            return self.networks[phase](*args, **more)
        for layer in self.adapted:
            layer.phase = phase
        return self.networks[0](*args, **more)

    @contextlib.contextmanager
    def cache_context(self, *args: Any, **more: Any) -> Any:
        """Enters the context of every network."""
        with contextlib.ExitStack() as stack:
            for network in self.networks:
                context: Any = network
                stack.enter_context(context.cache_context(*args, **more))
            yield


def _take_over(cls: Any, network_class: Any) -> None:
    for name in TAKEN_OVER:
        setattr(cls, name, getattr(network_class, name, None))


def _adapt(network: Any, path: str, parts: list[Any]) -> PhasedLinear:
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    old = getattr(owner, name)
    layer = PhasedLinear(
        (old.in_features, old.out_features),
        old.bias is not None,
        [int(rank) for rank, _ in parts],
        [float(scale) for _, scale in parts],
    )
    setattr(owner, name, layer)
    return layer
