r"""Moments: mean and covariance of rows, accumulated in float64.

A new block of :math:`n` rows with mean :math:`\mu` and scatter :math:`S` joins :math:`N` rows with
:math:`\bar\mu` and :math:`\bar S` by

.. math::
    \bar S \leftarrow \bar S + S + \frac{N n}{N + n} \delta \delta^T, \qquad
    \bar\mu \leftarrow \bar\mu + \frac{n}{N + n} \delta, \qquad \delta = \mu - \bar\mu,

so that nothing larger than a block and a matrix of :math:`D \times D` is in memory.

References:
    Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.arguments import checked

__all__ = ["Moments", "frechet_of_gaussians"]


class Moments:
    """The number, mean and scatter of rows that are added in blocks.

    Attributes:
        count: The number of rows so far.
        mean: Their mean, float64, with shape :math:`(D)`.
        scatter: The sum of the outer products of their deviations, with shape :math:`(D, D)`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros(0, dtype=torch.float64)

    @checked
    def add(self, rows: Tensor) -> None:
        """Adds rows of shape :math:`(n, D)`.

        Raises:
            ValueError: If they are not finite, or of another dimension.
        """
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"expected rows of shape (n, D), got {tuple(rows.shape)}")
        rows = rows.double()
        if not bool(rows.isfinite().all()):
            raise ValueError("features are not finite; inspect the samples")
        mean = rows.mean(0)
        centred = rows - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"rows have dimension {len(mean)} and those before {len(self.mean)}; take all "
                "from one feature extractor"
            )
        total, delta = self.count + len(rows), mean - self.mean
        weight = self.count * len(rows) / total
        self.scatter = self.scatter + scatter + weight * torch.outer(delta, delta)
        self.mean = self.mean + len(rows) / total * delta
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, with shape :math:`(D, D)`.

        Raises:
            ValueError: If there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 rows or more, got {self.count}")
        return self.scatter / (self.count - 1)


@checked
def frechet_of_gaussians(
    mean_f: Tensor, covariance_f: Tensor, mean_g: Tensor, covariance_g: Tensor
) -> float:
    r"""Returns the Frechet distance between two Gaussians.

    .. math:: \|\mu_f - \mu_g\|^2 + \mathrm{tr}(C_f + C_g - 2 (C_f^{1/2} C_g C_f^{1/2})^{1/2})

    Args:
        mean_f: The mean of one, float64, with shape :math:`(D)`.
        covariance_f: Its covariance, with shape :math:`(D, D)`.
        mean_g: The mean of the other.
        covariance_g: Its covariance.

    Raises:
        ValueError: If the dimensions differ.

    References:
        Dowson and Landau, The Frechet Distance between Multivariate Normal Distributions, 1982.
    """
    if mean_f.shape != mean_g.shape:
        raise ValueError(
            f"the first set has dimension {tuple(mean_f.shape)[-1:]} and the second "
            f"{tuple(mean_g.shape)[-1:]}; take both from one feature extractor"
        )
    shapes = [tuple(x.shape) for x in (mean_f, covariance_f, covariance_g)]
    if mean_f.ndim != 1 or any(shape != 2 * shapes[0] for shape in shapes[1:]):
        raise ValueError(f"a mean has shape (D) and a covariance (D, D), got {shapes}")
    shift = (mean_f - mean_g).square().sum()
    values, vectors = torch.linalg.eigh(covariance_f)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_g @ root).clamp(min=0).sqrt().sum()
    return float(shift + covariance_f.trace() + covariance_g.trace() - 2 * cross)
