"""Gaussian teachers and students, whose divergences have closed forms, and quadrature rules."""

import torch

from pdmd import MixtureTeacher, Phase
from pdmd.objectives import Models, Rollout


def phase_to(s):
    return Phase(index=0, timesteps=(1.0,), t_end=s, score_range=(s, 1.0))


def gaussian(mean, std, schedule, kind="velocity"):
    mean = torch.as_tensor(mean, dtype=torch.float64).reshape(1, -1)
    return MixtureTeacher(mean, std, schedule=schedule, kind=kind)


def models_and_rollout(real, fake, x_s, s):
    rollout = Rollout(x_s=x_s, condition=None, phase=phase_to(s))
    return Models(real=real, fake=fake, expert=fake), rollout


def at(t, n):
    return torch.full((n,), t, dtype=torch.float64)


def hermite():
    """Nodes and weights for (z, epsilon), exact where the integrand is of degree 5 in each."""
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    z, e = (g.reshape(-1, 1) for g in torch.meshgrid(nodes, nodes, indexing="ij"))
    return z, e, (weights[:, None] * weights).reshape(-1)


def coefficients(schedule, s, t):
    return *schedule(s), *schedule(t), *schedule.transition(s, t)


def grid(points, *, half, dims=1):
    """Nodes and cell volume of the trapezoidal rule, exact to rounding for decayed integrands."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    nodes = torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    return nodes, float(axis[1] - axis[0]) ** dims
