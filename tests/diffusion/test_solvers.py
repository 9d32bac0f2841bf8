import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import RectifiedFlow
from pdmd.diffusion.predictions import KINDS, Prediction
from pdmd.diffusion.solvers import (
    diffuse,
    ode_step,
    posterior_mean,
    renoise_step,
    stochastic_step,
    transition_noise,
)
from tests.helpers.gaussians import gaussian
from tests.helpers.strategies import ordered_times, schedules, seeds


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(st.floats(0.01, 1), st.floats(0, 1))
def test_the_step_on_rectified_flow_is_eulers(t, s):
    x_t, v = normal(2, 4, 3)
    prediction = Prediction(value=v, kind="velocity", x_t=x_t, t=t, schedule=RectifiedFlow())
    torch.testing.assert_close(ode_step(prediction, s), x_t + (s - t) * v)


@given(schedules, ordered_times(), seeds)
def test_the_step_follows_a_straight_trajectory_exactly(schedule, pair, seed):
    """x_s = alpha_s x_0 + sigma_s epsilon, with the x_0 and epsilon of x_t."""
    s, t = pair
    x_0, epsilon = normal(2, 4, 3, seed=seed)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    x_t = alpha_t * x_0 + sigma_t * epsilon
    prediction = Prediction(value=x_0, kind="x0", x_t=x_t, t=t, schedule=schedule)
    expected = alpha_s * x_0 + sigma_s * epsilon
    torch.testing.assert_close(ode_step(prediction, s), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_of_a_gaussian_converges_at_first_order(kind):
    """x_s - alpha_s m = sqrt(v_s / v_t) (x_t - alpha_t m), by regression of the error."""
    teacher, x = gaussian([0.5], 0.6, RectifiedFlow(), kind), normal(6, 1)

    def error(steps):
        y = x
        for i in range(steps):
            t, s = (0.9 - 0.5 * j / steps for j in (i, i + 1))
            y = ode_step(teacher(y, t), s)
        v_t, v_s = (((1 - t) * 0.6) ** 2 + t**2 for t in (0.9, 0.4))
        return float((y - 0.6 * 0.5 - (v_s / v_t) ** 0.5 * (x - 0.1 * 0.5)).abs().max())

    errors = torch.tensor([error(n) for n in (32, 64, 128)]).log2()
    assert float(errors[0] - errors[2]) / 2 == pytest.approx(1, abs=0.1)


@given(schedules, ordered_times(), seeds)
def test_a_stochastic_step_keeps_the_marginal_of_a_known_sample(schedule, pair, seed):
    """Var[x_s | x_0] = (a sigma_s^2 / sigma_t)^2 + (b sigma_s / sigma_t)^2 = sigma_s^2."""
    s, t = pair
    assume(s < t)
    x_0, epsilon = normal(1, 3, seed=seed), normal(1, 3, seed=seed + 1)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)

    def step(noise):
        x_t = alpha_t * x_0 + sigma_t * noise
        prediction = Prediction(value=x_0, kind="x0", x_t=x_t, t=t, schedule=schedule)
        mean = posterior_mean(prediction, s)
        drawn = stochastic_step(prediction, s, torch.Generator().manual_seed(seed))
        return mean, (drawn - mean) / normal(1, 3, seed=seed)

    (mean, std), (moved, same) = step(torch.zeros_like(epsilon)), step(epsilon)
    torch.testing.assert_close(mean, alpha_s * x_0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(same, std, rtol=1e-5, atol=1e-7)
    variance = ((moved - mean) / epsilon) ** 2 + std**2
    torch.testing.assert_close(variance, sigma_s**2 * torch.ones_like(std), rtol=1e-5, atol=1e-9)


def test_a_stochastic_step_to_no_later_time_raises():
    prediction = gaussian([0.5], 0.6, RectifiedFlow())(normal(2, 1), 0.5)
    with pytest.raises(ValueError, match="noisier"):
        stochastic_step(prediction, 0.5)
    with pytest.raises(TypeError, match="prediction"):
        stochastic_step(prediction.value, 0.2)


@given(schedules, ordered_times())
def test_diffusion_has_the_mean_and_variance_of_the_transition(schedule, pair):
    s, t = pair
    assume(s < t)
    a, b = schedule.transition(s, t)
    x_s, epsilon = normal(2, 4, 3)
    torch.testing.assert_close(diffuse(x_s, epsilon, s, t, schedule), a * x_s + b * epsilon)


def test_times_may_differ_between_samples():
    x_s, epsilon = normal(2, 2, 3)
    t = torch.tensor([0.5, 0.9], dtype=torch.float64)
    both = diffuse(x_s, epsilon, 0.2, t, RectifiedFlow())
    for i in range(2):
        alone = diffuse(x_s[i : i + 1], epsilon[i : i + 1], 0.2, float(t[i]), RectifiedFlow())
        assert torch.equal(both[i : i + 1], alone)


def test_renoising_draws_its_noise_from_the_generator():
    x_s, schedule = normal(4, 3), RectifiedFlow()
    generator = torch.Generator().manual_seed(7)
    x_t = renoise_step(x_s, 0.2, 0.8, schedule, generator)
    assert torch.equal(x_t, diffuse(x_s, normal(4, 3, seed=7), 0.2, 0.8, schedule))
    with pytest.raises(ValueError, match="noisier"):
        renoise_step(x_s, 0.8, 0.2, schedule, generator)


@given(st.floats(0, 0.9), st.floats(0.02, 0.1), st.sampled_from(["x0", "epsilon", "velocity"]))
def test_the_noise_of_a_transition_is_that_of_the_score(s, gap, kind):
    schedule, t = RectifiedFlow(), s + gap
    value, x_t = normal(2, 4), normal(2, 4, seed=1)
    prediction = Prediction(value=value, kind=kind, x_t=x_t, t=t, schedule=schedule)
    _, b = schedule.transition(s, t)
    torch.testing.assert_close(transition_noise(prediction, s), -b * prediction.to("score"))
