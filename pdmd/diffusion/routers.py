"""Routers: the expert that serves a time, and denoisers of several networks.

The boundary between two phases belongs to the less noisy expert, since the latents there are its
input: at :math:`t_k` the student evaluates expert k + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.schedules import same_process
from pdmd.diffusion.time_intervals import current_interval
from pdmd.diffusion.timesteps import as_times
from pdmd.registry import Registry
from pdmd.typing import Condition, Latents, Times, moved

__all__ = ["IntervalRouter", "RoutedDenoiser", "Router", "routers"]

routers: Registry[type[Router]] = Registry("router")
register, get, names = routers.register, routers.get, routers.names


class Router(ABC):
    """A map from every time in [0, 1] to the index of an expert."""

    @abstractmethod
    def __call__(self, t: Times) -> Tensor:
        """Returns the expert index of every time, int64, with the shape of ``t``.

        Raises:
            ValueError: If a time is outside [0, 1].
        """

    def serves(self, t_start: float, t_end: float) -> int | None:
        """Returns the index of the expert that serves all times strictly between two, if any.

        Args:
            t_start: The noisier end.
            t_end: The cleaner end.

        Returns:
            The index, or ``None`` if several experts serve the interval or it is unknown.
        """
        return None

    @property
    def switches(self) -> tuple[float, ...]:
        """The times, decreasing, at which the expert changes; empty if they are unknown."""
        return ()


@routers.register("interval")
@checked
class IntervalRouter(Router):
    """Routes by the intervals between boundaries.

    A time that equals a boundary in float32 counts as the boundary: 0.6 rounds up in float32 and
    still belongs to the less noisy expert.

    Args:
        boundaries: Times strictly decreasing from 1 to 0, both included; n experts need n + 1.

    Raises:
        ValueError: If the boundaries do not decrease strictly from 1 to 0.
    """

    def __init__(self, boundaries: Sequence[float]) -> None:
        times = [float(t) for t in boundaries]
        if len(times) < 2 or times[0] != 1 or times[-1] != 0:
            raise ValueError(f"boundaries must run from 1 to 0, both included, got {times}")
        for a, b in zip(times, times[1:], strict=False):
            if not b < a:
                raise ValueError(f"boundaries must decrease strictly, got {b} after {a}")
        self.boundaries = tuple(times)
        self._inner = torch.tensor(times[1:-1], dtype=torch.float64) * (1 + 2**-24)

    def __call__(self, t: Times) -> Tensor:
        t = as_times(t)
        return (t.unsqueeze(-1) <= moved(self._inner, t.device)).sum(-1)

    def serves(self, t_start: float, t_end: float) -> int | None:
        slack = 2**-22  # an end that equals a boundary in float32 is on it
        for i, (above, below) in enumerate(
            zip(self.boundaries, self.boundaries[1:], strict=False)
        ):
            if t_start <= above * (1 + slack) and t_end >= below * (1 - slack):
                return i
        return None

    @property
    def switches(self) -> tuple[float, ...]:
        return self.boundaries[1:-1]

    def __repr__(self) -> str:
        return f"IntervalRouter({list(self.boundaries)})"


@checked
class RoutedDenoiser(Denoiser):
    """Several denoisers behind a router, as one denoiser.

    Represents teachers of two networks (Wan 2.2) and students. A call whose times are known to
    lie in the interval of one network evaluates that network alone: a float, or the times of
    :meth:`~pdmd.objectives.time_samplers.TimeSampler.sample`. Otherwise every network evaluates
    its rows.

    Attributes:
        collective: Whether evaluating a denoiser is a collective operation of ranks with different
            rows, as where its weights are sharded. A call whose times have no known interval then
            evaluates all denoisers, those without a row on a padding row, since another rank may
            need them.
        padded: Whether a padding row has recorded a gradient since this was last set to false.

    Args:
        denoisers: The experts' networks, on one schedule, noisiest first.
        router: Routes times to their indices.

    Raises:
        ValueError: If there are no denoisers, their schedules differ, or an interval router has
            another number of intervals.
    """

    def __init__(self, denoisers: Sequence[Denoiser], router: Router) -> None:
        if not denoisers:
            raise ValueError("a routed denoiser needs at least one denoiser")
        first = denoisers[0]
        for other in denoisers[1:]:
            if not same_process(other.schedule, first.schedule):
                raise ValueError(
                    f"routed denoisers must share one schedule, got {first.schedule!r} and "
                    f"{other.schedule!r}; wrap one of them in WithSchedule"
                )
        if isinstance(router, IntervalRouter) and len(router.boundaries) != len(denoisers) + 1:
            raise ValueError(
                f"{len(denoisers)} denoisers need {len(denoisers) + 1} boundaries, got "
                f"{list(router.boundaries)}"
            )
        super().__init__(
            schedule=first.schedule,
            kind=first.kind,
            latent_shape=first.latent_shape,
            time_range=(
                min(d.time_range[0] for d in denoisers),
                max(d.time_range[1] for d in denoisers),
            ),
        )
        self.denoisers = nn.ModuleList(denoisers)
        self.router = router
        self.collective = self.padded = False

    @property
    def parts(self) -> list[Denoiser]:
        """The denoisers, noisiest first."""
        return cast("list[Denoiser]", list(self.denoisers))

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates each sample with the denoiser that its time is routed to."""
        known = self._served()
        if known is not None:
            return self._evaluate(known, x_t, t, condition)
        index = self.router(t)
        used = range(len(self.denoisers)) if self.collective else index.unique().tolist()
        if len(used) == 1:
            return self._evaluate(used[0], x_t, t, condition)
        value = torch.empty_like(x_t, dtype=torch.promote_types(x_t.dtype, torch.float32))
        for i in used:
            rows = (index == i).nonzero().squeeze(-1)
            routed = len(rows) > 0
            rows = rows if routed else index.new_zeros(1)
            part = None if condition is None else condition[rows]
            out = self._evaluate(i, x_t[rows], t[rows], part).to(value)
            if routed:
                value = value.index_copy(0, rows, out)
            elif out.requires_grad:  # a zero gradient, which every rank must reduce
                value = value + 0 * out.sum()
            self.padded = self.padded or (self.collective and out.requires_grad)
        return value

    def _served(self) -> int | None:
        """Returns the index of the denoiser that serves the times of the call, if it is known."""
        interval = current_interval()
        if interval is None:
            return None
        low, high = interval
        return int(self.router(low)) if low == high else self.router.serves(high, low)

    def _evaluate(self, i: int, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        prediction: Prediction = self.denoisers[i](x_t, t, condition)
        return prediction.to(self.kind)

    @property
    def switches(self) -> tuple[float, ...]:
        """The boundaries between the networks, those within routed networks included."""
        own = self.router.switches
        if not own:
            return ()
        ends = (1.0, *own, 0.0)
        return tuple(
            sorted(
                {*own}.union(
                    t
                    for denoiser, high, low in zip(self.parts, ends, ends[1:], strict=False)
                    for t in denoiser.switches
                    if low < t < high
                ),
                reverse=True,
            )
        )

    def trainable_copy(self) -> Denoiser:
        """Returns a routed denoiser of trainable copies."""
        return RoutedDenoiser([d.trainable_copy() for d in self.parts], self.router)

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the denoiser that serves all times between two; itself if several do."""
        index = self.router.serves(t_start, t_end)
        return self if index is None else self.parts[index].part(t_start, t_end)
