"""A teacher and networks that take samples of any size: number by number, affine in it and t."""

import torch
from torch import nn

from pdmd import RectifiedFlow, Teacher
from pdmd.distillation.buckets import Bucket, Buckets

SIZES = Buckets(
    [
        Bucket(latent_shape=(2, 4), weight=1.0),
        Bucket(latent_shape=(2, 6), weight=2.0, shift=1.5),
        Bucket(latent_shape=(2, 3), weight=1.0, shift=0.5),
    ]
)


class AnySize(Teacher):
    """The velocity of a normal distribution, multiplied by a weight that trains."""

    def __init__(self, latent_shape=(2, 4), *, accepts=lambda shape: True):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=latent_shape)
        self.weight = nn.Parameter(torch.ones(2))
        self.accepts = accepts

    def encode(self, prompts):
        return None

    def network(self, x_t, t, condition):
        if not self.accepts(x_t.shape[1:]):
            raise ValueError(f"{x_t.shape[-1]} tokens are not divisible by 2")
        t = t.to(x_t.dtype)[:, None, None]
        slope = (t - 0.25 * (1 - t)) / ((0.5 * (1 - t)) ** 2 + t**2)
        return self.weight[:, None] * slope * x_t
