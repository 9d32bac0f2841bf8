r"""A scheduler that walks a student's own grid of times, for pipelines of rectified flow.

It stands beside the weights of an exported student and needs diffusers alone. Each step is
Euler's, :math:`x_s = x_t + (s - t) v`. Between two steps of a phase that renoises, it jumps to the
phase's end :math:`e` and diffuses back with fresh noise,
:math:`x_s = \alpha_{s|e} x_e + \sigma_{s|e} \varepsilon`.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

__all__ = ["PhasedScheduler"]


class PhasedScheduler(SchedulerMixin, ConfigMixin):
    """Walks the grid in its configuration, whatever times a pipeline proposes.

    Between steps it carries the sample in float32, as long as it is given back what it returned.

    Args:
        grid: The times at which the network is asked, falling from 1; the walk ends at 0.
        jumps: For each step the end of its phase where it renoises, or ``None`` where it does
            not; no step does by default.
        num_train_timesteps: What pipelines multiply times by.
    """

    order = 1
    __module__ = __name__.rpartition(".")[2]  # saved again, it is found by this file's name

    @register_to_config
    def __init__(
        self,
        grid: list[float],
        jumps: list[float | None] | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        times = [*grid, 0.0]
        if not grid or any(not s < t for t, s in zip(times, times[1:], strict=False)):
            raise ValueError(f"a grid falls strictly and ends above 0, got {grid}")
        self._targets = list(jumps) if jumps is not None else [None] * len(grid)
        self._times = times
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._carried: torch.Tensor | None = None
        self.num_inference_steps = len(grid)
        self._place(None)

    def _place(self, device: str | torch.device | None) -> None:
        scale = float(self.config["num_train_timesteps"])
        self.sigmas = torch.tensor(self._times, dtype=torch.float32)
        self.timesteps = torch.tensor(
            [scale * t for t in self._times[:-1]], dtype=torch.float32, device=device
        )

    @property
    def step_index(self) -> int | None:
        """The number of the next step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The step to begin at, where a pipeline said so."""
        return self._begin_index

    @property
    def init_noise_sigma(self) -> float:
        """The deviation of the noise to begin with."""
        return 1.0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says at which step to begin."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """Returns the sample as it is."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Begins a walk.

        Args:
            num_inference_steps: The number of steps, which must be the grid's.
            device: Where the times go.
            sigmas: The grid, or the equal steps that pipelines propose by default.
            mu: A shift that pipelines propose; the grid has its own.
            timesteps: Not taken.

        Raises:
            ValueError: If another number of steps or another grid is asked for.
        """
        count = len(self._times) - 1
        grid = f"this student walks {count} steps, {[round(t, 6) for t in self._times]}"
        proposed = [float(sigma) for sigma in sigmas] if sigmas is not None else None
        asked = len(proposed) if proposed is not None else num_inference_steps
        if asked is not None and asked != count:
            raise ValueError(f"{grid}, not {asked}; pass num_inference_steps={count}")
        equal = [1 - i / count for i in range(count)]
        if timesteps is not None or not (
            proposed is None
            or any(
                all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(proposed, own, strict=True))
                for own in (equal, self._times[:-1])
            )
        ):
            raise ValueError(f"{grid}, and no other times; leave sigmas and timesteps out")
        self._place(device)
        self._step_index = self._begin_index = self._carried = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor]:
        """Takes a step.

        Args:
            model_output: The velocity.
            timestep: One of ``timesteps``.
            sample: The sample at that time.
            generator: The source of the noise of steps that renoise; the global one by default.
            return_dict: Whether to return an object in place of a tuple.
        """
        if self._step_index is None:
            self._step_index = self._begin_index
        if self._step_index is None:
            near = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
            self._step_index = int(near.argmin())
        i = self._step_index
        x = sample.float()
        if self._carried is not None and torch.equal(self._carried.to(sample.dtype), sample):
            x = self._carried
        t, s, end = self._times[i], self._times[i + 1], self._targets[i]
        v = model_output.float()
        if end is None or end == s:
            x = x + (s - t) * v
        else:
            x = x + (end - t) * v
            kept = (1 - s) / (1 - end)
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = kept * x + math.sqrt(s**2 - (kept * end) ** 2) * noise
        self._carried = x
        self._step_index += 1
        out = x.to(model_output.dtype)
        if not return_dict:
            return (out,)
        made: Any = out
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=made)

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Diffuses clean samples to times of the walk."""
        t = (timestep.to(sample.device) / self.config["num_train_timesteps"]).to(sample.dtype)
        t = t.reshape(-1, *(1,) * (sample.ndim - 1))
        return (1 - t) * sample + t * noise

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **more: Any) -> None:
        """Saves the configuration with this file, so that the copy loads too."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **more)
        shutil.copy(__file__, Path(save_directory) / f"{type(self).__module__}.py")

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
