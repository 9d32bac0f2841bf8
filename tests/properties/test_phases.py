import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import (
    Disjoint,
    IntervalRouter,
    PhasePlan,
    RectifiedFlow,
)

counts = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(counts, st.floats(0.2, 8))
def test_plans_are_contiguous_from_noise_to_data(steps, shift):
    plan = PhasePlan.uniform(len(steps), steps=steps, shift=shift)
    assert plan.boundaries[0] == 1 and plan.boundaries[-1] == 0
    assert plan.nfe == sum(steps) == len(plan.timesteps) - 1
    assert all(b < a for a, b in zip(plan.timesteps, plan.timesteps[1:], strict=False))
    assert [p.steps for p in plan] == steps
    assert all(p.score_range == (p.t_end, 1.0) for p in plan)
    rebuilt = PhasePlan.from_timesteps(plan.timesteps, steps=steps)
    assert rebuilt == plan


@given(counts)
def test_disjoint_ranges_tile_the_interval(steps):
    plan = PhasePlan.uniform(len(steps), steps=steps, score_range=Disjoint())
    assert [p.score_range for p in plan] == [(p.t_end, p.t_start) for p in plan]


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=5, unique=True))
def test_boundaries_have_the_given_log_snrs(cuts):
    cuts = [c for i, c in enumerate(sorted(cuts)) if i == 0 or c - sorted(cuts)[i - 1] > 1e-3]
    plan = PhasePlan.from_log_snr(cuts, RectifiedFlow())
    for cut, t in zip(cuts, plan.boundaries[1:-1], strict=True):
        assert float(RectifiedFlow().log_snr(t)) == pytest.approx(cut, abs=1e-9)


@given(counts, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_routers_partition_time(steps, times):
    plan = PhasePlan.uniform(len(steps), steps=steps)
    index = IntervalRouter(plan.boundaries)(torch.tensor(times, dtype=torch.float64))
    for t, i in zip(times, index.tolist(), strict=True):
        above, below = plan[i].t_start, plan[i].t_end
        tie = 1 + 2**-24  # equal to the boundary in float32
        assert below * tie < t <= above * tie or (t == 0 and i == len(plan) - 1)


@given(counts, st.floats(0.3, 5))
def test_a_boundary_in_float32_is_the_boundary(steps, shift):
    plan = PhasePlan.uniform(len(steps), steps=steps, shift=shift)
    rounded = torch.tensor([p.t_start for p in plan], dtype=torch.float32)
    assert IntervalRouter(plan.boundaries)(rounded).tolist() == list(range(len(plan)))


@given(counts)
def test_a_boundary_belongs_to_the_less_noisy_expert(steps):
    plan = PhasePlan.uniform(len(steps), steps=steps)
    router = IntervalRouter(plan.boundaries)
    for phase in plan:
        assert int(router(phase.t_start)) == phase.index
