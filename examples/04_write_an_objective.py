"""Defines an objective, composes it, and restricts it to one phase."""

from pdmd import (
    DistributionMatching,
    FakeScoreTraining,
    Objective,
    PhasePlan,
    Rollouts,
    distill,
    teachers,
)


class Variance(Objective):
    """Matches the variance of the output to that of diffused data of a known deviation."""

    def __init__(self, std=1.0, name="variance"):
        self.std, self.name = std, name

    def losses(self, models, rollout, generator):
        alpha_s, sigma_s = models.fake.schedule(rollout.phase.t_end)
        expected = alpha_s**2 * self.std**2 + sigma_s**2
        error = rollout.x_s.float().var() / float(expected) - 1
        return {self.name: error.square()}


objective = DistributionMatching() + 0.1 * Variance().only(2)  # in the second phase
student = distill(
    teachers.get("digits")(),
    PhasePlan.uniform(2),
    updates=5,
    generator_objective=objective,
    rollouts=Rollouts(batch_size=32),
    fake_scores=FakeScoreTraining(updates=1),
)
print(f"{objective!r}\n{student.plan.nfe} NFE")
