"""Writes an objective, composes it, and limits it to one phase."""

from pdmd import DistributionMatching, Objective, PhasePlan, distill, teachers


class Variance(Objective):
    """Matches the variance of x_s to that of diffused data with a known standard deviation."""

    def __init__(self, std=1.0, name="variance"):
        self.std, self.name = std, name

    def losses(self, models, rollout, generator):
        alpha_s, sigma_s = models.fake.schedule(rollout.phase.t_end)
        wanted = alpha_s**2 * self.std**2 + sigma_s**2
        gap = rollout.x_s.float().var() / float(wanted) - 1
        return {self.name: gap.square()}


generator = DistributionMatching() + 0.1 * Variance().only(2)
student = distill(
    teachers.get("digits")(),
    PhasePlan.uniform(2),
    generator=generator,
    updates=5,
    fake_updates=1,
    batch_size=32,
)
print(f"{generator!r}\n{student.plan.nfe} evaluations per sample")
