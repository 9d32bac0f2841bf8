r"""Metrics of quality and diversity, as functions of samples or features.

Let :math:`f_i`, of dimension :math:`d`, be the features of samples of one distribution and
:math:`g_j` those of another. There are three kinds of metrics:

- *distributions*: the Frechet distance compares fitted Gaussians; the kernel distance is the
  squared maximum mean discrepancy, :math:`\|E\phi(f) - E\phi(g)\|^2`, of the features of a cubic
  kernel; the sliced Wasserstein distance averages one-dimensional transport over directions;
- *supports*: with :math:`B(f_i)` the open ball at :math:`f_i` that reaches to its k-th neighbour,
  precision, recall, density and coverage count the points in these balls;
- *diversity of one set*: the mean cosine between pairs, over all samples or those of one prompt,
  and the Vendi score, the exponential of the entropy of the similarity matrix's eigenvalues.

Everything is computed in float64, and matrices between samples are computed a few rows at a time.
A row of zeros, which has no direction, has cosine 1 with itself and 0 with every other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pdmd.arguments import at_least, checked
from pdmd.evaluation.moments import frechet_of_gaussians

__all__ = [
    "SupportScores",
    "coverage_and_precision",
    "density_coverage_precision_recall",
    "frechet_distance",
    "kernel_distance",
    "mode_histogram_kl",
    "pairwise_cosine",
    "similarity_within_prompts",
    "sliced_wasserstein",
    "vendi_score",
]

# A point as far as the k-th neighbour lies outside the open ball, whatever the rounding of the
# two distances, which come from different matrix products.
_OPEN = 1 - 1e-9


@checked
@dataclass(frozen=True, kw_only=True)
class SupportScores:
    """The overlap of two supports; higher is better, 1 is full overlap.

    Args:
        precision: Share of the samples within the reference's support.
        recall: Share of the reference points within the samples' support.
        density: Mean number of reference balls around a sample, over k; above 1 if samples
            concentrate where the reference is dense.
        coverage: Share of the reference points whose ball contains a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@checked
def frechet_distance(f: Tensor, g: Tensor) -> float:
    r"""Returns the Frechet distance between Gaussians fitted to two sets: lower is better.

    .. math:: \|\mu_f - \mu_g\|^2 + \mathrm{tr}(C_f + C_g - 2 (C_f^{1/2} C_g C_f^{1/2})^{1/2})

    It is biased upwards for few samples: compare only values at equal sample sizes.

    Args:
        f: Features, with shape :math:`(N, D)`, N > 1.
        g: Features, with shape :math:`(M, D)`, M > 1.

    Raises:
        ValueError: If a set is too small, not finite, or of another dimension.

    References:
        Heusel et al., arXiv:1706.08500, Eq. 6.
    """
    f, g = _pair(f, g, least=2)
    dim = f.shape[1]
    cov_f, cov_g = torch.cov(f.T).reshape(dim, dim), torch.cov(g.T).reshape(dim, dim)
    return frechet_of_gaussians(f.mean(0), cov_f, g.mean(0), cov_g)


@checked
def kernel_distance(f: Tensor, g: Tensor, *, rows: int = 1024) -> float:
    r"""Returns the kernel distance (KID) between two sets of features: lower is better.

    .. math::
        \frac{\sum_{i \neq i'} k(f_i, f_{i'})}{N (N - 1)}
        + \frac{\sum_{j \neq j'} k(g_j, g_{j'})}{M (M - 1)}
        - \frac{2 \sum_{i, j} k(f_i, g_j)}{N M},
        \qquad k(a, b) = (a \cdot b / D + 1)^3

    This is the unbiased estimate of the squared maximum mean discrepancy, on all pairs rather
    than on subsets: its mean does not depend on N and M and is zero for equal distributions;
    single values may be negative.

    Args:
        f: Features, with shape :math:`(N, D)`, N > 1.
        g: Features, with shape :math:`(M, D)`, M > 1.
        rows: Rows of the kernel matrix that are computed at once.

    Raises:
        ValueError: If a set is too small, not finite, or of another dimension.

    References:
        Binkowski et al., arXiv:1801.01401; Gretton et al., A Kernel Two-Sample Test, JMLR 2012,
        Lemma 6.
    """
    at_least(1, rows=rows)
    f, g = _pair(f, g, least=2)

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([_cubic(part @ b.T, b).sum() for part in a.split(rows)]).sum()

    def within(a: Tensor) -> Tensor:
        diagonal = _cubic(a.square().sum(1), a).sum()
        return (total(a, a) - diagonal) / (len(a) * (len(a) - 1))

    return float(within(f) + within(g) - 2 * total(f, g) / (len(f) * len(g)))


@checked
def density_coverage_precision_recall(
    reference: Tensor, samples: Tensor, k: int = 5, *, rows: int = 1024
) -> SupportScores:
    r"""Compares the supports of samples and reference by balls to the k-th neighbour.

    .. math::
        \text{precision} &= \tfrac{1}{M} \textstyle\sum_j 1[\exists i: g_j \in B(f_i)]
        & \text{recall} &= \tfrac{1}{N} \textstyle\sum_i 1[\exists j: f_i \in B(g_j)] \\
        \text{density} &= \tfrac{1}{k M} \textstyle\sum_{i,j} 1[g_j \in B(f_i)]
        & \text{coverage} &= \tfrac{1}{N} \textstyle\sum_i 1[\exists j: g_j \in B(f_i)]

    for reference points :math:`f_i` and samples :math:`g_j`. One outlier of the reference has a
    large ball and raises precision; one outlier of the samples raises recall. Density and coverage
    are robust to outliers. Coverage grows with M: compare only values at equal sample sizes.

    Args:
        reference: Reference points, with shape :math:`(N, D)`, N > k.
        samples: Samples, with shape :math:`(M, D)`, M > k.
        k: The neighbour that sets a ball's radius.
        rows: Rows of the distance matrices that are computed at once.

    Raises:
        ValueError: If k is not positive, or a set is too small, not finite, or of another
            dimension.

    References:
        Naeem et al., arXiv:2002.09797 (density, coverage); Kynkaanniemi et al.,
        arXiv:1904.06991 (precision, recall).
    """
    at_least(1, rows=rows)
    reference, samples = _supports(reference, samples, k)
    if len(samples) <= k:
        raise ValueError(
            f"recall needs more than k = {k} samples, got {len(samples)}; draw more or lower k"
        )
    covered, holders = _balls(reference, samples, k, rows)
    _, sample_holders = _balls(samples, reference, k, rows)
    return SupportScores(
        precision=_share(holders),
        recall=_share(sample_holders),
        density=float(holders.double().mean() / k),
        coverage=_share(covered),
    )


@checked
def coverage_and_precision(reference: Tensor, samples: Tensor, k: int = 5) -> tuple[float, float]:
    """Returns the share of reference points covered, and of samples within the reference.

    These are two of :func:`density_coverage_precision_recall`, for any number of samples.

    Args:
        reference: Reference points, with shape :math:`(N, D)`, N > k.
        samples: Samples, with shape :math:`(M, D)`.
        k: The neighbour that sets a ball's radius.

    Raises:
        ValueError: If k is not positive, there are not more than k reference points, or a set is
            empty, not finite, or of another dimension.

    References:
        Naeem et al., arXiv:2002.09797, Eq. 4 (coverage); Kynkaanniemi et al., arXiv:1904.06991.
    """
    covered, holders = _balls(*_supports(reference, samples, k), k, rows=1024)
    return _share(covered), _share(holders)


@checked
def pairwise_cosine(features: Tensor) -> float:
    """Returns the mean cosine between different rows: lower is more diverse.

    Args:
        features: Features, with shape :math:`(N, D)`, N > 1.

    Raises:
        ValueError: If there are fewer than two rows, or they are not finite.
    """
    unit = functional.normalize(_checked(features, "features", least=2), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


@checked
def similarity_within_prompts(features: Tensor, prompt_index: Tensor) -> float:
    """Returns the mean cosine between samples of one prompt, averaged over prompts.

    Lower is more diverse. Unlike :func:`pairwise_cosine`, it ignores the differences between
    prompts. Poor samples may be diverse too: report it together with a distance.

    Args:
        features: Features, with shape :math:`(N, D)`.
        prompt_index: The prompt of every sample, int64, with shape :math:`(N)`; at least
            two of each.

    Raises:
        ValueError: If a prompt has one sample only, or shapes or values are wrong.

    References:
        Fan et al., Phased DMD, arXiv:2510.27684 (diversity over 8 seeds).
    """
    values = [pairwise_cosine(group) for group in _groups(features, prompt_index, least=2)]
    return sum(values) / len(values)


@checked
def vendi_score(features: Tensor, prompt_index: Tensor | None = None) -> float:
    r"""Returns the Vendi score, an effective number of distinct samples: higher is more diverse.

    .. math:: \exp\Big(-\sum_i \lambda_i \log \lambda_i\Big), \qquad
        \lambda = \mathrm{eig}(K / N), \quad K_{ij} = \cos(f_i, f_j)

    It ranges from 1, all rows parallel, to N, all rows orthogonal. It uses no reference: noise
    scores high.

    Args:
        features: Features, with shape :math:`(N, D)`.
        prompt_index: The prompt of every sample, int64, with shape :math:`(N)`. If given, the
            score is averaged over prompts.

    Raises:
        ValueError: If shapes or values are wrong.

    References:
        Friedman and Dieng, arXiv:2210.02410, Def. 3.1.
    """
    if prompt_index is not None:
        values = [vendi_score(group) for group in _groups(features, prompt_index, least=1)]
        return sum(values) / len(values)
    unit = functional.normalize(_checked(features, "features", least=1), dim=1)
    n, dim = unit.shape
    # Both products have the same eigenvalues but for zeros; the smaller one is enough.
    gram = unit @ unit.T if n <= dim else unit.T @ unit
    entropy = torch.special.entr(torch.linalg.eigvalsh(gram / n).clamp(min=0)).sum()
    alone = (unit == 0).all(1).sum() * torch.special.entr(unit.new_tensor(1 / n))
    return float((entropy + alone).exp())


@checked
def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 200, seed: int = 0) -> float:
    """Returns the sliced 2-Wasserstein distance between two sets of equal size: lower is better.

    Args:
        x: Samples, with shape :math:`(N, D)`.
        y: Samples, with shape :math:`(N, D)`.
        projections: Number of random directions.
        seed: Seed of the directions.

    Raises:
        ValueError: If the sets differ in shape, are empty or not finite.

    References:
        Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing, 2011.
    """
    at_least(1, projections=projections)
    x, y = _pair(x, y, least=1)
    if len(x) != len(y):
        raise ValueError(
            f"sliced_wasserstein compares sets of equal size, got {len(x)} and {len(y)} rows; "
            "drop rows of the larger set"
        )
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator).to(x)
    directions = directions / directions.norm(dim=0)
    difference = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return float(difference.square().mean().sqrt())


@checked
def mode_histogram_kl(modes: Tensor, number: int) -> float:
    """Returns the KL divergence of a histogram of modes, half a count added, from uniform.

    Args:
        modes: The mode of every sample, int64, with shape :math:`(N)`.
        number: The number of modes.

    Raises:
        ValueError: If a mode is negative or not below ``number``.
    """
    outside = modes[(modes < 0) | (modes >= number)]
    if len(outside):
        raise ValueError(
            f"expected modes from 0 to {number - 1}, got {int(outside[0])}; raise number="
        )
    counts = torch.bincount(modes, minlength=number).double() + 0.5
    p = counts / counts.sum()
    return float((p * (p * number).log()).sum())


def _cubic(products: Tensor, features: Tensor) -> Tensor:
    return (products / features.shape[1] + 1).pow(3)


def _balls(centres: Tensor, points: Tensor, k: int, rows: int) -> tuple[Tensor, Tensor]:
    """Counts the points in each centre's ball, and the balls that contain each point."""
    # cdist expands the square, which loses precision far from the origin.
    mean = centres.mean(0)
    centres, points = centres - mean, points - mean
    held = []
    holders = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for part in centres.split(rows):
        radius = torch.cdist(part, centres).kthvalue(k + 1, dim=1, keepdim=True).values
        inside = torch.cdist(part, points) < radius * _OPEN
        held.append(inside.sum(1))
        holders += inside.sum(0)
    return torch.cat(held), holders


def _share(counts: Tensor) -> float:
    return float((counts > 0).double().mean())


def _supports(reference: Tensor, samples: Tensor, k: int) -> tuple[Tensor, Tensor]:
    reference, samples = _pair(reference, samples, least=1, names=("reference", "samples"))
    if k < 1:
        raise ValueError(f"expected k >= 1 neighbours, got k = {k}")
    if len(reference) <= k:
        raise ValueError(
            f"coverage needs more than k = {k} reference points, got {len(reference)}; "
            "draw more or lower k"
        )
    return reference, samples


def _groups(features: Tensor, prompt_index: Tensor, least: int) -> list[Tensor]:
    features = _checked(features, "features", least=least)
    if prompt_index.shape != features.shape[:1] or prompt_index.is_floating_point():
        raise ValueError(
            f"prompt_index must have one integer for each of {len(features)} rows, got shape "
            f"{tuple(prompt_index.shape)} of {prompt_index.dtype}"
        )
    prompts, counts = prompt_index.unique(return_counts=True)
    if int(counts.min()) < least:
        raise ValueError(
            f"prompt {int(prompts[counts.argmin()])} has {int(counts.min())} sample, and pairs "
            f"need {least}; draw more samples of it or leave it out"
        )
    return [features[prompt_index == prompt] for prompt in prompts]


def _pair(
    f: Tensor, g: Tensor, *, least: int, names: tuple[str, str] = ("the first", "the second")
) -> tuple[Tensor, Tensor]:
    f, g = _checked(f, names[0], least=least), _checked(g, names[1], least=least)
    if f.shape[1] != g.shape[1]:
        raise ValueError(
            f"{names[0]} set has dimension {f.shape[1]} and {names[1]} {g.shape[1]}; take both "
            "from one feature extractor"
        )
    return f, g.to(f.device)


def _checked(features: Tensor, name: str, *, least: int) -> Tensor:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"{name}: expected floating point rows of shape (N, D), got shape "
            f"{tuple(features.shape)} of {features.dtype}; apply a feature extractor or flatten(1)"
        )
    if len(features) < least or features.shape[1] < 1:
        raise ValueError(
            f"{name}: expected at least {least} rows of dimension 1 or more, got shape "
            f"{tuple(features.shape)}; draw more samples"
        )
    finite = features.isfinite().all(1)
    if not finite.all():
        raise ValueError(
            f"{name}: {int((~finite).sum())} of {len(features)} rows are not finite; drop them "
            "and report their share, or inspect the samples"
        )
    return features.double()
