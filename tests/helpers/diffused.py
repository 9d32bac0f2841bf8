"""Samples of a mixture, diffused to two times."""

import torch

from pdmd.diffusion.solvers import diffuse


def diffused(teacher, n, s, t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0 = teacher.sample(n, generator=generator).double()
    x_s = x_0
    if s:
        noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        x_s = diffuse(x_0, noise, 0.0, s, teacher.schedule)
    epsilon = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    return x_s, epsilon, diffuse(x_s, epsilon, s, t, teacher.schedule)
