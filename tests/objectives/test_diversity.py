import logging
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd import MixtureTeacher, Phase, PhasePlan, RectifiedFlow
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.solvers import diffuse, ode_step
from pdmd.objectives import Models, Rollout
from pdmd.objectives.diversity import (
    CleanMeans,
    ImpliedClean,
    NoiseSensitivity,
    Outputs,
    Repulsion,
    implied_clean,
    log_mean_kernel,
    pair_distances,
    same_condition,
)
from tests.helpers.strategies import ordered_times, schedules, seeds, teacher_of

LAST = Phase(index=1, timesteps=(0.5,), t_end=0.0, score_range=(0.0, 1.0))
FIRST = PhasePlan.uniform(2)[0]


def normal(n, dim, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, dim, generator=generator, dtype=torch.float64)
    return x[0] if count == 1 else x


def teacher(dim=2):
    return MixtureTeacher(torch.zeros(1, dim), 1.0)


def loss_of(objective, x_s, phase_input=None, phase=LAST, condition=None, real=None):
    real = real or teacher(x_s.shape[1])
    models = Models(real=real, fake=real, expert=real)
    rollout = Rollout(x_s=x_s, condition=condition, phase=phase, phase_input=phase_input)
    (loss,) = objective.losses(models, rollout, torch.Generator()).values()
    return loss


def off_diagonal(n):
    return ~torch.eye(n, dtype=torch.bool)


def test_conditions_are_equal_if_all_their_tensors_are():
    text = torch.zeros(4, 3, 2)
    text[3, 2, 1] = 1e-3
    condition = TensorDict(
        {"label": torch.tensor([1, 1, 2, 1]), "nested": {"text": text}}, batch_size=[4]
    )
    same = same_condition(condition, 4)
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same, expected)
    assert same_condition(None, 3).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.permutations(range(8)))
def test_equality_of_conditions_permutes_with_their_rows(labels, permutation):
    labels, n = torch.tensor(labels), len(labels)
    permutation = torch.tensor([i for i in permutation if i < n])
    same = same_condition(TensorDict({"label": labels}, batch_size=[n]), n)
    assert torch.equal(same, labels[:, None] == labels)
    permuted = same_condition(TensorDict({"label": labels[permutation]}, batch_size=[n]), n)
    assert torch.equal(permuted, same[permutation][:, permutation])


@given(schedules, ordered_times(), seeds)
def test_the_implied_clean_sample_of_a_step_is_its_prediction(schedule, pair, seed):
    s, t = pair
    assume(s + 0.01 < t)
    x_t, x_0 = normal(4, 3, seed, count=2)
    prediction = Prediction(value=x_0, kind="x0", x_t=x_t, t=t, schedule=schedule)
    x_s = ode_step(prediction, s)
    torch.testing.assert_close(implied_clean(x_s, x_t, s, t, schedule), x_0, rtol=1e-6, atol=1e-6)


@given(schedules, ordered_times(3, gap=0.02), seeds)
def test_the_implied_clean_sample_of_two_steps_averages_their_predictions(schedule, times, seed):
    s, u, t = times
    assume(s + 0.02 < u and u + 0.02 < t)
    x_t, first, second = normal(4, 3, seed, count=3)
    x_u = ode_step(Prediction(value=first, kind="x0", x_t=x_t, t=t, schedule=schedule), u)
    x_s = ode_step(Prediction(value=second, kind="x0", x_t=x_u, t=u, schedule=schedule), s)
    implied = implied_clean(x_s, x_t, s, t, schedule)
    gap = first - second
    share = float(((implied - second) * gap).sum() / gap.square().sum())
    torch.testing.assert_close(implied, second + share * gap, rtol=1e-6, atol=1e-6)
    assert -1e-9 < share < 1 + 1e-9


@given(schedules, ordered_times(), seeds)
def test_a_collapsed_student_has_no_distances_between_implied_clean_samples(schedule, pair, seed):
    s, t = pair
    assume(s + 0.05 < t)
    phase = Phase(index=0, timesteps=(t,), t_end=s, score_range=(s, 1.0))
    real = teacher_of(dict(means=torch.zeros(1, 3), stds=0.0, weights=None), schedule, "x0")
    phase_input = normal(5, 3, seed)
    x_s = ode_step(real(phase_input, t), s)  # all clean samples are 0
    rollout = Rollout(x_s=x_s, condition=None, phase=phase, phase_input=phase_input)
    clean, floor = ImpliedClean()(Models(real=real, fake=real, expert=real), rollout)
    assert floor == 0
    assert float(pair_distances(clean).max()) < 1e-12
    assert float(pair_distances(x_s)[off_diagonal(5)].min()) > 0


@pytest.mark.parametrize("s", [0.2, 0.6])
def test_the_floor_is_the_distance_added_by_noise(s):
    """E |x_s - x_s'|^2 / D - floor = alpha_s^2 E |x_0 - x_0'|^2 / D, to four standard errors."""
    real, schedule = MixtureTeacher.random(dim=3, classes=0, modes=4), RectifiedFlow()
    generator = torch.Generator().manual_seed(0)
    x_0 = real.sample(40_000, generator=generator)
    epsilon = torch.randn(x_0.shape, generator=generator)
    phase = Phase(index=0, timesteps=(1.0,), t_end=s, score_range=(s, 1.0))
    rollout = Rollout(x_s=diffuse(x_0, epsilon, 0.0, s, schedule), condition=None, phase=phase)
    x_s, floor = Outputs()(Models(real=real, fake=real, expert=real), rollout)
    noisy = (x_s[::2] - x_s[1::2]).square().mean(1)
    clean = (1 - s) ** 2 * (x_0[::2] - x_0[1::2]).square().mean(1)
    gap = noisy - clean
    assert abs(float(gap.mean()) - floor) < 4 * float(gap.std()) / len(gap) ** 0.5
    assert floor > 40 * float(gap.std()) / len(gap) ** 0.5


def test_posterior_means_are_the_teachers():
    real, x_s = MixtureTeacher(torch.zeros(1, 2), 0.5), normal(4, 2)
    models = Models(real=real, fake=real, expert=real)
    mean, floor = CleanMeans()(models, Rollout(x_s=x_s, condition=None, phase=FIRST))
    gain = 0.5 * 0.25 / (0.25 * 0.25 + 0.25)  # alpha tau^2 / (alpha^2 tau^2 + sigma^2)
    torch.testing.assert_close(mean, gain * x_s)
    assert floor == 0
    at_end, _ = CleanMeans()(models, Rollout(x_s=x_s, condition=None, phase=LAST))
    assert at_end is x_s


def test_the_gradient_of_the_kernel_is_its_finite_difference():
    x, pairs = normal(5, 3).requires_grad_(True), off_diagonal(5)
    pairs[0, 3] = pairs[3, 0] = False
    assert torch.autograd.gradcheck(lambda x: log_mean_kernel(pair_distances(x), pairs, 0.7), x)


def test_the_gradient_of_repulsion_has_its_closed_form():
    """dL/dx_i = -(2 / (D h)) sum_j w_ij (x_i - x_j), with w the pairs' softmax."""
    x = normal(6, 3).requires_grad_(True)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    condition = TensorDict({"label": labels}, batch_size=[6])
    loss_of(Repulsion(Outputs()), x, condition=condition).backward()
    pairs = (labels[:, None] == labels) & off_diagonal(6)
    with torch.no_grad():
        difference = x[:, None] - x
        distances = difference.square().mean(-1)
        h = distances[pairs].median()
        w = torch.where(pairs, (-distances / (2 * h)).exp(), 0.0)
        expected = -(2 / (3 * h)) * ((w / w.sum())[..., None] * difference).sum(1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_repulsion_flows_through_the_implied_clean_sample():
    """At s > 0 the gradient is that of the clean samples over alpha_s - rho alpha_t."""
    phase = Phase(index=1, timesteps=(0.8,), t_end=0.4, score_range=(0.4, 1.0))
    phase_input, x = normal(5, 2, count=2)
    x_s = x.clone().requires_grad_(True)
    loss_of(Repulsion(), x_s, phase_input, phase).backward()
    clean = implied_clean(x, phase_input, 0.4, 0.8, RectifiedFlow()).requires_grad_(True)
    loss_of(Repulsion(Outputs()), clean).backward()
    torch.testing.assert_close(x_s.grad, clean.grad / (0.6 - 0.5 * 0.2))


def test_samples_of_different_conditions_do_not_repel():
    x = normal(4, 2).requires_grad_(True)
    condition = TensorDict({"label": torch.tensor([0, 0, 1, 2])}, batch_size=[4])
    for objective in (Repulsion(Outputs()), NoiseSensitivity()):
        x.grad = None
        loss_of(objective, x, phase_input=normal(4, 2, seed=1), condition=condition).backward()
        assert (x.grad[:2] != 0).all()
        assert torch.equal(x.grad[2:], torch.zeros(2, 2, dtype=torch.float64))


@given(seeds, st.integers(2, 5), st.floats(0.05, 20))
def test_repulsion_is_invariant_to_scale_dimension_and_rotation(seed, copies, scale):
    x, objective = normal(6, 3, seed), Repulsion(Outputs(), min_bandwidth=1e-9)
    loss = loss_of(objective, x)
    rotation, _ = torch.linalg.qr(normal(3, 3, seed + 1))
    for other in (scale * x, x.repeat(1, copies), x @ rotation, x + 3.0):
        torch.testing.assert_close(loss_of(objective, other), loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", [Repulsion(), NoiseSensitivity()])
@pytest.mark.parametrize("phase", [FIRST, LAST])
def test_descent_increases_distances_of_implied_clean_samples(objective, phase):
    phase_input, x = normal(8, 2, count=2)
    x_s = (0.5 * x).requires_grad_(True)
    loss_of(objective, x_s, phase_input, phase).backward()
    schedule = RectifiedFlow()
    before, after = (
        pair_distances(implied_clean(y, phase_input, phase.t_end, phase.t_start, schedule)).mean()
        for y in (x_s.detach(), x_s.detach() - 0.01 * x_s.grad)
    )
    assert after > before


def test_the_gradient_of_a_collapsed_student_is_bounded():
    x = (1e-6 * normal(6, 2)).requires_grad_(True)
    loss_of(Repulsion(Outputs(), min_bandwidth=1e-4), x).backward()
    # |x_i - x_j| is about 1e-6, far below sqrt(min_bandwidth): the gradient decreases with it.
    assert 0 < float(x.grad.abs().max()) < 1e-6 * 10 / 1e-4
    same = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    for objective in (Repulsion(), NoiseSensitivity()):
        loss_of(objective, same, phase_input=normal(3, 2)).backward()
        assert torch.equal(same.grad, torch.zeros_like(same))


def test_the_floor_determines_the_bandwidth_of_pure_noise():
    """Distances below the standard deviation for noise alone are not resolved."""
    x = (0.5 * normal(64, 8)).float()
    d = pair_distances(x)[off_diagonal(64)]
    floor = 2 * 0.25
    h = max(float(d.median()) - floor, floor * math.sqrt(2 / 8))
    expected = float((-d / (2 * h)).exp().mean().log())
    assert math.isclose(
        float(loss_of(Repulsion(Outputs()), x, phase=FIRST)), expected, rel_tol=1e-5
    )
    assert abs(float(d.std()) / (floor * math.sqrt(2 / 8)) - 1) < 0.1


def test_noise_sensitivity_has_its_closed_form_and_gradient():
    phase = Phase(index=1, timesteps=(0.8,), t_end=0.4, score_range=(0.4, 1.0))
    phase_input, x = normal(4, 3, count=2)

    def reference(x_s):
        clean = (x_s - 0.5 * phase_input) / (0.6 - 0.5 * 0.2)
        r = (clean[:, None] - clean).square().mean(-1)[off_diagonal(4)]
        e = (phase_input[:, None] - phase_input).square().mean(-1)[off_diagonal(4)] / (
            0.2**2 + 0.8**2
        )
        return (1 / (1 + r / e)).mean()

    x_s = x.clone().requires_grad_(True)
    loss = loss_of(NoiseSensitivity(), x_s, phase_input, phase)
    torch.testing.assert_close(loss, reference(x).float())
    loss.backward()
    step = 1e-5
    for i in range(4):
        for j in range(3):
            up, down = x.clone(), x.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (reference(up) - reference(down)) / (2 * step)
            torch.testing.assert_close(x_s.grad[i, j], slope, rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(2, 5))
def test_noise_sensitivity_is_invariant_to_the_number_of_dimensions(seed, copies):
    phase_input, x = normal(5, 3, seed, count=2)
    one = loss_of(NoiseSensitivity(), x, phase_input)
    many = loss_of(NoiseSensitivity(), x.repeat(1, copies), phase_input.repeat(1, copies))
    torch.testing.assert_close(one, many)


def test_a_batch_without_pairs_has_zero_loss_and_warns_once(caplog):
    x = normal(3, 2).requires_grad_(True)
    condition = TensorDict({"label": torch.arange(3)}, batch_size=[3])
    with caplog.at_level(logging.WARNING):
        objective = Repulsion(Outputs())
        for _ in range(2):
            loss = loss_of(objective, x, condition=condition)
            loss.backward()
    assert float(loss.detach()) == 0 and not x.grad.any()
    assert len(caplog.records) == 1 and "larger batches" in caplog.text


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="got 0"):
        Repulsion(min_bandwidth=0)
    with pytest.raises(ValueError, match="rollout.phase_input is None"):
        loss_of(Repulsion(), normal(3, 2))
