"""Stock schedulers: exact for shifted uniform timesteps, a measured error for others."""

import numpy as np
import pytest

from pdmd import PhasePlan
from pdmd.export.schedulers import STOCK, fit_stock, mixture_samples


@pytest.mark.parametrize("grid", [(1.0,), (1.0, 0.3), (1.0, 0.7, 0.2)])
def test_up_to_three_timesteps_are_exact(grid):
    stock = fit_stock(grid)
    assert stock.grid == pytest.approx(grid, abs=1e-5)
    assert stock.max_error < 1e-5 and stock.error < 1e-4


def test_shifted_uniform_timesteps_are_exact():
    grid = PhasePlan.uniform(1, steps=6, shift=3.0).timesteps[:-1]
    stock = fit_stock(grid)
    assert stock.max_error < 1e-5 and type(stock.build()).__name__ == STOCK


def test_other_timesteps_have_an_error():
    grid = (1.0, 0.9375, 0.875, 0.625)
    stock = fit_stock(grid)
    assert stock.max_error == pytest.approx(max(np.abs(np.subtract(stock.grid, grid))))
    assert 1e-3 < stock.error < stock.max_error < 0.05


def test_many_euler_steps_sample_the_mixture():
    samples = mixture_samples([1 - i / 400 for i in range(400)])
    assert samples.mean() == pytest.approx(0, abs=1e-6)
    assert samples.std() == pytest.approx((1 + 0.2**2) ** 0.5, rel=0.01)
    assert np.abs(np.abs(samples[samples > 0]).mean() - 1) < 0.01
