"""Composes distribution matching with a custom objective."""

import torch

from pdmd import (
    DistributionMatching,
    ExpertTraining,
    FakeScoreTraining,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    Objective,
    PhasePlan,
    SubintervalScoreMatching,
    distill,
)
from pdmd.objectives import PosteriorDifference, RatioWeighting


class Repulsion(Objective):
    """Pushes the samples of a batch apart."""

    name = "repulsion"

    def losses(self, models, rollout, generator):
        distances = torch.pdist(rollout.x_s.float())
        return {self.name: torch.exp(-distances).mean()}


teacher = MixtureTeacher.random(dim=4, classes=3, modes=2)
network = MlpDenoiser.rectified_flow(dim=4, classes=3)
objective = DistributionMatching(PosteriorDifference()) + 0.05 * Repulsion()
print(objective)
student = distill(
    teacher,
    PhasePlan.uniform(2),
    updates=20,
    generator_objective=objective,
    fake_objective=SubintervalScoreMatching(RatioWeighting()),
    experts=ExpertTraining(initializer=FromDenoiser(network)),
    fake_scores=FakeScoreTraining(updates=2),
)
print(f"{len(student.experts)} experts, {student.plan.nfe} NFE")
