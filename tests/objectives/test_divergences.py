"""The laws between Gaussians are in ``tests/properties/test_divergences.py``."""

import pytest
import torch

from pdmd.objectives.divergences import BatchNormalised, Divergence, divergences

ALL = [divergences[name]() for name in divergences if name != "batch_normalised"]


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_h_is_r_squared_times_the_second_derivative_of_f(divergence):
    r = torch.logspace(-3, 3, 61, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(divergence.f(r.log()).sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    torch.testing.assert_close(divergence.h(r.log()), r**2 * curvature, rtol=1e-7, atol=1e-9)
    assert abs(float(divergence.f(torch.zeros((), dtype=torch.float64)))) < 1e-15


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_normalised_weights_have_mean_one_and_keep_their_proportions(divergence):
    log_r = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    h, raw = BatchNormalised(divergence).h(log_r), divergence.h(log_r)
    assert abs(float(h.mean()) - 1) < 1e-14
    torch.testing.assert_close(h / h[0], raw / raw[0])
    extreme = BatchNormalised(divergence).h(1e4 * log_r)
    assert extreme.isfinite().all() and abs(float(extreme.mean()) - 1) < 1e-14


def test_a_custom_divergence_implements_f_and_log_h():
    class Pearson(Divergence):
        """Pearson's chi-square, (r - 1)^2 with h = 2 r^2."""

        def f(self, log_r):
            return torch.expm1(log_r).square()

        def log_h(self, log_r):
            return 2 * log_r + torch.tensor(2.0).log()

    log_r = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(Pearson().h(log_r), 2 * log_r.exp().square())
    assert float(BatchNormalised(Pearson()).h(log_r).mean()) == pytest.approx(1)
    assert repr(Pearson()) == "Pearson()"


def test_divergences_are_registered():
    assert set(divergences) == {
        "batch_normalised",
        "neyman",
        "softened_reverse_kl",
        "reverse_kl",
        "jensen_shannon",
        "squared_hellinger",
        "forward_kl",
        "jeffreys",
    }
