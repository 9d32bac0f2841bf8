r"""Denoisers: networks that know the forward process they were trained for.

A :class:`Denoiser` is a network :math:`f_\theta(x_t, t, c)` together with its schedule and the
kind of its output, so that calling it yields a :class:`~pdmd.diffusion.predictions.Prediction`
and nobody else needs to know what it predicts.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pdmd.diffusion.checks import check_latents, check_times
from pdmd.diffusion.predictions import Kind, Prediction, check_kind
from pdmd.diffusion.schedules import Schedule
from pdmd.typing import Condition, Latents, Times, moved

__all__ = ["Denoiser"]


class Denoiser(nn.Module, ABC):
    """A network with its schedule and the kind of its prediction.

    A subclass implements :meth:`network`.

    Attributes:
        evaluations: Network evaluations of one call for one sample, as accounts count them.
        precision: The type in which the network computes, under autocast; its times and what is
            made of its output keep their own.

    Args:
        schedule: The forward process of the network's inputs.
        kind: What the network predicts.
        latent_shape: Shape of one sample, without the batch.
        time_range: The lowest and highest time that the network was trained for.

    Raises:
        ValueError: If the kind is unknown or the time range is not within [0, 1].
    """

    evaluations: int = 1
    precision: torch.dtype = torch.float32

    def __init__(
        self,
        *,
        schedule: Schedule,
        kind: Kind,
        latent_shape: Sequence[int],
        time_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        low, high = time_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"a time range is 0 <= low < high <= 1, got {time_range}")
        self.schedule = schedule
        self.kind: Kind = check_kind(kind)
        self.latent_shape = tuple(int(n) for n in latent_shape)
        self.time_range = (float(low), float(high))

    @property
    def device(self) -> torch.device:
        """Where its parameters and buffers are; the CPU if it has none."""
        tensors = chain(self.parameters(), self.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @abstractmethod
    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates the network.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times in [0, 1], with shape :math:`(B)`, in float64.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.

        Returns:
            A prediction of :attr:`kind`, with the shape of ``x_t``.
        """

    def forward(self, x_t: Latents, t: Times, condition: Condition = None) -> Prediction:
        """Evaluates the network and says what came out.

        Args:
            x_t: Noisy latents, with shape :math:`(B, *)`.
            t: Times in [0, 1]: a float, or a tensor with shape :math:`()` or :math:`(B)`.
            condition: A TensorDict with batch size :math:`(B)`, or ``None``.

        Returns:
            The prediction, with value of shape :math:`(B, *)`.
        """
        check_latents("x_t", x_t)
        check_times("t", t, len(x_t))
        t = moved(torch.as_tensor(t, dtype=torch.float64), x_t.device)
        if self.precision == torch.float32:
            value = self.network(x_t, t.expand(len(x_t)), condition)
        else:
            with torch.autocast(x_t.device.type, self.precision):
                value = self.network(x_t, t.expand(len(x_t)), condition)
        return Prediction(value=value, kind=self.kind, x_t=x_t, t=t, schedule=self.schedule)

    def trainable_copy(self) -> Denoiser:
        """Returns a copy whose parameters train, to start an expert or a fake score from.

        Raises:
            ValueError: If the denoiser has no parameters.
        """
        if not any(True for _ in self.parameters()):
            raise ValueError(
                f"{type(self).__name__} has no parameters to train; pass an initializer with a "
                "network, such as init=FromDenoiser(network)"
            )
        return copy.deepcopy(self).requires_grad_(True).train()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns what serves the times between two, itself and not a copy; here the whole.

        A denoiser of several networks returns the one that serves the whole interval, so that
        an expert need not carry networks it never asks.

        Args:
            t_start: The noisier end.
            t_end: The cleaner end.
        """
        return self

    def trainable_part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns a trainable copy of the part that serves the times between two.

        Args:
            t_start: The noisier end.
            t_end: The cleaner end.

        Raises:
            ValueError: As :meth:`trainable_copy`.
        """
        return self.part(t_start, t_end).trainable_copy()
