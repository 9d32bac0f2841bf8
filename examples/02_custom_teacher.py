"""Registers a custom teacher and distills it."""

import torch

from pdmd import (
    FakeScoreTraining,
    PhasePlan,
    RectifiedFlow,
    Shifted,
    Teacher,
    distill,
    sample,
    teachers,
)


@teachers.register("line")
class LineTeacher(Teacher):
    """An elongated Gaussian: its exact posterior mean, with trainable gains."""

    def __init__(self):
        super().__init__(
            schedule=Shifted(RectifiedFlow(), shift=2.0), kind="x0", latent_shape=(2,)
        )
        self.gain = torch.nn.Parameter(torch.ones(2))

    def network(self, x_t, t, condition):
        alpha_t, sigma_t = self.schedule(t)
        variance = torch.tensor([1.0, 0.01], dtype=torch.float64)
        diffused = alpha_t[:, None] ** 2 * variance + sigma_t[:, None] ** 2
        posterior = self.gain * alpha_t[:, None] * variance / diffused
        return (posterior * x_t.double()).to(x_t.dtype)

    def encode(self, prompts):
        return None


student = distill(
    LineTeacher(),
    PhasePlan.uniform(2, steps=2),
    updates=20,
    fake_scores=FakeScoreTraining(updates=1),
)
x = sample(student, batch=1000, generator=torch.Generator().manual_seed(0))
print(f"standard deviations of the student: {x.std(0).tolist()}; of the teacher: [1.0, 0.1]")
