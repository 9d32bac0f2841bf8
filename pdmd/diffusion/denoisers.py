r"""Denoisers: networks with their forward process and the kind of their prediction.

A :class:`Denoiser` is a network :math:`f_\theta(x_t, t, c)` together with its schedule and
prediction kind. Calling it returns a :class:`~pdmd.diffusion.predictions.Prediction`, which
converts to any other kind.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pdmd.arguments import describe
from pdmd.diffusion.checks import check_condition, check_latents, check_times
from pdmd.diffusion.predictions import Kind, Prediction, check_kind
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.time_intervals import current_interval, evaluating, within
from pdmd.diffusion.timesteps import as_times
from pdmd.typing import Condition, Latents, Times, moved

__all__ = ["Denoiser"]


class Denoiser(nn.Module, ABC):
    """A network with its schedule and prediction kind.

    A subclass implements :meth:`network`.

    Attributes:
        evaluations: Network evaluations (NFE) of one call, per sample.
        precision: The dtype of the network's autocast; times and conversions of its output keep
            theirs.
        execution_device: The device on which the network computes, where that is not the one of
            its parameters, which may be offloaded.

    Args:
        schedule: The forward process of the network's inputs.
        kind: The kind of the prediction.
        latent_shape: Shape of one sample, without the batch dimension.
        time_range: The lowest and highest time the network was trained on.

    Raises:
        TypeError: If the schedule or the shape is something else.
        ValueError: If the kind is unknown or the time range is not an interval in [0, 1].
    """

    evaluations: int = 1
    precision: torch.dtype = torch.float32
    execution_device: torch.device | None = None

    def __init__(
        self,
        *,
        schedule: Schedule,
        kind: Kind,
        latent_shape: Sequence[int],
        time_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule is an instance of Schedule, got {describe(schedule)}; pass one, as by "
                "RectifiedFlow()"
            )
        if isinstance(latent_shape, int):
            raise TypeError(
                f"latent_shape is the shape of one sample, got {latent_shape}; pass a tuple, as "
                f"in ({latent_shape},)"
            )
        low, high = time_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"expected a time range with 0 <= low < high <= 1, got {time_range}")
        self.schedule = schedule
        self.kind: Kind = check_kind(kind)
        self.latent_shape = tuple(int(n) for n in latent_shape)
        self.time_range = (float(low), float(high))

    @property
    def device(self) -> torch.device:
        """The device on which it computes: by default that of its parameters, else the CPU."""
        if self.execution_device is not None:
            return self.execution_device
        tensors = chain(self.parameters(), self.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def switches(self) -> tuple[float, ...]:
        """The times, decreasing, at which a denoiser of several networks switches between them.

        At such a time the network of the cleaner times is evaluated. Wrappers return those of the
        denoiser they wrap, on their own schedule.
        """
        return ()

    def __call__(self, x_t: Latents, t: Times, condition: Condition = None) -> Prediction:
        """Calls :meth:`forward`, with the interval of the times known to routed denoisers."""
        check_latents("x_t", x_t)
        check_times("t", t, len(x_t))
        check_condition(condition, len(x_t))
        try:
            with evaluating(t):  # before any hook of the module moves the times
                return super().__call__(x_t, t, condition)
        except (AttributeError, TypeError) as error:
            if condition is not None or "NoneType" not in str(error):
                raise
            raise TypeError(
                f"{type(self).__name__} was evaluated without a condition, which its network "
                "needs; pass what encode(prompts) returns, or let the network treat None as rows "
                "of null prompts"
            ) from error

    @abstractmethod
    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times in [0, 1], with shape :math:`(B)`, in float64.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.

        Returns:
            A prediction of ``kind``, with the shape of ``x_t``.
        """

    def forward(self, x_t: Latents, t: Times, condition: Condition = None) -> Prediction:
        """Evaluates the network and returns its prediction.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times in [0, 1]: a float, or a tensor with shape :math:`()` or :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.

        Returns:
            A prediction of ``kind``, with a value of shape :math:`(B, *)`.
        """
        if isinstance(t, Tensor):
            as_times(t)  # for its errors
            given, t = t, moved(t.to(torch.float64), x_t.device)
            interval = current_interval()
            if interval is not None and t is not given:
                within(t, *interval)
            times = t.expand(len(x_t))
        else:
            times = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
        if self.precision == torch.float32:
            value = self.network(x_t, times, condition)
        else:
            with torch.autocast(x_t.device.type, self.precision):
                value = self.network(x_t, times, condition)
        return Prediction(value=value, kind=self.kind, x_t=x_t, t=t, schedule=self.schedule)

    def trainable_copy(self) -> Denoiser:
        """Returns a trainable copy, from which an expert or a fake score starts.

        Raises:
            ValueError: If the denoiser has no parameters.
        """
        if not any(True for _ in self.parameters()):
            raise ValueError(
                f"{type(self).__name__} has no parameters to train; initialize the experts from a "
                "network, as in FromDenoiser(network)"
            )
        return copy.deepcopy(self).requires_grad_(True).train()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the denoiser that serves all times between two: the denoiser itself, no copy.

        A denoiser of several networks returns the one that serves the whole interval, so that
        an expert contains no network that it never evaluates.

        Args:
            t_start: The noisier end.
            t_end: The cleaner end.
        """
        return self

    def trainable_part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns a trainable copy of :meth:`part`.

        Args:
            t_start: The noisier end.
            t_end: The cleaner end.

        Raises:
            ValueError: If the denoiser has no parameters.
        """
        return self.part(t_start, t_end).trainable_copy()
