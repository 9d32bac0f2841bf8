"""Metrics: closed forms, naive double loops, invariances and errors."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd.evaluation.metrics import (
    coverage_and_precision,
    density_coverage_precision_recall,
    frechet_distance,
    kernel_distance,
    mode_histogram_kl,
    pairwise_cosine,
    similarity_within_prompts,
    sliced_wasserstein,
    vendi_score,
)
from tests.helpers.strategies import seeds


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(dim, seed=1):
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def cubic(a, b):
    return (float(a @ b) / len(a) + 1) ** 3


def naive_kernel_distance(f, g):
    n, m = len(f), len(g)
    first = sum(cubic(f[i], f[j]) for i in range(n) for j in range(n) if i != j)
    second = sum(cubic(g[i], g[j]) for i in range(m) for j in range(m) if i != j)
    cross = sum(cubic(a, b) for a in f for b in g)
    return first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * cross / (n * m)


def naive_support(reference, samples, k):
    def radius(points, i):
        return sorted(float((points[i] - p).norm()) for p in points)[k]

    def inside(centres, points):
        radii = [radius(centres, i) for i in range(len(centres))]
        return [
            [float((c - p).norm()) < r for p in points]
            for c, r in zip(centres, radii, strict=True)
        ]

    of_reference, of_samples = inside(reference, samples), inside(samples, reference)
    n, m = len(reference), len(samples)
    return (
        sum(any(row[j] for row in of_reference) for j in range(m)) / m,
        sum(any(row[i] for row in of_samples) for i in range(n)) / n,
        sum(map(sum, of_reference)) / (k * m),
        sum(map(any, of_reference)) / n,
    )


def scores(reference, samples, **settings):
    s = density_coverage_precision_recall(reference, samples, **settings)
    return s.precision, s.recall, s.density, s.coverage


# Distances between distributions


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 4), seeds)
def test_kernel_distance_is_the_double_loop(n, m, dim, seed):
    f, g = normal(n, dim, seed=seed), 0.5 + normal(m, dim, seed=seed + 1)
    expected = naive_kernel_distance(f, g)
    assert kernel_distance(f, g) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert kernel_distance(f, g, rows=2) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_kernel_distance_is_unbiased():
    # All pairs from each of two distributions on two points: the mean is exact.
    p, q = normal(2, 3), normal(2, 3, seed=1)

    def mean(p, q):
        pairs = list(itertools.product(range(2), repeat=2))
        values = [kernel_distance(p[list(a)], q[list(b)]) for a in pairs for b in pairs]
        return sum(values) / len(values)

    def expectation(a, b):
        return sum(cubic(x, y) for x in a for y in b) / 4

    assert mean(p, p) == pytest.approx(0, abs=1e-12)
    population = expectation(p, p) + expectation(q, q) - 2 * expectation(p, q)
    assert mean(p, q) == pytest.approx(population)


def test_kernel_distance_of_equal_distributions_is_centred():
    values = torch.tensor(
        [kernel_distance(normal(40, 4, seed=i), normal(30, 4, seed=1000 + i)) for i in range(200)]
    )
    assert float(values.mean().abs() / (values.std() / math.sqrt(200))) < 3
    assert values.min() < 0 < values.max()


def test_kernel_distance_of_two_points():
    a, b = 2.0, -1.0
    f, g = torch.full((5, 1), a), torch.full((7, 1), b)
    expected = (a * a + 1) ** 3 + (b * b + 1) ** 3 - 2 * (a * b + 1) ** 3
    assert kernel_distance(f, g) == pytest.approx(expected)


@given(seeds)
def test_distances_are_symmetric_and_invariant(seed):
    f, g = normal(30, 4, seed=seed), 2 * normal(25, 4, seed=seed + 1) + 1
    q, order = rotation(4, seed + 2), torch.randperm(30)
    for distance in (frechet_distance, kernel_distance):
        value = pytest.approx(distance(f, g), rel=1e-8, abs=1e-8)
        assert distance(g, f) == value
        assert distance(f[order], g) == value
        assert distance(f @ q, g @ q) == value
    shift = normal(4, seed=seed + 3)
    assert frechet_distance(f + shift, g + shift) == pytest.approx(
        frechet_distance(f, g), rel=1e-8
    )
    assert frechet_distance(3 * f, 3 * g) == pytest.approx(9 * frechet_distance(f, g), rel=1e-8)


def test_frechet_distance_in_one_dimension():
    f, g = normal(50, 1), 3 * normal(60, 1, seed=1) + 2
    expected = (f.mean() - g.mean()) ** 2 + (f.std() - g.std()) ** 2
    assert frechet_distance(f, g) == pytest.approx(float(expected))


# Supports


@given(st.integers(4, 12), st.integers(4, 12), st.integers(1, 3), st.integers(1, 3), seeds)
def test_support_scores_are_the_double_loop(n, m, dim, k, seed):
    reference, samples = normal(n, dim, seed=seed), normal(m, dim, seed=seed + 1)
    expected = pytest.approx(naive_support(reference, samples, k))
    assert scores(reference, samples, k=k) == expected
    assert scores(reference, samples, k=k, rows=3) == expected


@given(seeds)
def test_precision_and_recall_swap(seed):
    x, y = normal(40, 3, seed=seed), 0.5 * normal(30, 3, seed=seed + 1)
    forward = density_coverage_precision_recall(x, y)
    backward = density_coverage_precision_recall(y, x)
    assert (forward.precision, forward.recall) == (backward.recall, backward.precision)
    assert coverage_and_precision(x, y) == (forward.coverage, forward.precision)


@given(seeds)
def test_supports_are_invariant(seed):
    x, y = normal(40, 3, seed=seed), normal(30, 3, seed=seed + 1)
    expected = pytest.approx(scores(x, y))
    assert scores(x[torch.randperm(40)], y[torch.randperm(30)]) == expected
    q = rotation(3, seed)
    assert scores(5 * x @ q + 1e7, 5 * y @ q + 1e7) == expected


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_set_against_itself_has_density_one(offset):
    # Each open ball contains its centre and k - 1 neighbours; the k-th lies on its boundary.
    x = normal(200, 16) + offset
    assert scores(x, x, k=4) == (1, 1, 1, 1)
    assert scores(x, x, k=4, rows=7) == (1, 1, 1, 1)


def test_density_exceeds_one_where_all_balls_meet():
    # Balls to the 5th of twelve neighbours on the unit circle contain the circle's centre.
    angle = torch.arange(12, dtype=torch.float64) * (2 * math.pi / 12)
    reference = torch.stack([angle.cos(), angle.sin()], 1)
    s = density_coverage_precision_recall(reference, 0.001 * normal(40, 2), k=5)
    assert s.density == pytest.approx(12 / 5)
    assert (s.precision, s.recall, s.coverage) == (1, 0, 1)


def test_an_outlier_raises_precision_but_not_density():
    reference = torch.cat([normal(100, 2), torch.tensor([[1000.0, 0.0]])])
    samples = normal(100, 2, seed=1) + torch.tensor([500.0, 0.0])
    s = density_coverage_precision_recall(reference, samples, k=5)
    assert s.precision > 0.4 and s.density < 0.21 and s.coverage < 0.02


# Diversity


@given(st.integers(2, 12), st.integers(1, 20), seeds)
def test_vendi_score_is_bounded_and_invariant(n, dim, seed):
    f = normal(n, dim, seed=seed)
    value = vendi_score(f)
    assert 1 - 1e-9 <= value <= min(n, dim) + 1e-9
    expected = pytest.approx(value, rel=1e-7)
    scale = 0.1 + torch.rand(n, 1, dtype=torch.float64)
    assert vendi_score(scale * f[torch.randperm(n)] @ rotation(dim, seed)) == expected
    assert vendi_score(torch.cat([f, torch.zeros(n, 20)], 1)) == expected
    assert vendi_score(f.repeat(4, 1)) == expected


def test_vendi_score_in_closed_form():
    assert vendi_score(torch.eye(7)) == pytest.approx(7)
    assert vendi_score(torch.ones(7, 3)) == pytest.approx(1)
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    groups = torch.eye(3).repeat_interleave(torch.tensor([4, 2, 2]), dim=0)
    assert vendi_score(groups) == pytest.approx(float(torch.special.entr(shares).sum().exp()))
    angle = 0.7
    two = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    p = torch.tensor([1 + math.cos(angle), 1 - math.cos(angle)]) / 2
    assert vendi_score(two) == pytest.approx(float(torch.special.entr(p).sum().exp()))


def test_rows_of_zeros_are_similar_only_to_themselves():
    f = torch.cat([torch.eye(4), torch.zeros(2, 4)])
    assert vendi_score(f) == pytest.approx(6)
    assert vendi_score(f[:5]) == pytest.approx(5)
    assert pairwise_cosine(f) == pytest.approx(0)
    assert pairwise_cosine(torch.cat([torch.ones(2, 4), torch.zeros(1, 4)])) == pytest.approx(
        1 / 3
    )


@given(st.integers(2, 8), st.integers(1, 5), seeds)
def test_pairwise_cosine_is_the_double_loop(n, dim, seed):
    f = normal(n, dim, seed=seed)
    cosines = [
        float(torch.cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(f, 2)
    ]
    assert pairwise_cosine(f) == pytest.approx(sum(cosines) / len(cosines))


@given(seeds)
def test_scores_within_prompts_ignore_other_prompts(seed):
    f, prompt = normal(12, 5, seed=seed), torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 2, 4, 4, 4])
    groups = [f[prompt == p] for p in (2, 4, 7)]
    # A rotation of one prompt's samples changes cosines between prompts, not within.
    moved = torch.where((prompt == 2)[:, None], f @ rotation(5, seed), f)
    order = torch.randperm(12)
    for score, alone in (
        (similarity_within_prompts, pairwise_cosine),
        (vendi_score, vendi_score),
    ):
        expected = pytest.approx(sum(alone(g) for g in groups) / 3)
        assert score(f, prompt) == expected
        assert score(moved, prompt) == expected
        assert score(f[order], prompt[order]) == expected
        assert score(f, 100 - prompt) == expected
        assert score(f, torch.zeros_like(prompt)) == pytest.approx(alone(f))


def test_different_prompts_hide_collapse_from_the_overall_score():
    f, prompt = torch.eye(5).repeat_interleave(4, 0), torch.arange(5).repeat_interleave(4)
    assert similarity_within_prompts(f, prompt) == pytest.approx(1)
    assert vendi_score(f, prompt) == pytest.approx(1)
    assert pairwise_cosine(f) < 0.2 and vendi_score(f) == pytest.approx(5)


# Errors


@pytest.mark.parametrize(
    "call",
    [
        frechet_distance,
        kernel_distance,
        density_coverage_precision_recall,
        coverage_and_precision,
        sliced_wasserstein,
        lambda f, g: pairwise_cosine(g),
        lambda f, g: vendi_score(g),
        lambda f, g: similarity_within_prompts(g, torch.zeros(len(g), dtype=torch.int64)),
    ],
)
def test_invalid_features_raise(call):
    good, bad = normal(20, 3), normal(20, 3)
    bad[4, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 20 rows are not finite"):
        call(good, bad)
    with pytest.raises(ValueError, match=r"shape \(N, D\).*flatten"):
        call(good, normal(20, 3, 2))
    with pytest.raises(ValueError, match="floating point"):
        call(good, torch.ones(20, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="draw more samples"):
        call(good, good[:0])


def test_mismatched_arguments_raise():
    x = normal(10, 3)
    for call in (frechet_distance, kernel_distance, coverage_and_precision, sliced_wasserstein):
        with pytest.raises(ValueError, match="dimension 3 and .* 2"):
            call(x, x[:, :2])
    with pytest.raises(ValueError, match="equal size, got 10 and 9"):
        sliced_wasserstein(x, x[:9])
    with pytest.raises(ValueError, match="more than k = 5 samples, got 5"):
        density_coverage_precision_recall(x, x[:5])
    assert coverage_and_precision(x, x[:5])[1] == 1
    with pytest.raises(ValueError, match="k >= 1"):
        density_coverage_precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="prompt 3 has 1 sample"):
        similarity_within_prompts(x, torch.tensor([1] * 9 + [3]))
    with pytest.raises(ValueError, match="one integer for each of 10"):
        similarity_within_prompts(x, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="from 0 to 3, got 4"):
        mode_histogram_kl(torch.tensor([0, 4]), 4)


# Closed forms


def test_frechet_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    shift = torch.tensor([1.0, 2.0, 0.0])
    assert frechet_distance(z, 2 * z + shift) == pytest.approx(5 + 3, rel=1e-6)
    assert frechet_distance(z, z) == pytest.approx(0, abs=1e-6)


def test_coverage_and_precision_at_their_extremes():
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
