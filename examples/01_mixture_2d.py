"""Distills eight Gaussians on a circle into two experts of one step."""

import math

import torch

from pdmd import (
    AdamRecipe,
    ExpertTraining,
    FakeScoreTraining,
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
    updates=150,
    experts=ExpertTraining(initializer=FromDenoiser(network), optimizer=AdamRecipe(lr=5e-4)),
    fake_scores=FakeScoreTraining(updates=3),
)
generator = torch.Generator().manual_seed(1)
x = sample(student, batch=2000, generator=generator)
truth = teacher.sample(2000, generator=generator)
print(f"sliced Wasserstein distance to the exact law: {sliced_wasserstein(x, truth):.3f}")
print(f"NFE: {student.plan.nfe}")
