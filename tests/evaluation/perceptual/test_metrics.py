"""Metrics of stored rows, against scikit-learn and scipy, whatever the sizes of files."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import cosine_similarity, polynomial_kernel

from pdmd.evaluation.perceptual import metrics as module
from pdmd.evaluation.perceptual.metrics import metrics
from pdmd.evaluation.perceptual.stores import FeatureStore

SEEDS, DIM = 4, 12


def rows(seed, shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator) + 0.3


def stored(folder, sizes=(5, 2, 8), **measured):
    """Stores rows in files of ``sizes`` prompts."""
    store = FeatureStore(folder, SEEDS)
    store.open({})
    first = 0
    for size in sizes:
        number = size * SEEDS
        store.add(first, {k: x[first : first + number] for k, x in measured.items()}, number)
        first += number
    return store


@pytest.fixture
def pair(tmp_path):
    f, g = rows(0, (60, 1, DIM)), rows(1, (60, 1, DIM), 0.8)
    one = stored(tmp_path / "f", vision=f)
    return f, g, one, stored(tmp_path / "g", sizes=(15,), vision=g)


def test_the_kernel_distance_is_that_of_scikit_learns_kernel(pair):
    f, g, own, reference = pair
    a, b = (x[:, 0].double().numpy() for x in (f, g))

    def kernel(x, y):
        return polynomial_kernel(x, y, degree=3, gamma=1 / DIM, coef0=1)

    n = len(a)
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    expected = within - 2 * kernel(a, b).mean()
    found = metrics["kernel"]()(own, reference)["kernel"]
    assert found == pytest.approx(1000 * expected, rel=1e-9)


def test_the_kernel_distance_of_many_rows_is_the_mean_of_its_blocks(pair, monkeypatch):
    f, g, own, reference = pair
    monkeypatch.setattr(module, "BLOCK", 20)
    found = metrics["kernel"]()(own, reference)["kernel"]
    parts = [
        module.kernel_distance(a[:, 0], b[:, 0])
        for a, b in zip(f.split(20), g.split(20), strict=True)
    ]
    assert found == pytest.approx(1000 * sum(parts) / 3)


def test_the_frechet_distance_reads_files_and_frames(tmp_path):
    f, g = rows(0, (60, 2, DIM)), rows(1, (60, 2, DIM), 0.8)
    own = stored(tmp_path / "f", vision=f, video=f[:, :1])
    reference = stored(tmp_path / "g", sizes=(1, 14), vision=g, video=g[:, :1])
    for name, key, pick in (("frechet", "frechet", slice(2)), ("fvd", "fvd", slice(1))):
        a, b = (x[:, pick].flatten(0, 1).double().numpy() for x in (f, g))
        cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(cov_a @ cov_b).real
        shift = np.square(a.mean(0) - b.mean(0)).sum()
        expected = shift + np.trace(cov_a + cov_b - 2 * root)
        assert metrics[name]()(own, reference)[key] == pytest.approx(expected, rel=1e-8)


def test_diversity_is_the_cosine_within_prompts_frame_by_frame(tmp_path):
    x = rows(0, (60, 2, DIM))
    own = stored(tmp_path / "x", vision=x)
    values = []
    for group in x.split(SEEDS):
        for frame in group.unbind(1):
            cosines = cosine_similarity(frame.double().numpy())
            values.append((cosines.sum() - SEEDS) / (SEEDS * (SEEDS - 1)))
    assert metrics["diversity"]()(own, own)["cosine"] == pytest.approx(np.mean(values), rel=1e-9)


def test_figures_of_a_row_are_means_over_all_files(tmp_path):
    motion, one = torch.rand(60, 2), torch.rand(60, 1)
    own = stored(tmp_path / "x", motion=motion, clip=one, lpips=one)
    found = metrics["motion"]()(own, own)
    assert found["flow"] == pytest.approx(motion[:, 0].mean().item(), rel=1e-6)
    assert found["dynamic"] == pytest.approx(100 * motion[:, 1].mean().item(), rel=1e-6)
    for name in ("clip", "lpips"):
        assert metrics[name]()(own, own) == {name: pytest.approx(one.mean().item(), rel=1e-6)}


def test_measurements_that_are_not_finite_raise(tmp_path):
    own = stored(tmp_path / "x", clip=torch.full((60, 1), torch.nan))
    with pytest.raises(ValueError, match="'clip' are not finite"):
        metrics["clip"]()(own, own)
