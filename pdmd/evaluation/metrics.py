"""Metrics of quality and diversity, as functions of samples or features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "coverage_and_precision",
    "frechet_distance",
    "mode_histogram_kl",
    "pairwise_cosine",
    "sliced_wasserstein",
]


def frechet_distance(f: Tensor, g: Tensor) -> float:
    r"""Returns the Frechet distance between Gaussians fitted to two sets of features.

    .. math:: \|\mu_f - \mu_g\|^2 + \mathrm{tr}(C_f + C_g - 2 (C_f^{1/2} C_g C_f^{1/2})^{1/2})

    Args:
        f: Features, with shape :math:`(N, D)`.
        g: Features, with shape :math:`(M, D)`.

    References:
        Heusel et al., arXiv:1706.08500, Eq. 6.
    """
    f, g = f.double(), g.double()
    cov_f, cov_g = torch.cov(f.T), torch.cov(g.T)
    values, vectors = torch.linalg.eigh(cov_f)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_g @ root).clamp(min=0).sqrt().sum()
    shift = (f.mean(0) - g.mean(0)).square().sum()
    return float(shift + cov_f.trace() + cov_g.trace() - 2 * cross)


def coverage_and_precision(reference: Tensor, samples: Tensor, k: int = 5) -> tuple[float, float]:
    """Returns the share of reference points covered, and of samples within the reference.

    A sample lies in a reference point's ball if it is closer than the point's k-th neighbour.

    Args:
        reference: Reference points, with shape :math:`(N, D)`, N > k.
        samples: Samples, with shape :math:`(M, D)`.
        k: Neighbours that set a ball's radius.

    Raises:
        ValueError: If there are not more than k reference points.

    References:
        Naeem et al., arXiv:2002.09797, Eq. 4 (coverage); Kynkaanniemi et al., arXiv:1904.06991.
    """
    if len(reference) <= k:
        raise ValueError(
            f"coverage needs more than k = {k} reference points, got {len(reference)}"
        )
    radius = torch.cdist(reference, reference).kthvalue(k + 1, dim=1).values
    inside = torch.cdist(reference, samples) < radius[:, None]
    return float(inside.any(1).float().mean()), float(inside.any(0).float().mean())


def pairwise_cosine(features: Tensor) -> float:
    """Returns the mean cosine between different rows: lower is more diverse.

    Args:
        features: Features, with shape :math:`(N, D)`, N > 1.
    """
    unit = functional.normalize(features.double(), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 200, seed: int = 0) -> float:
    """Returns the sliced 2-Wasserstein distance between two sets of equal size.

    Args:
        x: Samples, with shape :math:`(N, D)`.
        y: Samples, with shape :math:`(N, D)`.
        projections: Number of random directions.
        seed: Seed of the directions.

    References:
        Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing, 2011.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator).to(x)
    directions = directions / directions.norm(dim=0)
    gap = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def mode_histogram_kl(modes: Tensor, number: int) -> float:
    """Returns the KL divergence of a histogram of modes, half a count added, from uniform.

    Args:
        modes: The mode of every sample, int64, with shape :math:`(N)`.
        number: How many modes there are.
    """
    counts = torch.bincount(modes, minlength=number).double() + 0.5
    p = counts / counts.sum()
    return float((p * (p * number).log()).sum())
