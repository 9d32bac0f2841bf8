"""One phase over the whole interval is ordinary distribution matching distillation, to the bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import (
    CosineVP,
    DiscreteVP,
    LinearVP,
    PhasePlan,
    RectifiedFlow,
    Shifted,
    VarianceExploding,
    subinterval_target,
)
from pdmd.diffusion.predictions import KINDS, Prediction, combination
from pdmd.diffusion.solvers import diffuse, posterior_mean
from pdmd.objectives import RatioWeighting
from pdmd.typing import expand
from tests.helpers.strategies import ddpm_levels, seeds, times

clean_schedules = st.sampled_from(
    [
        RectifiedFlow(),
        Shifted(RectifiedFlow(), 3.0),
        LinearVP(),
        CosineVP(),
        DiscreteVP(ddpm_levels(100, False)),
        DiscreteVP(ddpm_levels(100, True)),
        VarianceExploding(80.0),
    ]
)


@given(clean_schedules, st.sampled_from(KINDS), times, seeds)
def test_one_phase_is_the_whole_interval_to_the_bit(schedule, kind, t, seed):
    (phase,) = PhasePlan.uniform(1)
    s = phase.t_end
    assert s == 0 and phase.score_range == (0.0, 1.0)
    x_0, epsilon = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    t = torch.full((4,), t, dtype=torch.float64)
    alpha_t, sigma_t = schedule(t)
    x_t = expand(alpha_t, x_0) * x_0 + expand(sigma_t, x_0) * epsilon
    assert torch.equal(diffuse(x_0, epsilon, s, t, schedule), x_t)
    c_x, c_eps = combination(kind, t, schedule)
    target = expand(c_x, x_0) * x_0 + expand(c_eps, x_0) * epsilon
    assert torch.equal(subinterval_target(x_0, epsilon, s, t, schedule, kind), target)
    if kind != "x0":  # whose conversion is the identity
        prediction = Prediction(value=target, kind=kind, x_t=x_t, t=t, schedule=schedule)
        assert torch.equal(posterior_mean(prediction, s), prediction.to("x0"))
    assert bool((RatioWeighting()(s, t, schedule, kind) == 1).all())
