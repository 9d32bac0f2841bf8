r"""Steps between two times: along the probability flow, at random, and diffusing forward.

.. math::
    x_s = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon \quad (s < t), \qquad
    x_s = \mathbb E[x_s | x_t] + \frac{\sigma_{t|s} \sigma_s}{\sigma_t} \varepsilon, \qquad
    x_t = \alpha_{t|s} x_s + \sigma_{t|s} \varepsilon .
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.arguments import check_instance, checked
from pdmd.diffusion.checks import check_latents, check_times, check_transition
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.schedules import Schedule
from pdmd.diffusion.timesteps import as_times
from pdmd.randomness import randn_like
from pdmd.typing import Latents, Times, expand, moved

__all__ = [
    "diffuse",
    "ode_step",
    "posterior_mean",
    "renoise_step",
    "stochastic_step",
    "transition_noise",
]


def ode_step(prediction: Prediction, s: Times) -> Latents:
    r"""Steps from :math:`x_t` to a cleaner time along the probability flow.

    .. math:: x_s = \alpha_s \hat x_0 + \sigma_s \hat\varepsilon

    A DDIM step; on rectified flow an Euler step, :math:`x_s = x_t + (s - t) v`.

    Args:
        prediction: A prediction at time :math:`t`, with a value of shape :math:`(B, *)`.
        s: The time to step to, a float or a tensor with shape :math:`(B)`.

    Returns:
        Latents at time :math:`s`, with shape :math:`(B, *)`, in float32 or wider.

    Raises:
        TypeError: If the prediction or the time is something else.
        ValueError: If the time is outside [0, 1], or not one for all samples or for each.

    References:
        Song et al., DDIM, arXiv:2010.02502, Eq. 12.
    """
    if not isinstance(prediction, Prediction):  # in every step: cheaper than checking all
        raise TypeError(
            f"ode_step takes a Prediction, got {prediction!r:.60}; pass a denoiser's output"
        )
    check_times("s", s, len(prediction.x_t))
    if isinstance(s, float):
        return prediction.combine_at(("step", s), lambda t: prediction.schedule(s))
    alpha_s, sigma_s = prediction.schedule(moved(as_times(s), prediction.x_t.device))
    return prediction.combine(alpha_s, sigma_s)


def diffuse(x_s: Latents, epsilon: Latents, s: Times, t: Times, schedule: Schedule) -> Latents:
    r"""Diffuses :math:`x_s` to time :math:`t` with the given noise.

    .. math:: x_t = \alpha_{t|s} x_s + \sigma_{t|s} \varepsilon

    Args:
        x_s: Latents at time :math:`s`, with shape :math:`(B, *)`.
        epsilon: Standard normal noise, with the shape of ``x_s``.
        s: Starting time in :math:`[0, 1)`.
        t: Final time in :math:`(s, 1]`.
        schedule: The forward process.

    Returns:
        Latents at time :math:`t`, with shape :math:`(B, *)`.

    Raises:
        TypeError: If a tensor or a time is something else.
        ValueError: If :math:`s \geq t` anywhere, or shapes do not belong together.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 3.2.
    """
    check_transition(x_s, epsilon, s, t)
    check_instance("schedule", schedule, Schedule)
    a, b = schedule.transition(s, t)
    return expand(a, x_s) * x_s + expand(b, x_s) * epsilon


@checked
def renoise_step(
    x_s: Latents,
    s: Times,
    t: Times,
    schedule: Schedule,
    generator: torch.Generator | None = None,
) -> Latents:
    r"""Diffuses :math:`x_s` to time :math:`t` with noise drawn from ``generator``.

    Args:
        x_s: Latents at time :math:`s`, with shape :math:`(B, *)`.
        s: Starting time in :math:`[0, 1)`.
        t: Final time in :math:`(s, 1]`.
        schedule: The forward process.
        generator: The source of randomness.

    Returns:
        Latents at time :math:`t`, with shape :math:`(B, *)`.

    Raises:
        TypeError: If a tensor or a time is something else.
        ValueError: If :math:`s \geq t` anywhere.
    """
    check_latents("x_s", x_s)
    return diffuse(x_s, randn_like(x_s, generator), s, t, schedule)


def transition_noise(prediction: Prediction, s: Times) -> Latents:
    r"""Returns the prediction of the noise of a transition.

    .. math:: \mathbb E[\varepsilon | x_t] = -b \nabla \log p_t(x_t) = \frac{b}{\sigma_t}
        \hat\varepsilon, \qquad x_t = a x_s + b \varepsilon

    Args:
        prediction: A prediction at :math:`x_t`, with a value of shape :math:`(B, *)`.
        s: The time of :math:`x_s`, with shape :math:`()` or :math:`(B)`.

    Returns:
        The noise, with shape :math:`(B, *)`, in float32 or wider.

    Raises:
        ValueError: If :math:`s \geq t` anywhere.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684, Section 3.2.
    """
    check_instance("prediction", prediction, Prediction)
    schedule, t = prediction.schedule, as_times(prediction.t)
    _, b = schedule.transition(s, t)
    return expand(b / schedule(t)[1], prediction.x_t) * prediction.to("epsilon")


def posterior_mean(prediction: Prediction, s: Times) -> Latents:
    r"""Returns the posterior mean :math:`\mathbb E[x_s | x_t] = (x_t + b^2 S) / a`.

    Computed as :math:`\alpha_s \hat x_0 + (a \sigma_s^2 / \sigma_t) \hat\varepsilon`, which does
    not divide by :math:`a`, and equals :math:`\hat x_0` at :math:`s = 0` to the bit.

    Args:
        prediction: A prediction at time :math:`t`, with a value of shape :math:`(B, *)`.
        s: The cleaner time.

    Returns:
        The posterior mean, with shape :math:`(B, *)`, in float32 or wider.

    Raises:
        ValueError: If :math:`s \geq t` anywhere.

    References:
        Efron, Tweedie's formula and selection bias, JASA 106, 2011, for this transition.
    """

    def coefficients(t: Tensor) -> tuple[Tensor, Tensor]:
        a, _ = prediction.schedule.transition(s, t)
        alpha_s, sigma_s = prediction.schedule(moved(s, t.device) if isinstance(s, Tensor) else s)
        _, sigma_t = prediction.schedule(t)
        return alpha_s, a * sigma_s.square() / sigma_t

    if isinstance(s, float):
        return prediction.combine_at(("posterior mean", s), coefficients)
    return prediction.combine(*coefficients(as_times(prediction.t)))


def stochastic_step(
    prediction: Prediction, s: float, generator: torch.Generator | None = None
) -> Latents:
    r"""Steps from :math:`x_t` to a cleaner time along the reverse process, at random.

    .. math:: x_s = \mathbb E[x_s | x_t] + \frac{b \, \sigma_s}{\sigma_t} \varepsilon

    In many small steps the samples have the marginals of the probability flow if the predictions
    are the scores of one law at all times. Under guidance they are not, and the samples differ.

    Args:
        prediction: A prediction at time :math:`t`, with a value of shape :math:`(B, *)`.
        s: The time to step to, in :math:`[0, t)`.
        generator: The source of randomness.

    Returns:
        Latents at time :math:`s`, with shape :math:`(B, *)`, in float32 or wider.

    Raises:
        TypeError: If the prediction is something else.
        ValueError: If :math:`s \geq t` anywhere.

    References:
        Ho et al., DDPM, arXiv:2006.11239, Eqs. 6-7, between any two times.
    """
    check_instance("prediction", prediction, Prediction)
    schedule, t = prediction.schedule, as_times(prediction.t)
    _, b = schedule.transition(s, t)
    mean = posterior_mean(prediction, s)
    std = b * schedule(s)[1] / schedule(t)[1]
    return mean + expand(std, mean) * randn_like(mean, generator)
