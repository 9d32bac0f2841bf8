r"""Noise levels of models trained on a discrete process, and the time that their networks take.

A DDPM of :math:`N` levels (1000 nearly everywhere) is trained on
:math:`x_i = \sqrt{\bar\alpha_i} x_0 + \sqrt{1 - \bar\alpha_i} \varepsilon` for whole :math:`i`
from 0 to :math:`N - 1`, and its network takes :math:`i`. Here level :math:`i` is at
:math:`t = (i + 1) / N` (:class:`~pdmd.diffusion.variance_preserving.DiscreteVP`), so that the
network is evaluated at

.. math:: i = N t - 1,

a number that need not be whole: the sinusoids that embed it are smooth, and between levels the
schedule is linear in log-SNR, so time and noise agree. The network is trained on
:math:`t \in [1/N, 1]`.

At :math:`t = 1` most of these models have some signal left, :math:`\bar\alpha_{N-1} > 0`. Sampling
starts there from noise of standard deviation 1, as in their own samplers; it has the law of a
sample of unit variance at that level, but for a correlation of :math:`\sqrt{\bar\alpha_{N-1}}`
(0.068 for Stable Diffusion) with the clean sample.

References:
    Ho et al., Denoising Diffusion Probabilistic Models, arXiv:2006.11239.
    Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv:2305.08891.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pdmd.diffusion.predictions import Kind
from pdmd.diffusion.variance_preserving import DiscreteVP
from pdmd.extras import require
from pdmd.teachers.families.pipelines import configuration

__all__ = [
    "LINEAR",
    "SCALED_LINEAR",
    "check_channels",
    "noise_levels",
    "own_size",
    "read_levels",
    "time_range_of",
    "timestep_of",
]

KINDS: dict[str, Kind] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "x0",
}
"""diffusers' names of kinds of prediction, and ours."""

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
"""The noise levels of DDPM and DiT."""

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The noise levels of Stable Diffusion and SDXL."""

BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def noise_levels(
    config: Mapping[str, Any], where: str = "the scheduler"
) -> tuple[DiscreteVP, Kind]:
    """Returns the schedule and the kind of prediction that a scheduler of diffusers states.

    Args:
        config: The scheduler's configuration, of any class with betas.
        where: Its name in errors.

    Raises:
        ValueError: If it states no betas, as those of flows and of EDM do, or a prediction that is
            not of this family.
    """
    require("diffusers", "diffusers")
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    if not any(key in config for key in ("beta_schedule", "beta_start", "trained_betas")):
        raise ValueError(
            f"{where} ({config.get('_class_name', 'of no class')}) states no betas: its model is "
            "not of the variance-preserving family; load it with the teacher of its family"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in KINDS:
        raise ValueError(f"prediction_type must be one of {', '.join(KINDS)}, got {prediction!r}")
    shifted = "snr_shift_scale" in config
    stated = {key: config[key] for key in (*BETAS, "snr_shift_scale") if key in config}
    try:
        scheduler: Any = (CogVideoXDDIMScheduler if shifted else DDPMScheduler)(**stated)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"{where} states betas that diffusers does not know: {error}") from error
    return DiscreteVP(scheduler.alphas_cumprod), KINDS[prediction]


def read_levels(
    folder: str | Path, subfolder: str | None = "scheduler"
) -> tuple[DiscreteVP, Kind]:
    """Reads the noise levels of a pipeline.

    Args:
        folder: The pipeline's folder or hub name.
        subfolder: The scheduler's place in it.

    Raises:
        ValueError: As :func:`noise_levels`, or if there is no scheduler.
    """
    config = configuration("DDPMScheduler", folder, subfolder)
    return noise_levels(config, f"the scheduler of {folder}")


def timestep_of(t: Tensor, schedule: DiscreteVP) -> Tensor:
    r"""Returns the network's time :math:`N t - 1` in float32, with shape :math:`(B)`."""
    return (len(schedule.alphas_cumprod) * t.double() - 1).float()


def time_range_of(schedule: DiscreteVP) -> tuple[float, float]:
    """Returns the times of the first and the last level."""
    return 1 / len(schedule.alphas_cumprod), 1.0


def own_size(config: Any, options: Mapping[str, Any], compression: int = 1) -> dict[str, Any]:
    """Returns options with the network's own height and width in place of ``None``.

    Args:
        config: The network's configuration.
        options: ``height``, ``width`` and others.
        compression: Pixels to one latent.

    Raises:
        ValueError: If one is ``None``, and the configuration states no size.
    """
    size = config.sample_size
    if size is None:
        if options["height"] is None or options["width"] is None:
            raise ValueError("the UNet states no sample_size; give height and width")
        return dict(options)
    own = (size, size) if isinstance(size, int) else size
    sides = {
        name: int(side) * compression if options[name] is None else options[name]
        for name, side in zip(("height", "width"), own, strict=True)
    }
    return {**options, **sides}


def check_channels(channels: int, norm_num_groups: int) -> None:
    """Checks that a UNet's channels divide into the groups of its norms.

    Raises:
        ValueError: If they do not.
    """
    if channels < 1 or norm_num_groups < 1 or channels % norm_num_groups:
        raise ValueError(
            f"channels must be a multiple of norm_num_groups, got {channels} and {norm_num_groups}"
        )
