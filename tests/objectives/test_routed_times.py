"""Times of one network for a whole batch: their law, importance weights and unbiased gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import IntervalRouter, MixtureTeacher, MlpDenoiser, PhasePlan, RectifiedFlow
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import RoutedDenoiser
from pdmd.diffusion.schedules import Schedule
from pdmd.objectives import (
    BalancedTimes,
    DistributionMatching,
    FisherDivergence,
    LogSnrTimes,
    Models,
    PosteriorUnits,
    Rollout,
    SubintervalScoreMatching,
    TimeSampler,
    UniformTimes,
)
from pdmd.objectives.time_samplers import time_samplers
from pdmd.randomness import RankGenerator
from tests.helpers.gaussians import phase_to
from tests.helpers.strategies import schedules, seeds

SWITCH = 0.875


class Cubed(TimeSampler):
    """A law without a closed form of its distribution function."""

    def from_uniform(self, u, phase, schedule):
        low, high = self.bounds(phase)
        return low + (high - low) * u**3

    def bounds(self, phase):
        return phase.t_end + 0.01, 1.0


SAMPLERS = [*(time_samplers[name] for name in time_samplers), Cubed]


class Switching(Denoiser):
    """A denoiser that switches at given times, never evaluated."""

    def __init__(self, switches, schedule: Schedule | None = None):
        super().__init__(schedule=schedule or RectifiedFlow(), kind="velocity", latent_shape=(2,))
        self._switches = tuple(switches)

    @property
    def switches(self):
        return self._switches

    def network(self, x_t, t, condition):
        raise NotImplementedError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", SAMPLERS)
@settings(max_examples=10)
@given(schedule=schedules, s=st.floats(0.0, 0.7), t=st.floats(0.01, 0.99))
def test_the_distribution_function_inverts_the_sampler(kind, schedule, s, t):
    sampler, phase = kind(), phase_to(s)
    low, high = sampler.bounds(phase)
    t = low + (high - low) * t
    u = torch.tensor(sampler.to_uniform(t, phase, schedule), dtype=torch.float64)
    assert float(sampler.from_uniform(u, phase, schedule)) == pytest.approx(t, abs=1e-8)


@pytest.mark.parametrize("switches", [(SWITCH,), (0.9, 0.6, 0.3)])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_mixture_over_networks_has_the_law_of_the_sampler(kind, switches):
    """Kolmogorov-Smirnov: weighted draws of one interval each, against independent draws."""
    calls, rows, sampler, phase = 800, 2, kind(), phase_to(0.0)
    source, drawn, weights = generator(), [], []
    for _ in range(calls):
        sample = sampler.sample(rows, phase, (Switching(switches),), source)
        inside = torch.bucketize(sample.t, torch.tensor(switches[::-1], dtype=torch.float64))
        assert len(inside.unique()) == 1
        drawn.append(sample.t[0])  # the rows of a call are not independent of each other
        weights.append(sample.weight)
    t, order = torch.stack(drawn).sort()
    weight = torch.tensor(weights, dtype=torch.float64)
    law = sampler(200_000, phase, RectifiedFlow(), source).sort().values
    expected = torch.searchsorted(law, t) / len(law)
    distance = float((weight[order].cumsum(0) / calls - expected).abs().max())
    assert distance < 2 * float(weight.square().mean().sqrt()) / calls**0.5


@settings(max_examples=10)
@given(seed=seeds, margin=st.floats(0.005, 0.04))
def test_without_a_switch_in_the_range_the_times_keep_their_bits(seed, margin):
    phase = phase_to(0.9)
    for kind in (UniformTimes, LogSnrTimes):
        sampler = kind(margin)
        plain = sampler(8, phase, RectifiedFlow(), generator(seed))
        for switches in ((), (SWITCH,), (0.9,), (sampler.bounds(phase)[1],)):
            sample = sampler.sample(8, phase, (Switching(switches),), generator(seed))
            assert torch.equal(sample.t, plain) and sample.weight == 1


def test_ranks_draw_the_same_network_and_the_rows_of_one_process():
    phase, routed = phase_to(0.0), (Switching((SWITCH,)),)
    for sampler in (UniformTimes(), BalancedTimes(LogSnrTimes())):
        one = RankGenerator.make(3)
        ranks = [RankGenerator.make(3, rank, 4) for rank in range(4)]
        for _ in range(20):
            whole = sampler.sample(8, phase, routed, one)
            parts = [sampler.sample(2, phase, routed, rank) for rank in ranks]
            assert torch.equal(torch.cat([part.t for part in parts]), whole.t)
            assert {part.weight for part in parts} == {whole.weight}


def test_balanced_times_draw_every_network_equally_often():
    phase, routed, source = phase_to(0.0), (Switching((SWITCH,)),), generator()
    low, high = UniformTimes().bounds(phase)
    share = (high - SWITCH) / (high - low)
    weights = {True: 2 * share, False: 2 * (1 - share)}
    above = 0
    for _ in range(2000):
        sample = BalancedTimes().sample(1, phase, routed, source)
        noisy = float(sample.t) > SWITCH
        above += noisy
        assert sample.weight == pytest.approx(weights[noisy])
    assert abs(above / 2000 - 0.5) < 4 * 0.5 / 2000**0.5


def networks(seed):
    torch.manual_seed(seed)
    parts = [MlpDenoiser.rectified_flow(dim=2, width=8).double() for _ in range(2)]
    return RoutedDenoiser(parts, IntervalRouter([1, 0.6, 0]))


class Every(TimeSampler):
    """Independent times of the law, so that rows fall into both intervals."""

    def __init__(self, inner):
        self.inner = inner

    def from_uniform(self, u, phase, schedule):
        return self.inner.from_uniform(u, phase, schedule)

    def bounds(self, phase):
        return self.inner.bounds(phase)

    def sample(self, n, phase, denoisers, generator):
        plain = (Switching(()),)
        return self.inner.sample(n, phase, plain, generator)


def gradients(objective, models, rows, seed, of):
    """Returns the gradient of the mean loss over rows of one x_s."""
    phase = PhasePlan.uniform(1)[0]
    x_s = torch.tensor([[0.3, -0.7]], dtype=torch.float64).requires_grad_()
    rollout = Rollout(x_s=x_s.expand(rows, 2), condition=None, phase=phase)
    loss = sum(objective.losses(models, rollout, generator(seed)).values())
    inputs = [x_s] if of is None else list(of.parameters())
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(found, inputs, strict=True)
        ]
    )


OBJECTIVES = {
    "matching": (DistributionMatching, False),
    "score": (lambda times: SubintervalScoreMatching(times=times), True),
    "fisher": (lambda times: FisherDivergence(0.5, PosteriorUnits(), times), False),
}


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_expected_gradient_is_that_of_evaluating_both_networks(name, balanced):
    """Means over updates of one network against means over batches in both intervals, 5 sigma."""
    make, trains = OBJECTIVES[name]
    make = (lambda times: DistributionMatching(times=times)) if name == "matching" else make
    models = Models(real=networks(0), fake=networks(1), expert=networks(2))
    times, updates = BalancedTimes() if balanced else UniformTimes(), 200
    of = models.fake if trains else None
    one = torch.stack([gradients(make(times), models, 16, i, of) for i in range(updates)])
    both = gradients(make(Every(UniformTimes())), models, 20_000, 7, of)
    error = one.std(0) / updates**0.5
    assert ((one.mean(0) - both).abs() < 5 * error + 0.02 * both.abs().max()).all()
    assert float((one.mean(0) - both).norm() / both.norm()) < 0.2


def test_an_update_of_one_network_leaves_the_other_without_gradient():
    teacher = MixtureTeacher(torch.zeros(1, 2), 0.5)
    fake = networks(1)
    models = Models(real=teacher, fake=fake, expert=fake)
    seen = set()
    for seed in range(8):
        fake.zero_grad(set_to_none=True)
        rollout = Rollout(
            x_s=torch.zeros(4, 2, dtype=torch.float64),
            condition=None,
            phase=PhasePlan.uniform(1)[0],
        )
        losses = SubintervalScoreMatching().losses(models, rollout, generator(seed))
        sum(losses.values()).backward()
        used = tuple(any(p.grad is not None for p in part.parameters()) for part in fake.denoisers)
        assert sum(used) == 1
        seen.add(used)
    assert len(seen) == 2
