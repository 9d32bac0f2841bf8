r"""A scheduler with a student's timesteps, for pipelines of its family.

This file is exported beside a student's weights and depends on diffusers only. On rectified flow a
step is an Euler step :math:`x_s = x_t + (s - t) v`. On another schedule, whose
:math:`\alpha_t` and :math:`\sigma_t` its configuration states, the network predicts
:math:`v = \alpha_t \varepsilon - \sigma_t x_0` and a step is one of DDIM:

.. math:: \hat x_0 = \alpha_t x_t - \sigma_t v, \quad
    \hat\varepsilon = \sigma_t x_t + \alpha_t v, \quad
    x_s = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon.

Between two steps of a renoising phase, it goes to the phase's end :math:`e` and diffuses back with
fresh noise, :math:`x_s = \alpha_{s|e} x_e + \sigma_{s|e} \varepsilon`.
"""

import inspect
import math
import shutil
import warnings
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

GUIDED = (
    "this student has its guidance within, and the pipeline guides it again, which changes its "
    "samples; pass {}, as the lines of its card do"
)


class PhasedScheduler(SchedulerMixin, ConfigMixin):
    """Steps through the timesteps in its configuration, whatever a pipeline proposes.

    Between steps the sample is kept in float32, provided the pipeline passes back what it got.

    Args:
        grid: The timesteps, decreasing from 1; the last step ends at 0.
        renoise_from: For each step the end of its phase if it renoises, else ``None``; by default
            no step renoises.
        num_train_timesteps: The factor by which pipelines multiply times.
        time_offset: The network's time at 0.
        coefficients: For each timestep, and for 0, its alpha and sigma with their squares' sum 1,
            for networks of v-prediction; by default those of rectified flow, for velocities.
        unguided: The pipeline's arguments that turn guidance off, named in a warning if it guides;
            by default it is not examined.
    """

    order = 1
    # A saved copy is found under this file's name.
    __module__ = __name__.rpartition(".")[2]

    @register_to_config
    def __init__(
        self,
        grid: list[float],
        renoise_from: list[float | None] | None = None,
        num_train_timesteps: int = 1000,
        time_offset: float = 0.0,
        coefficients: list[list[float]] | None = None,
        unguided: dict[str, float] | None = None,
    ) -> None:
        times = [*grid, 0.0]
        if not grid or any(not s < t for t, s in zip(times, times[1:], strict=False)):
            raise ValueError(
                f"expected timesteps that strictly decrease and end above 0, got {grid}"
            )
        self._renoise_from = list(renoise_from) if renoise_from is not None else [None] * len(grid)
        flow = [[1 - t, t] for t in times]
        self._coefficients = flow if coefficients is None else [list(c) for c in coefficients]
        if [len(c) for c in self._coefficients] != [2] * len(times):
            raise ValueError(f"expected alpha and sigma at {len(times)} times, got {coefficients}")
        self._times = times
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._sample: torch.Tensor | None = None
        self.num_inference_steps = len(grid)
        self._set_device(None)

    def _set_device(self, device: str | torch.device | None) -> None:
        scale, zero = (float(self.config[k]) for k in ("num_train_timesteps", "time_offset"))
        self.sigmas = torch.tensor(self._times, dtype=torch.float32)
        self.timesteps = torch.tensor(
            [scale * t + zero for t in self._times[:-1]], dtype=torch.float32, device=device
        )

    @property
    def step_index(self) -> int | None:
        """The index of the next step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The index of the first step, if a pipeline set it."""
        return self._begin_index

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the initial noise."""
        return 1.0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index of the first step."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """Returns the sample unchanged."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Resets to the first step, and warns if the pipeline guides.

        Args:
            num_inference_steps: The number of steps, which must match the configuration.
            device: The device of the timesteps.
            sigmas: The configured timesteps, or the uniform ones that pipelines pass by default.
            mu: A shift that pipelines pass; it has no effect.
            timesteps: Not supported.

        Raises:
            ValueError: If another number of steps or other timesteps are requested.
        """
        count = len(self._times) - 1
        grid = f"this student has {count} steps, {[round(t, 6) for t in self._times]}"
        proposed = [float(sigma) for sigma in sigmas] if sigmas is not None else None
        requested = len(proposed) if proposed is not None else num_inference_steps
        if requested is not None and requested != count:
            raise ValueError(f"{grid}, not {requested}; pass num_inference_steps={count}")
        equal = [1 - i / count for i in range(count)]
        if timesteps is not None or not (
            proposed is None
            or any(
                all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(proposed, own, strict=True))
                for own in (equal, self._times[:-1])
            )
        ):
            raise ValueError(f"{grid}, and no other times; leave sigmas and timesteps out")
        self._set_device(device)
        self._step_index = self._begin_index = self._sample = None
        if self.config["unguided"]:
            self._warn_of_guidance(self.config["unguided"])

    def _warn_of_guidance(self, unguided: dict[str, float]) -> None:
        """Warns if the pipeline that calls guides, of which it tells its scheduler nothing."""
        frame = inspect.currentframe()
        for depth in range(4):  # a pipeline calls itself, or by a function
            call = frame.f_locals if frame is not None else {}
            if getattr(call.get("self"), "scheduler", None) is self:
                if _guides(call, unguided):
                    off = ", ".join(f"{name}={value:g}" for name, value in unguided.items())
                    warnings.warn(GUIDED.format(off), stacklevel=depth + 3)
                return
            frame = frame.f_back if frame is not None else None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[torch.Tensor]:
        """Steps from one time to the next.

        Args:
            model_output: The velocity, or the v-prediction on another schedule.
            timestep: One of ``timesteps``.
            sample: The sample at that time.
            generator: The generator of renoising steps; the global one by default.
            return_dict: Whether to return an object instead of a tuple.
        """
        if self._step_index is None:
            self._step_index = self._begin_index
        if self._step_index is None:
            near = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
            self._step_index = int(near.argmin())
        i = self._step_index
        x = sample.float()
        if self._sample is not None and torch.equal(self._sample.to(sample.dtype), sample):
            x = self._sample
        s, end = self._times[i + 1], self._renoise_from[i]
        v = model_output.float()
        if end is None or end == s:
            x = self._moved(x, v, i, i + 1)
        else:
            last = min(range(len(self._times)), key=lambda j: abs(self._times[j] - end))
            x = self._moved(x, v, i, last)
            (alpha_s, sigma_s), (alpha, sigma) = (self._coefficients[j] for j in (i + 1, last))
            kept = alpha_s / alpha
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = kept * x + math.sqrt(sigma_s**2 - (kept * sigma) ** 2) * noise
        self._sample = x
        self._step_index += 1
        out = x.to(model_output.dtype)
        if not return_dict:
            return (out,)
        previous: Any = out
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=previous)

    def _moved(self, x: torch.Tensor, v: torch.Tensor, i: int, j: int) -> torch.Tensor:
        """Steps along the flow from one of the times to another."""
        if self.config["coefficients"] is None:
            return x + (self._times[j] - self._times[i]) * v
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (self._coefficients[k] for k in (i, j))
        return alpha_s * (alpha_t * x - sigma_t * v) + sigma_s * (sigma_t * x + alpha_t * v)

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Diffuses clean samples to given timesteps.

        Raises:
            ValueError: On another schedule than rectified flow.
        """
        if self.config["coefficients"] is not None:
            raise ValueError("this student starts from noise, and diffuses no samples")
        t = (timestep.to(sample.device) / self.config["num_train_timesteps"]).to(sample.dtype)
        t = t.reshape(-1, *(1,) * (sample.ndim - 1))
        return (1 - t) * sample + t * noise

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Does as :meth:`scale_noise`, under the name that other pipelines call.

        Raises:
            ValueError: On another schedule than rectified flow.
        """
        return self.scale_noise(original_samples, timesteps, noise)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **more: Any) -> None:
        """Saves the configuration and this file, so that the copy can be loaded."""
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **more)
        shutil.copy(__file__, Path(save_directory) / f"{type(self).__module__}.py")

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _guides(call: Any, unguided: dict[str, float]) -> bool:
    """Returns whether a pipeline evaluates without the prompt too, by its call's variables."""
    for name in ("do_true_cfg", "do_classifier_free_guidance"):
        if name in call:
            return bool(call[name])
    stated = getattr(call["self"], "do_classifier_free_guidance", None)
    if stated is None and "guidance_scale" in unguided:
        stated = (call.get("guidance_scale") or 0.0) > 1
    return bool(stated)
