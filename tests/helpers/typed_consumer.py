"""A program of someone who uses the library, for its types; checked by pyright, never run."""

# ruff: noqa: D, ANN
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

import torch
from torch import Tensor

import pdmd


class Line(pdmd.Teacher):
    def __init__(self) -> None:
        super().__init__(schedule=pdmd.RectifiedFlow(), kind="velocity", latent_shape=(2,))

    def network(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return -x_t

    def encode(self, prompts: Sequence[Any]) -> None:
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

# Each of these is an error, and pyright reports a comment that hides none.
pdmd.PhasePlan.uniform("2")  # pyright: ignore[reportArgumentType]
pdmd.distill(plan, Line())  # pyright: ignore[reportArgumentType]
pdmd.distill(Line(), plan, update=3)  # pyright: ignore[reportCallIssue]
pdmd.sample(student, generator=0)  # pyright: ignore[reportArgumentType]
evaluations: str = plan.nfe  # pyright: ignore[reportAssignmentType]
