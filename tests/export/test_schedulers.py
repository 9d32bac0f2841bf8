"""Stock schedulers, exact for shifted uniform timesteps; the shipped one on other schedules."""

import numpy as np
import pytest
import torch

from pdmd import LinearVP, MixtureTeacher, OdeExpert, PhasePlan
from pdmd.distillation.experts import RenoisingExpert
from pdmd.export.modules.phased_scheduler import PhasedScheduler
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


@pytest.mark.parametrize("expert", [OdeExpert, RenoisingExpert])
def test_the_shipped_scheduler_steps_on_another_schedule_as_the_expert_does(expert):
    schedule, plan = LinearVP(), PhasePlan.uniform(2, steps=2)
    means = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0]])
    teacher = MixtureTeacher(means, 0.5, schedule=schedule, kind="v_prediction")
    times = plan.timesteps
    ends = [0.5, None, 0.0, None] if expert is RenoisingExpert else None
    scheduler = PhasedScheduler(
        [*times[:-1]],
        ends,
        coefficients=[[float(c) for c in schedule(t)] for t in times],
        time_offset=-1.0,
    )
    assert scheduler.timesteps.tolist() == [999.0, 749.0, 499.0, 249.0]
    x = here = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    drawn, again = (torch.Generator().manual_seed(1) for _ in range(2))
    for phase in plan:
        here = expert(teacher, phase)(here, None, generator=drawn)
    for t in scheduler.timesteps:
        v = teacher(x, (float(t) + 1) / 1000, None).value
        x = scheduler.step(v, t, x, generator=again, return_dict=False)[0]
    assert torch.allclose(x, here, atol=1e-5)
    with pytest.raises(ValueError, match="diffuses no samples"):
        scheduler.scale_noise(x, t, x)


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_pipelines_that_start_from_samples_diffuse_them_or_raise(alpha):
    other = None if alpha is None else [[0.0, 1.0], [alpha, 0.8], [1.0, 0.0]]
    scheduler = PhasedScheduler([1.0, 0.25], coefficients=other)
    x, noise, t = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([1000.0, 250.0])
    for diffuse in (
        lambda: scheduler.scale_noise(x, t, noise),
        lambda: scheduler.add_noise(x, noise, t),
    ):
        if alpha is None:
            assert diffuse().tolist() == [[0.0] * 3, [0.75] * 3]
        else:
            with pytest.raises(ValueError, match="starts from noise"):
                diffuse()
