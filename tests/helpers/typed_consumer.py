"""A program of someone who uses the library, for its types; checked by pyright, never run."""

# ruff: noqa: D, ANN
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

import torch
from torch import Tensor

import pdmd
from pdmd.conformance import check
from pdmd.evaluation import metrics
from pdmd.objectives import Adversarial, Critics, DiscriminatorLoss, MlpCritic, TeacherSamples
from pdmd.training.checkpoints.checkpointer import Checkpointer
from pdmd.training.monitoring.detectors import Detector, Finding, HealthRecord


class Line(pdmd.Teacher):
    def __init__(self) -> None:
        super().__init__(schedule=pdmd.RectifiedFlow(), kind="velocity", latent_shape=(2,))

    def network(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return -x_t

    def encode(self, prompts: Sequence[Any]) -> None:
        return None


class Distance(pdmd.Objective):
    name = "distance"

    def losses(
        self, models: pdmd.Models, rollout: pdmd.Rollout, generator: torch.Generator
    ) -> dict[str, Tensor]:
        prediction = models.real(rollout.x_s, rollout.phase.t_end)
        assert_type(prediction, pdmd.Prediction)
        return {self.name: (prediction.to("x0") - rollout.x_s).square().mean()}


class Quiet(Detector):
    def observe(self, record: HealthRecord) -> Finding | None:
        return None


plan = pdmd.PhasePlan.uniform(2, steps=2, shift=1.5)
assert_type(plan, pdmd.PhasePlan)
assert_type(plan.nfe, int)

objective = pdmd.DistributionMatching() + 0.02 * pdmd.objectives.Repulsion()
assert_type(objective, pdmd.WeightedSum)
assert_type(objective - pdmd.objectives.Repulsion() / 2, pdmd.WeightedSum)
assert_type(pdmd.PhasePlan.on(pdmd.VarianceExploding(80.0), 2), pdmd.PhasePlan)

student = pdmd.distill(
    pdmd.Guided(Line(), scale=1.5),
    plan,
    updates=200,
    generator_objective=objective,
    experts=pdmd.ExpertTraining(optimizer=pdmd.AdamRecipe(lr=3e-4)),
)
assert_type(student, pdmd.Student)
again = pdmd.Student.load("student", teacher=Line())
assert_type(again, pdmd.Student)
assert_type(pdmd.Student.from_pretrained("somebody/few", revision="main"), pdmd.Student)

x = pdmd.sample(again, batch=4, generator=torch.Generator().manual_seed(0))
assert_type(x, Tensor)

assert_type(pdmd.trajectory(again, batch=4), list[Tensor])
assert_type(metrics.frechet_distance(x, x), float)
assert_type([phase.number for phase in again.plan], list[int])
mixture = pdmd.MixtureTeacher.random(dim=4, classes=2)
assert_type(check(mixture).passed, bool)

critics = Critics(lambda models, phase, example: MlpCritic(4))
pdmd.distill(
    pdmd.Guided(mixture, scale=2.0),
    pdmd.PhasePlan.from_timesteps([1.0, 0.5, 0.0], steps=[1, 1]),
    [0, 1],
    updates=[3, 4],
    generator_objective=Distance() + 0.1 * Adversarial(critics).only(1),
    fake_objective=pdmd.SubintervalScoreMatching() + DiscriminatorLoss(critics, TeacherSamples()),
    rollouts=pdmd.Rollouts(batch_size=8, phase_inputs=pdmd.PhaseInputBuffer(8)),
    fake_scores=pdmd.FakeScoreTraining(updates=pdmd.AdaptiveUpdates()),
    session=pdmd.Session(checkpointer=Checkpointer("runs/mine", every=50)),
)

# Each of these is an error, and pyright reports a comment that hides none.
pdmd.PhasePlan.uniform("2")  # pyright: ignore[reportArgumentType]
pdmd.distill(plan, Line())  # pyright: ignore[reportArgumentType]
pdmd.distill(Line(), plan, update=3)  # pyright: ignore[reportCallIssue]
pdmd.sample(student, generator=0)  # pyright: ignore[reportArgumentType]
evaluations: str = plan.nfe  # pyright: ignore[reportAssignmentType]
