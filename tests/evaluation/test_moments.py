"""Moments in blocks, and the Frechet distance against scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd.evaluation.metrics import frechet_distance
from pdmd.evaluation.moments import Moments, frechet_of_gaussians


def features(rows, dim, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return scale * x @ mix + shift


def moments(*blocks):
    found = Moments()
    for block in blocks:
        found.add(block)
    return found


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), shift=st.floats(-1e4, 1e4))
def test_blocks_have_the_moments_of_all_rows(sizes, shift):
    x = features(sum(sizes) + 1, 4, 0, shift=shift)
    found = moments(*x.split([*sizes, 1]))
    assert found.count == len(x)
    assert torch.allclose(found.mean, x.mean(0))
    assert torch.allclose(found.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_the_frechet_distance_is_that_of_scipys_matrix_root():
    f, g = features(300, 24, 0), features(200, 24, 1, scale=0.7, shift=0.2)
    found = [moments(*x.split(64)) for x in (f, g)]
    cov_f, cov_g = (np.cov(x.numpy(), rowvar=False) for x in (f, g))
    root = scipy.linalg.sqrtm(cov_f @ cov_g).real
    shift = (f.mean(0) - g.mean(0)).square().sum().item()
    expected = shift + np.trace(cov_f + cov_g - 2 * root)
    one, two = found
    own = frechet_of_gaussians(one.mean, one.covariance, two.mean, two.covariance)
    assert own == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(f, g) == pytest.approx(expected, rel=1e-9)


def test_rows_that_do_not_fit_raise():
    found = moments(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 rows or more, got 1"):
        _ = found.covariance
    with pytest.raises(ValueError, match="dimension 2 and those before 3"):
        found.add(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="not finite"):
        found.add(torch.full((1, 3), torch.nan))
