import pytest
import torch

from pdmd.evaluation.evaluate import format_table
from pdmd.evaluation.figures import data_uri, loss_figure
from pdmd.evaluation.metrics import (
    coverage_and_precision,
    frechet_distance,
    mode_histogram_kl,
    pairwise_cosine,
    sliced_wasserstein,
)


def test_frechet_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    shift = torch.tensor([1.0, 2.0, 0.0])
    assert frechet_distance(z, 2 * z + shift) == pytest.approx(5 + 3, rel=1e-6)
    assert frechet_distance(z, z) == pytest.approx(0, abs=1e-6)


def test_coverage_and_precision_at_their_ends():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    assert coverage_and_precision(x, x) == (1.0, 1.0)
    assert coverage_and_precision(x, x + 100) == (0.0, 0.0)
    coverage, precision = coverage_and_precision(x, x[:1].repeat(100, 1))
    assert coverage < 0.2 and precision == 1.0
    with pytest.raises(ValueError, match="more than k"):
        coverage_and_precision(x[:5], x)


def test_other_metrics_in_closed_form():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x) == 0
    one = x[:, :1]
    assert sliced_wasserstein(one, one + 3) == pytest.approx(3, rel=1e-5)
    assert mode_histogram_kl(torch.arange(8).repeat(5), 8) == pytest.approx(0, abs=1e-12)
    assert mode_histogram_kl(torch.zeros(10_000, dtype=torch.int64), 8) > 2
    assert pairwise_cosine(torch.ones(5, 3)) == pytest.approx(1)
    assert pairwise_cosine(torch.eye(4)) == pytest.approx(0)


def test_tables_align():
    lines = format_table(
        [{"method": "a", "nfe": 4, "x": 0.5}, {"method": "bb", "nfe": 50, "x": 1.0}]
    )
    assert len({len(line) for line in lines.splitlines()}) == 1 and "0.500" in lines


def test_losses_of_a_single_update_are_drawn_all():
    scalars = {"fake/score_matching": 1.0, "generator/distribution_matching": 2.0}
    figure = loss_figure([{"phase": 1, "update": 1, "scalars": scalars}])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["fake: score matching", "generator: distribution matching"]
    assert data_uri(figure).startswith("data:image/png")
