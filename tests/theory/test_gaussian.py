"""On a Gaussian teacher an affine student can be exact: its marginals have a closed form."""

import torch

from pdmd import (
    AdamRecipe,
    Denoiser,
    FromDenoiser,
    MixtureTeacher,
    PhasePlan,
    RectifiedFlow,
    trajectory,
)
from pdmd.objectives import (
    DistributionMatching,
    PosteriorDifference,
    RatioWeighting,
    SubintervalScoreMatching,
)
from tests.helpers.distilling import distill


class Affine(Denoiser):
    """A velocity affine in x with coefficients piecewise linear in time: exact enough here."""

    def __init__(self, dim, knots=17):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(dim,))
        self.gain = torch.nn.Parameter(torch.zeros(knots, dim))
        self.bias = torch.nn.Parameter(torch.zeros(knots, dim))

    def network(self, x_t, t, condition):
        knots = len(self.gain)
        place = t * (knots - 1)
        low = place.floor().long().clamp(max=knots - 2)
        w = (place - low)[:, None].to(x_t.dtype)
        gain = self.gain[low] * (1 - w) + self.gain[low + 1] * w
        bias = self.bias[low] * (1 - w) + self.bias[low + 1] * w
        return gain * x_t + bias


def test_marginals_at_every_boundary_match_the_closed_form():
    mean, std = torch.tensor([[0.7, -0.4]]), 0.5
    teacher, network = MixtureTeacher(mean, std), Affine(2)
    with torch.no_grad():  # start at the teacher's own velocity at the knots
        for i in range(17):
            t = i / 16
            variance = (1 - t) ** 2 * std**2 + t**2
            gain = (t - (1 - t) * std**2) / variance
            network.gain[i] = gain
            network.bias[i] = -mean[0] * (1 + gain * (1 - t))
    plan = PhasePlan.uniform(3)
    student = distill(
        teacher,
        plan,
        generator_objective=DistributionMatching(PosteriorDifference()),
        fake_objective=SubintervalScoreMatching(RatioWeighting()),
        init=FromDenoiser(network),
        updates=300,
        fake_updates=3,
        batch_size=256,
        optimizer=AdamRecipe(lr=1e-2, betas=(0.5, 0.99)),
    )
    states = trajectory(student, batch=40_000, generator=torch.Generator().manual_seed(1))
    for phase, x in zip(plan, states[1:], strict=True):
        s = phase.t_end
        want = ((1 - s) ** 2 * std**2 + s**2) ** 0.5
        torch.testing.assert_close(x.mean(0), (1 - s) * mean[0], rtol=0, atol=0.05)
        torch.testing.assert_close(x.std(0), torch.full((2,), want), rtol=0.08, atol=0)
