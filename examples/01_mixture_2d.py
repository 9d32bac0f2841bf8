"""Distills a ring of eight Gaussians in the plane into two experts of one step."""

import math

import torch

from pdmd import (
    AdamRecipe,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RectifiedFlow,
    distill,
    sample,
)
from pdmd.evaluation.metrics import sliced_wasserstein
from pdmd.teachers.packaged.pretraining import pretrain

angles = torch.arange(8) * 2 * math.pi / 8
teacher = MixtureTeacher(1.5 * torch.stack([angles.cos(), angles.sin()], 1), 0.1)

torch.manual_seed(0)
network = MlpDenoiser(dim=2, schedule=RectifiedFlow(), width=64)
network = pretrain(
    network, lambda n, g: (teacher.sample(n, generator=g), None), updates=800, progress=False
)
student = distill(
    teacher,
    PhasePlan.uniform(2),
    init=FromDenoiser(network),
    updates=150,
    fake_updates=3,
    optimizer=AdamRecipe(lr=5e-4),
)
generator = torch.Generator().manual_seed(1)
x = sample(student, batch=2000, generator=generator)
truth = teacher.sample(2000, generator=generator)
print(f"sliced Wasserstein distance to the truth: {sliced_wasserstein(x, truth):.3f}")
print(f"network evaluations per sample: {student.plan.nfe}")
