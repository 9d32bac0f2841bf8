"""Where a distillation runs: its device, its ranks, and what networks become on them.

The training loop is one. What differs between a process on a laptop and many GPUs is asked of a
:class:`Runtime`: how a network is placed, what optimizes it, and what has to be agreed among
ranks. :class:`OneProcess` is torch alone; :class:`~pdmd.distributed.titan.TitanRuntime` composes
torchtitan's parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distributed.activation_checkpointing import checkpoint_units, keep_all
from pdmd.distributed.plans import plain_path
from pdmd.randomness import RankGenerator
from pdmd.training.optimizers import AdamRecipe, RateSchedule

__all__ = [
    "OneProcess",
    "Optimizers",
    "Rates",
    "Runtime",
    "blank_moments",
    "local_part",
    "moments_of",
    "parameter_names",
    "pick_device",
    "put_moments",
    "set_precision",
    "widen",
]

N = TypeVar("N", bound=nn.Module)


class Optimizers(Protocol):
    """One or several optimizers that step together; torchtitan's container is one."""

    def step(self) -> None:
        """Moves the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        """Runs over the optimizers."""
        ...


class Rates(Protocol):
    """Sets the learning rates of optimizers; torchtitan's container is one."""

    def step(self) -> None:
        """Goes on to the next update."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to the update ``last_epoch``."""


class Runtime(ABC):
    """The device and ranks of a distillation.

    Attributes:
        device: Where this process computes.
        data_rank: This rank's place among those that share out a batch.
        data_ranks: How many share it out.
        main: Whether this process writes files and reports progress.
        loss_scale: What losses are multiplied by before the backward pass.
        plain: Whether placed networks are plain ones still.
    """

    device: torch.device
    data_rank: int = 0
    data_ranks: int = 1
    main: bool = True
    loss_scale: float = 1.0
    plain: bool = True

    @abstractmethod
    def frozen(self, network: Denoiser, *, shared: bool = False) -> Denoiser:
        """Returns what evaluates a network that does not train, until :meth:`release`.

        Args:
            network: The network.
            shared: Whether adapters will run over its parts.

        Raises:
            ValueError: If adapters cannot.
        """

    @abstractmethod
    def trained(self, network: N) -> N:
        """Places a network that trains, or the average of one, and returns it."""

    @abstractmethod
    def release(self, network: nn.Module) -> None:
        """Undoes :meth:`frozen` where that changed the network."""

    @abstractmethod
    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        """Makes a placed network's optimizers."""

    @abstractmethod
    def schedule(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        """Makes the schedule of their learning rate over a number of updates."""

    @abstractmethod
    def clip(self, network: nn.Module, largest: float) -> Tensor:
        """Scales a network's gradient down to a largest norm and returns the norm it had."""

    def step(self, optimizers: Optimizers, finite: Tensor) -> None:
        """Moves the parameters if a flag is set; nobody waits for the device to tell.

        Args:
            optimizers: The optimizers, whose steps are fused.
            finite: The flag, a scalar on the device of the parameters.
        """
        for optimizer in optimizers:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()

    @abstractmethod
    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of a value over the ranks that share out a batch."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Says whether the flag is set on any rank."""

    @abstractmethod
    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's state as checkpoints hold it: in the network's own layout."""

    @abstractmethod
    def restore(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Takes a state that :meth:`tensors` gave, filled from a checkpoint."""

    @abstractmethod
    def moments(self, network: nn.Module, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
        """Returns the state of every parameter's optimizer, by the parameter's name."""

    @abstractmethod
    def blank_moments(
        self, network: nn.Module, optimizers: Optimizers
    ) -> dict[str, dict[str, Tensor]]:
        """Returns what :meth:`moments` would give after a first step, for a checkpoint to fill."""

    @abstractmethod
    def restore_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        """Takes a state that :meth:`moments` gave, filled from a checkpoint."""

    @abstractmethod
    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's whole state, as plain tensors on the CPU, on every rank."""

    def generator(self, seed: int) -> RankGenerator:
        """Makes the generator of everything that has a row for each sample."""
        return RankGenerator.make(seed, self.data_rank, self.data_ranks)

    def check(self, network: nn.Module) -> None:
        """Checks that a network can be placed, before any is.

        Raises:
            ValueError: If it cannot.
        """
        return

    def agreed(self) -> AbstractContextManager[None]:
        """Runs a block on every rank, and raises on all what any of them raised in it.

        Raises:
            ValueError: What the block raised, here or on another rank.
            OSError: Likewise.
        """
        return nullcontext()

    def failed_rank(self) -> str:
        """Says which other rank a communication failed for; nothing if none is to failed_rank."""
        return ""

    def close(self, error: BaseException | None = None) -> None:
        """Leaves the ranks, after an error or at the end."""
        return

    def local(self, batch: int) -> int:
        """Returns this rank's part of a batch.

        Raises:
            ValueError: If the batch does not divide.
        """
        if batch % self.data_ranks:
            raise ValueError(
                f"a batch of {batch} is not shared out evenly over {self.data_ranks} data ranks; "
                f"take a multiple of {self.data_ranks}"
            )
        return batch // self.data_ranks


class OneProcess(Runtime):
    """A single process: networks stay as they are, on one device.

    Args:
        device: The device.
        precision: The type in which networks compute; parameters that train and losses are
            float32.
        activation_checkpointing: Whether the backward pass computes every unit of a network
            again, which saves the memory of activations.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        self.activation_checkpointing = activation_checkpointing

    def frozen(self, network: Denoiser, *, shared: bool = False) -> Denoiser:
        self._put(network)
        return network

    def trained(self, network: N) -> N:
        self._put(network)
        widen(network)
        return network

    def release(self, network: nn.Module) -> None:
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to("cpu")
            set_precision(one, torch.float32)
            keep_all(one)

    def _put(self, network: nn.Module) -> None:
        for one in (network, *(part.base for part in adapted_parts(network))):
            one.to(self.device)
            set_precision(one, self.precision)
            if self.activation_checkpointing:
                checkpoint_units(one)

    def optimizers(self, recipe: AdamRecipe, network: nn.Module) -> Optimizers:
        return _OneOptimizer(recipe.build(network.parameters()))

    def schedule(self, optimizers: Optimizers, recipe: AdamRecipe, updates: int) -> Rates:
        return RateSchedule(optimizers, recipe, updates)

    def clip(self, network: nn.Module, largest: float) -> Tensor:
        return nn.utils.clip_grad_norm_(network.parameters(), largest)

    def mean(self, value: Tensor) -> Tensor:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in network.state_dict().items()}

    def restore(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        network.load_state_dict(dict(tensors))

    def moments(self, network: nn.Module, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
        return moments_of(network, optimizers)

    def blank_moments(
        self, network: nn.Module, optimizers: Optimizers
    ) -> dict[str, dict[str, Tensor]]:
        return blank_moments(network)

    def restore_moments(
        self,
        network: nn.Module,
        optimizers: Optimizers,
        moments: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        put_moments(network, optimizers, moments)

    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in network.state_dict().items()}


class _OneOptimizer:
    """A single optimizer, as a container of one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter([self.optimizer])


def parameter_names(network: nn.Module) -> dict[Tensor, str]:
    """Names parameters as the bare network does, whatever wraps its blocks."""
    return {parameter: plain_path(name) for name, parameter in network.named_parameters()}


def moments_of(network: nn.Module, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
    """Returns the state of every parameter's optimizer; empty before its first step."""
    names = parameter_names(network)
    return {
        names[parameter]: dict(state)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
    }


def blank_moments(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Returns the state of every parameter's Adam before a first step."""
    return {
        name: {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
        for parameter, name in parameter_names(network).items()
    }


def put_moments(
    network: nn.Module, optimizers: Optimizers, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Takes what :func:`moments_of` returned."""
    names = parameter_names(network)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if names[parameter] in moments:
                    optimizer.state[parameter] = dict(moments[names[parameter]])


def pick_device(name: str) -> torch.device:
    """Returns a device by name; ``auto`` is CUDA's if there is one, else the CPU.

    Raises:
        ValueError: If it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):  # times are float64, which others lack
        raise ValueError(f"device {name!r} is not one of auto, cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available here; use auto or cpu")
    return device


def local_part(value: Tensor) -> Tensor:
    """Returns this rank's part of a tensor that ranks share out; a plain tensor itself."""
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()


def widen(network: nn.Module) -> None:
    """Holds parameters that are narrower in float32: small updates would round away."""
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def set_precision(network: nn.Module, precision: torch.dtype) -> None:
    """Makes the denoisers within a network compute in a type."""
    for module in network.modules():
        if isinstance(module, Denoiser):
            module.precision = precision
