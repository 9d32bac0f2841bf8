import pytest
import torch

from pdmd import MixtureTeacher, RectifiedFlow, VarianceExploding, sample_ode, sample_sde
from pdmd.diffusion.sampling import check_batch, initial_noise, ode_times
from tests.helpers.gaussians import gaussian


def test_initial_noise_has_the_prior_standard_deviation():
    teacher = MixtureTeacher(torch.zeros(1, 2), 0.5, schedule=VarianceExploding(80.0))
    x = initial_noise(teacher, 20_000, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and x.shape == (20_000, 2)
    assert float(x.std()) == pytest.approx((80**2 + 1) ** 0.5, rel=0.02)


@pytest.mark.parametrize("t_end", [0.0, 0.5])
@pytest.mark.parametrize("sampler", [sample_ode, sample_sde])
def test_samples_of_a_gaussian_have_its_moments(sampler, t_end):
    """Steps are affine for a Gaussian, so that only their O(1 / steps) error is left."""
    teacher = gaussian([0.7, -0.4], 0.5, RectifiedFlow())
    generator = torch.Generator().manual_seed(0)
    x = sampler(teacher, batch=20_000, steps=200, t_end=t_end, generator=generator)
    mean = (1 - t_end) * torch.tensor([0.7, -0.4])
    std = ((1 - t_end) ** 2 * 0.25 + t_end**2) ** 0.5
    torch.testing.assert_close(x.float().mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.float().std(0), torch.full((2,), std), rtol=0.03, atol=0)


@pytest.mark.parametrize("sampler", [sample_ode, sample_sde])
def test_steps_and_times_are_evaluated_in_order(sampler):
    teacher, times = gaussian([0.0], 0.5, RectifiedFlow()), []
    teacher.register_forward_pre_hook(lambda module, args: times.append(float(args[1])))

    def draw(**settings):
        times.clear()
        return sampler(teacher, batch=4, generator=torch.Generator().manual_seed(0), **settings)

    equal = draw(steps=4)
    assert times == [1.0, 0.75, 0.5, 0.25]
    assert torch.equal(draw(times=[1.0, 0.75, 0.5, 0.25, 0.0]), equal)
    assert ode_times(teacher, 2, t_end=0.5) == [1.0, 0.75, 0.5]


def test_conditions_determine_the_batch():
    teacher = MixtureTeacher.random(dim=2, classes=2)
    condition = teacher.encode([0, 1, 1])
    assert check_batch(condition, None) == check_batch(condition, 3) == check_batch(None, 3) == 3
    assert sample_ode(teacher, condition, steps=2).shape == (3, 2)


def test_batches_that_do_not_match_raise():
    condition = MixtureTeacher.random(dim=2, classes=2).encode([0, 1])
    with pytest.raises(ValueError, match="batch = 3, but the condition has 2 rows"):
        check_batch(condition, 3)
    with pytest.raises(ValueError, match="pass the number of samples"):
        check_batch(None, None)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        check_batch(None, 0)
    with pytest.raises(ValueError, match="got a list; encode prompts with"):
        check_batch([0, 1], None)


@pytest.mark.parametrize("sampler", [sample_ode, sample_sde])
def test_times_outside_the_denoisers_range_raise(sampler):
    teacher = gaussian([0.0], 0.5, RectifiedFlow())
    teacher.time_range = (0.1, 1.0)
    assert sampler(teacher, batch=1, steps=4).shape == (1, 1)
    with pytest.raises(ValueError, match=r"at t = 0.05, outside its range \[0.1, 1\]"):
        sampler(teacher, batch=1, steps=20)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        ode_times(teacher, 0)
    for times in ([0.9, 0.5], [1.0], [1.0, 0.5, 0.5]):
        with pytest.raises(ValueError, match="strictly decreasing from 1"):
            sampler(teacher, batch=1, times=times)


def test_the_reverse_process_samples_all_modes_of_a_mixture():
    """Its samples have the weights of the modes, as those of the flow."""
    means = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    teacher = MixtureTeacher(means, 0.3, weights=torch.tensor([0.3, 0.7], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = sample_sde(teacher, batch=20_000, steps=100, generator=generator)
    assert float((x > 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(x[x > 0].std()) == pytest.approx(0.3, rel=0.05)
