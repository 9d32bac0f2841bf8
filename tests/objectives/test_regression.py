import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import MixtureTeacher, MlpDenoiser, Phase, RectifiedFlow, Shifted
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import KINDS, Prediction
from pdmd.diffusion.schedules import shift_times
from pdmd.diffusion.solvers import ode_step
from pdmd.objectives import Models, Rollout
from pdmd.objectives.regression import (
    PseudoHuber,
    Squared,
    TrajectoryRegression,
    VelocityRegression,
    average_prediction,
    flow,
)
from tests.helpers.strategies import mixtures, ordered_times, schedules, seeds, teacher_of

PHASE = Phase(index=0, timesteps=(0.9, 0.7), t_end=0.4, score_range=(0.4, 1.0))


def normal(n, dim, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, dim, generator=generator, dtype=torch.float64)
    return x[0] if count == 1 else x


def gaussian(mean=0.5, std=0.6, schedule=None, kind="velocity"):
    means = torch.tensor([[mean]], dtype=torch.float64)
    return MixtureTeacher(means, std, schedule=schedule, kind=kind)


def rollout_of(x_s, phase_input, phase=PHASE):
    return Rollout(x_s=x_s, condition=None, phase=phase, phase_input=phase_input)


def models_of(real, generator=None):
    return Models(real=real, fake=real, expert=generator or real)


@given(schedules, st.sampled_from(KINDS), ordered_times(), seeds)
def test_one_step_with_the_average_prediction_ends_at_its_target(schedule, kind, pair, seed):
    r, t = pair
    assume(r + 0.01 < t)
    x_t, x_r = normal(5, 3, seed, count=2)
    value = average_prediction(x_t, x_r, t, r, schedule, kind)
    prediction = Prediction(value=value, kind=kind, x_t=x_t, t=t, schedule=schedule)
    torch.testing.assert_close(ode_step(prediction, r), x_r, rtol=1e-7, atol=1e-7)


@given(schedules, st.sampled_from(KINDS), ordered_times(), mixtures(), seeds)
def test_over_one_step_the_average_is_the_teachers_prediction(schedule, kind, pair, mixture, seed):
    r, t = pair
    assume(r + 0.05 < t)
    teacher = teacher_of(mixture, schedule, kind)
    x_t = normal(4, mixture["means"].shape[1], seed)
    value = average_prediction(x_t, flow(teacher, x_t, t, r, None, 1), t, r, schedule, kind)
    torch.testing.assert_close(value, teacher(x_t, t).value, rtol=1e-5, atol=1e-5)


def test_on_rectified_flow_the_average_prediction_is_the_average_velocity():
    x_t, x_r = normal(4, 3, count=2)
    value = average_prediction(x_t, x_r, 0.9, 0.4, RectifiedFlow(), "velocity")
    torch.testing.assert_close(value, (x_t - x_r) / 0.5)


@pytest.mark.parametrize("kind", ["velocity", "x0", "epsilon"])
def test_the_flow_converges_to_the_gaussians_at_first_order(kind):
    schedule = RectifiedFlow()
    teacher, x_t = gaussian(kind=kind), normal(6, 1)
    (alpha_t, sigma_t), (alpha_r, sigma_r) = schedule(0.9), schedule(0.4)
    v_t = alpha_t**2 * 0.36 + sigma_t**2
    v_r = alpha_r**2 * 0.36 + sigma_r**2
    exact = alpha_r * 0.5 + (v_r / v_t).sqrt() * (x_t - alpha_t * 0.5)
    errors = [
        float((flow(teacher, x_t, 0.9, 0.4, None, n) - exact).abs().max()) for n in (64, 128)
    ]
    assert errors[1] < 4e-3
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_the_gradient_of_trajectory_regression_is_the_difference_to_the_teachers_flow():
    teacher, phase_input = gaussian(), normal(6, 1)
    x_s = normal(6, 1, seed=1).requires_grad_(True)
    objective = TrajectoryRegression(steps=3)
    loss = objective.losses(models_of(teacher), rollout_of(x_s, phase_input), torch.Generator())
    assert loss["trajectory_regression"].dtype == torch.float32
    loss["trajectory_regression"].backward()
    target = flow(teacher, phase_input, 0.9, 0.4, None, 3)
    torch.testing.assert_close(x_s.grad, 2 * (x_s.detach() - target) / 6)


def test_trajectory_regression_vanishes_only_on_the_teachers_flow():
    teacher, phase_input = gaussian(), normal(6, 1)
    objective = TrajectoryRegression(steps=3, distance=PseudoHuber())
    target = flow(teacher, phase_input, 0.9, 0.4, None, 3)
    for shift, zero in ((0.0, True), (0.1, False)):
        rollout = rollout_of(target + shift, phase_input)
        (loss,) = objective.losses(models_of(teacher), rollout, torch.Generator()).values()
        assert (float(loss) == 0) == zero


@pytest.mark.parametrize("distance", [Squared(), PseudoHuber(0.3)])
def test_gradients_of_distances_are_their_finite_differences(distance):
    x, y = normal(3, 4, count=2)
    assert torch.autograd.gradcheck(lambda x: distance(x, y), x.requires_grad_(True))


@given(st.integers(1, 5), st.floats(0.01, 2), seeds)
def test_distances_are_invariant_to_the_number_of_dimensions(copies, c, seed):
    x, y = normal(3, 4, seed, count=2)
    for distance in (Squared(), PseudoHuber(c)):
        repeated = distance(x.repeat(1, copies), y.repeat(1, copies))
        torch.testing.assert_close(repeated, distance(x, y))


def test_pseudo_huber_is_quadratic_when_small_and_linear_when_large():
    y, distance = torch.zeros(1, 4, dtype=torch.float64), PseudoHuber(0.1)
    small, large = y + 1e-4, y + 1e4
    torch.testing.assert_close(distance(small, y), Squared()(small, y) / 0.2, rtol=1e-4, atol=0)
    torch.testing.assert_close(distance(large, y), y[:, 0] + 1e4, rtol=1e-4, atol=0)


class Gain(Denoiser):
    """Velocity w x_t."""

    def __init__(self, w):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(1,))
        self.w = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def network(self, x_t, t, condition):
        return self.w * x_t


def test_the_gradient_of_velocity_regression_has_its_closed_form_and_reaches_only_the_generator():
    phase_input, teacher, generator = normal(6, 1), Gain(0.7), Gain(0.2)
    objective = VelocityRegression(anchor=0.5, steps=2)
    rollout = rollout_of(normal(6, 1, seed=1), phase_input)
    losses = objective.losses(models_of(teacher, generator), rollout, torch.Generator())
    losses["velocity_regression"].backward()
    x_r = phase_input * (1 - 0.2 * 0.7) ** 2  # two Euler steps of 0.2 with velocity 0.7 x
    target = (phase_input - x_r) / 0.4
    residual = 0.2 * phase_input - target
    torch.testing.assert_close(losses["velocity_regression"], residual.square().mean().float())
    torch.testing.assert_close(generator.w.grad, (2 * phase_input * residual).mean())
    assert teacher.w.grad is None


@given(schedules, mixtures(), seeds)
def test_velocity_regression_is_invariant_to_the_prediction_kind(schedule, mixture, seed):
    phase_input = normal(5, mixture["means"].shape[1], seed)
    other = {**mixture, "means": mixture["means"] + 0.3}
    losses = []
    for kind in KINDS:
        real, generator = (teacher_of(m, schedule, kind) for m in (mixture, other))
        rollout = rollout_of(phase_input, phase_input)
        losses += (
            VelocityRegression()
            .losses(models_of(real, generator), rollout, torch.Generator())
            .values()
        )
    torch.testing.assert_close(torch.stack(losses), losses[0].expand(5), rtol=1e-4, atol=1e-9)


@given(st.floats(0.3, 8), seeds)
def test_velocity_regression_is_invariant_to_a_shift_of_time(shift, seed):
    phase_input = normal(5, 1, seed)
    losses = []
    for schedule in (RectifiedFlow(), Shifted(RectifiedFlow(), shift)):
        times = [0.9, 0.4]
        if isinstance(schedule, Shifted):  # times of equal log-SNR
            times = shift_times(torch.tensor(times, dtype=torch.float64), 1 / shift).tolist()
        phase = Phase(index=0, timesteps=(times[0],), t_end=times[1], score_range=(times[1], 1.0))
        real, generator = gaussian(0.0, 0.6, schedule), gaussian(1.0, 0.6, schedule)
        rollout = rollout_of(phase_input, phase_input, phase)
        objective = VelocityRegression(steps=1)
        losses += objective.losses(models_of(real, generator), rollout, torch.Generator()).values()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_both_regressions_of_a_one_step_student_are_proportional():
    """x_s is affine in the prediction, so that the losses differ by a factor."""
    torch.manual_seed(0)
    phase = Phase(index=0, timesteps=(0.9,), t_end=0.4, score_range=(0.4, 1.0))
    generator, teacher = MlpDenoiser.rectified_flow(dim=1, width=8).double(), gaussian()
    phase_input = normal(6, 1)
    gradients = []
    for objective in (TrajectoryRegression(), VelocityRegression()):
        x_s = ode_step(generator(phase_input, 0.9), 0.4)
        losses = objective.losses(
            models_of(teacher, generator), rollout_of(x_s, phase_input, phase), torch.Generator()
        )
        (loss,) = losses.values()
        gradients.append(torch.autograd.grad(loss, list(generator.layers.parameters())))
    for of_output, of_prediction in zip(*gradients, strict=True):
        torch.testing.assert_close(of_output, 0.5**2 * of_prediction)


def test_the_teacher_is_evaluated_within_the_phase():
    times = []
    teacher = gaussian()
    teacher.register_forward_pre_hook(lambda module, args: times.append(float(args[1])))
    for objective in (TrajectoryRegression(3), VelocityRegression(0.5, 3)):
        times.clear()
        x = normal(2, 1)
        models = models_of(teacher, gaussian())
        objective.losses(models, rollout_of(x, x), torch.Generator())
        assert (min(times), max(times)) == objective.time_bounds(PHASE)
        assert PHASE.t_end < min(times) < max(times) == PHASE.t_start


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        TrajectoryRegression(0)
    with pytest.raises(ValueError, match="got 1.0"):
        VelocityRegression(anchor=1.0)
    with pytest.raises(ValueError, match=r"anchor 0.3 is not within phase 1.*\.only\(1\)"):
        VelocityRegression(anchor=0.3).time_bounds(PHASE)
    with pytest.raises(ValueError, match="got 0"):
        PseudoHuber(0)
    x = normal(2, 1)
    with pytest.raises(ValueError, match="rollout.phase_input is None"):
        TrajectoryRegression().losses(
            models_of(gaussian()), rollout_of(x, None), torch.Generator()
        )
