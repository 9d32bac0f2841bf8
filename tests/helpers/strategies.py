"""Hypothesis strategies of the property tests."""

import torch
from hypothesis import strategies as st

from pdmd import (
    CosineVP,
    DiscreteVP,
    LinearVP,
    MixtureTeacher,
    RectifiedFlow,
    Schedule,
    Shifted,
    VarianceExploding,
)
from pdmd.diffusion.timesteps import as_times


class UserSchedule(Schedule):
    """Implements the abstract method only."""

    def __call__(self, t):
        t = as_times(t)
        return (1 - t) ** 1.5, t**0.75


def ddpm_levels(steps, zero_terminal):
    betas = torch.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps, dtype=torch.float64)
    levels = torch.cumprod(1 - betas.clamp(max=0.5), 0)
    if zero_terminal:
        levels[-1] = 0
    return levels


base_schedules = st.one_of(
    st.builds(RectifiedFlow),
    st.builds(LinearVP, st.floats(0.05, 0.5), st.floats(5, 25)),
    st.builds(CosineVP),
    st.builds(
        lambda n, zero: DiscreteVP(ddpm_levels(n, zero)), st.integers(20, 1000), st.booleans()
    ),
    st.builds(VarianceExploding, st.floats(5, 100), st.floats(0, 0.01), st.floats(1, 9)),
    st.builds(UserSchedule),
)
schedules = st.one_of(base_schedules, st.builds(Shifted, base_schedules, st.floats(0.3, 8)))
times = st.floats(0.002, 0.998)
seeds = st.integers(0, 2**31)


@st.composite
def ordered_times(draw, n=2, gap=0.01):
    values = sorted(draw(st.lists(st.floats(0.01, 0.98), min_size=n, max_size=n)))
    return [v + i * gap / n for i, v in enumerate(values)]


@st.composite
def mixtures(draw, modes=4, dims=3):
    m, d = draw(st.integers(1, modes)), draw(st.integers(1, dims))
    generator = torch.Generator().manual_seed(draw(seeds))
    return dict(
        means=torch.randn(m, d, generator=generator, dtype=torch.float64),
        stds=0.05 + torch.rand(m, generator=generator, dtype=torch.float64),
        weights=0.2 + torch.rand(m, generator=generator, dtype=torch.float64),
    )


def teacher_of(mixture, schedule, kind):
    return MixtureTeacher(
        mixture["means"], mixture["stds"], weights=mixture["weights"], schedule=schedule, kind=kind
    )
