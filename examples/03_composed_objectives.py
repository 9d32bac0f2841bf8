"""Composes objectives, one of them custom and one adversarial, and draws pictures."""

import torch

import pdmd
from pdmd.objectives import Adversarial, Critics, DiscriminatorLoss, FeatureCritic, TeacherSamples
from pdmd.teachers.guided import unguided


class Repulsion(pdmd.Objective):
    """Pushes the samples of a batch apart."""

    name = "repulsion"

    def losses(self, models, rollout, generator):
        distances = torch.pdist(rollout.x_s.float().flatten(1))
        return {self.name: torch.exp(-distances / distances.mean().detach()).mean()}


teacher = pdmd.Guided(pdmd.teachers.get("digits")(), scale=1.5)
real = TeacherSamples(pool=128, steps=8)  # 1024 and 20 by default
critics = Critics(lambda models, phase, example: FeatureCritic(unguided(models.real), example))
objective = (
    pdmd.DistributionMatching()
    + 0.02 * Repulsion()
    + 0.02 * Adversarial(critics).only(2)  # in the second phase, counted from 1
)
print(objective)
student = pdmd.distill(
    teacher,
    pdmd.PhasePlan.uniform(2, steps=2),
    updates=10,  # enough to see it run; the digits preset takes 220
    generator_objective=objective,
    fake_objective=pdmd.SubintervalScoreMatching() + DiscriminatorLoss(critics, real),
    rollouts=pdmd.Rollouts(batch_size=32),
    fake_scores=pdmd.FakeScoreTraining(updates=1),
)
condition = student.encode([0, 1, 2, 3])
x = pdmd.sample(student, condition, generator=torch.Generator().manual_seed(0))
pictures = unguided(teacher).decode(x)  # (4, 1, 8, 8), in [0, 1]
for row in torch.cat([*pictures[:, 0]], 1):
    print("".join(" .:-=+*#%@"[int(9.99 * value)] * 2 for value in row))
