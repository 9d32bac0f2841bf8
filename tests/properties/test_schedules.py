import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pdmd import DiscreteVP, LinearVP, RectifiedFlow, Shifted, VarianceExploding
from pdmd.diffusion.schedules import same_process
from tests.helpers.strategies import ordered_times, schedules, times


@given(schedules, ordered_times())
def test_log_snr_falls_strictly(schedule, pair):
    s, t = pair
    assume(s < t)
    assert schedule.log_snr(t) < schedule.log_snr(s)


@given(schedules, times)
def test_log_snr_is_that_of_the_coefficients(schedule, t):
    alpha_t, sigma_t = schedule(t)
    torch.testing.assert_close(
        schedule.log_snr(t), 2 * torch.log(alpha_t / sigma_t), rtol=1e-9, atol=1e-9
    )


@given(schedules, times)
def test_log_snr_inverts(schedule, t):
    log_snr = schedule.log_snr(t)
    assert float(schedule.t_from_log_snr(log_snr)) == pytest.approx(t, rel=1e-9)
    again = schedule.log_snr(schedule.t_from_log_snr(log_snr))
    torch.testing.assert_close(again, log_snr, rtol=1e-9, atol=1e-9)


@given(schedules, times)
def test_derivatives_match_finite_differences(schedule, t):
    h = 1e-6
    if isinstance(schedule, DiscreteVP) or isinstance(getattr(schedule, "base", 0), DiscreteVP):
        lows, highs = schedule.log_snr(t - h), schedule.log_snr(t + h)
        middle = schedule.log_snr(t)
        assume(abs((lows - middle) - (middle - highs)) < 1e-8)  # not across a knot
    plus, minus = schedule(t + h), schedule(t - h)
    for own, a, b in zip(schedule.derivatives(t), plus, minus, strict=True):
        assert float(own) == pytest.approx(float((a - b) / (2 * h)), rel=2e-3, abs=1e-6)


@given(schedules, ordered_times(n=3))
def test_transitions_form_a_semigroup(schedule, triple):
    r, s, t = triple
    assume(r + 1e-3 < s and s + 1e-3 < t)
    (a_rs, b_rs), (a_st, b_st) = schedule.transition(r, s), schedule.transition(s, t)
    a_rt, b_rt = schedule.transition(r, t)
    torch.testing.assert_close(a_st * a_rs, a_rt, rtol=1e-9, atol=0)
    variance = a_st.square() * b_rs.square() + b_st.square()
    torch.testing.assert_close(variance, b_rt.square(), rtol=1e-9, atol=0)


@given(schedules, times, st.floats(0, 0.9))
def test_transition_refuses_to_go_back(schedule, t, share):
    with pytest.raises(ValueError, match="noisier"):
        schedule.transition(t, t * share)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearVP(), VarianceExploding()])
@given(t=times)
def test_transition_from_clean_is_the_forward_process_to_the_bit(schedule, t):
    (a, b), (alpha_t, sigma_t) = schedule.transition(0.0, t), schedule(t)
    assert torch.equal(a, alpha_t) and torch.equal(b, sigma_t)


@given(st.floats(0.2, 9), times)
def test_shift_lowers_the_log_snr_of_rectified_flow(shift, t):
    gap = RectifiedFlow().log_snr(t) - Shifted(RectifiedFlow(), shift).log_snr(t)
    assert float(gap) == pytest.approx(2 * float(torch.tensor(shift).log()), abs=1e-6)


@given(st.floats(allow_nan=True).filter(lambda t: not 0 <= t <= 1))
def test_times_outside_are_named(t):
    with pytest.raises(ValueError, match="outside"):
        RectifiedFlow()(t)


@pytest.mark.parametrize("levels", [[0.9], [0.9, 0.95], [1.2, 0.5], [0.9, float("nan")]])
def test_bad_ddpm_levels_are_refused(levels):
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteVP(levels)


def ddpm_alphas(kind, steps=1000):
    """Levels of published models, in float32 as they are shipped."""
    if kind == "cosine":
        i = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((i + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    elif kind == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    if kind == "zero_terminal":  # rescaled as in arXiv:2305.08891, Algorithm 1
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return bar.float()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "zero_terminal"])
def test_ddpm_levels_are_met_and_their_ends_are_linear(kind):
    bar = ddpm_alphas(kind)
    schedule, n = DiscreteVP(bar), len(bar)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha.square(), bar.double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - bar.double(), rtol=1e-12, atol=0)
    alpha, sigma = schedule(0.0)
    assert float(alpha) == 1 and float(sigma) == 0
    first = float(((1 - bar[0].double()) / bar[0].double()).sqrt()) * n
    d_alpha, d_sigma = schedule.derivatives(torch.tensor([0.0, 0.5 / n], dtype=torch.float64))
    assert float(d_alpha[0]) == 0 and float(d_sigma[0]) == pytest.approx(first, rel=1e-9)
    alpha, sigma = schedule(0.5 / n)
    ratio = (d_sigma[1] * alpha - sigma * d_alpha[1]) / alpha.square()  # of sigma / alpha
    assert float(ratio) == pytest.approx(first, rel=1e-9)
    d_alpha, d_sigma = schedule.derivatives(1.0)
    if kind == "zero_terminal":
        last = float((bar[-2].double() / (1 - bar[-2].double())).sqrt()) * n
        assert float(schedule(1.0)[0]) == 0 and float(d_sigma) == 0
        assert float(d_alpha) == pytest.approx(-last, rel=1e-9)
    assert bool(torch.isfinite(torch.stack([d_alpha, d_sigma])).all())


def test_schedules_are_compared_by_their_coefficients():
    bar = ddpm_alphas("linear")
    assert same_process(DiscreteVP(bar), DiscreteVP(bar.clone()))
    assert same_process(RectifiedFlow(), Shifted(RectifiedFlow(), 1.0))
    assert not same_process(RectifiedFlow(), Shifted(RectifiedFlow(), 1.1))
    assert not same_process(LinearVP(), LinearVP(beta_max=19.9))


def test_times_are_checked_once_and_again_when_they_change(monkeypatch):
    looks, aminmax = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *a, **k: looks.append(1) or aminmax(*a, **k))
    t, schedule = torch.tensor([0.5, 0.7], dtype=torch.float64), RectifiedFlow()
    for _ in range(3):
        schedule(t)
        schedule.transition(0.25, t)
    assert len(looks) == 1
    t[1] = 1.5
    with pytest.raises(ValueError, match="time 1.5 is outside"):
        schedule(t)
    with pytest.raises(ValueError, match="time 1.5 is outside"):  # a refused one is not marked
        schedule(t)
    with pytest.raises(ValueError, match="time 1.4 is outside"):
        schedule(2 * torch.tensor([0.5, 0.7], dtype=torch.float64))


def test_times_of_inference_are_checked_every_time():
    with torch.inference_mode():
        t = torch.tensor([0.5], dtype=torch.float64)
        RectifiedFlow()(t)
        t += 1
        with pytest.raises(ValueError, match="time 1.5 is outside"):
            RectifiedFlow()(t)


def _bits(pair):
    return torch.stack([value.clone() for value in pair])


@given(schedules, ordered_times(n=3))
def test_kept_transitions_are_those_of_the_times_as_they_are(schedule, triple):
    r, s, t = triple
    assume(r < s < t)
    kept = torch.full((3,), t, dtype=torch.float64)
    for end in (r, s, r, r):
        fresh = schedule.transition(end, kept.clone())
        assert torch.equal(_bits(schedule.transition(end, kept)), _bits(fresh))
    a, _ = schedule.transition(r, kept)
    before = _bits(schedule.transition(r, kept))
    a.mul_(2)  # whoever changes what was kept, changes it for nobody else
    assert torch.equal(_bits(schedule.transition(r, kept)), before)
    kept.fill_(s)
    again = torch.full((3,), s, dtype=torch.float64)
    assert torch.equal(_bits(schedule.transition(r, kept)), _bits(schedule.transition(r, again)))
    with pytest.raises(ValueError, match="noisier"):
        schedule.transition(s, kept)


def test_transitions_are_computed_once_and_not_across_schedules_or_modes():
    t = torch.tensor([0.5, 0.75], dtype=torch.float64)
    a, b = RectifiedFlow(), RectifiedFlow()
    first, second = a.transition(0.25, t), a.transition(0.25, t)
    assert first[0] is second[0] and first[1] is second[1]
    assert b.transition(0.25, t)[0] is not first[0]
    with torch.no_grad():
        silent = a.transition(0.25, t)
    assert a.transition(0.25, t)[0] is not silent[0]
    with torch.inference_mode():
        for times in (t, t.clone()):
            again = [a.transition(0.25, times)[0] for _ in range(2)]
            assert again[0] is not again[1] and torch.equal(*again)
    with torch.no_grad():
        assert not a.transition(0.25, t)[0].is_inference()
    slope = t.clone().requires_grad_(True)
    a.transition(0.25, slope)
    (grad,) = torch.autograd.grad(a.transition(0.25, slope)[0].sum(), slope)
    assert torch.allclose(grad, torch.full_like(t, -1 / 0.75))
