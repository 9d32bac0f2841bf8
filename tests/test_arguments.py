"""Arguments: numbers of other libraries are taken, and what merely looks like one is not."""

import numpy as np
import pytest
import torch

import pdmd
from pdmd import (
    AdamRecipe,
    FromDenoiser,
    Guided,
    MixtureTeacher,
    MlpDenoiser,
    Phase,
    PhasePlan,
    Rollouts,
)
from pdmd.conformance import check
from tests.helpers.distilling import distill
from tests.helpers.small_runs import weights

TEACHER = MixtureTeacher.random(dim=2, modes=2, classes=2)
NETWORK = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
PLAN = PhasePlan.uniform(2)


def distilled(**settings):
    settings = {"updates": 1, "seed": 0, **settings}
    return distill(
        TEACHER, PLAN, init=FromDenoiser(NETWORK), fake_updates=1, batch_size=2, **settings
    )


@pytest.mark.parametrize(
    ("call", "name", "number"),
    [
        (lambda **more: Guided(TEACHER, **more).scales, "scale", np.float32(1.5)),
        (lambda **more: Guided(TEACHER, **more).scales, "scale", np.int64(2)),
        (lambda **more: PhasePlan.uniform(2, **more), "steps", np.int64(2)),
        (lambda **more: Rollouts(**more).batch_size, "batch_size", np.int32(8)),
        (lambda **more: AdamRecipe(**more), "lr", np.float32(0.25)),
        (lambda **more: pdmd.sample_ode(TEACHER, batch=2, **more).shape, "steps", np.int64(3)),
        (lambda **more: weights(distilled(**more)).tolist(), "seed", np.int64(3)),
        (lambda **more: weights(distilled(**more)).tolist(), "updates", np.int64(2)),
        (lambda **more: str(check(TEACHER, skip=["score"], **more)), "seed", np.int64(3)),
    ],
)
def test_a_number_of_numpy_is_taken_as_that_of_python(call, name, number):
    assert call(**{name: number}) == call(**{name: number.item()})


def test_a_field_has_the_number_of_python():
    phase = Phase(index=np.int64(0), timesteps=(1.0,), t_end=np.float32(0), score_range=(0, 1))
    assert type(phase.index) is int and type(phase.t_end) is float


@pytest.mark.parametrize("updates", [np.array([1, 2]), torch.tensor([1, 2])])
def test_updates_of_the_phases_may_be_an_array(updates):
    found = distilled(updates=updates, progress=True)  # the bar computes with them
    assert torch.equal(weights(found), weights(distilled(updates=[1, 2])))


@pytest.mark.parametrize("updates", [torch.tensor(2), np.array(2), torch.tensor([1.5, 2.0])])
def test_what_is_no_sequence_of_integers_is_named(updates):
    distilled(updates=torch.tensor([1, 1]))  # of the same class
    with pytest.raises(TypeError, match="updates takes an integer or a sequence.*, got"):
        distilled(updates=updates)


def test_a_name_is_no_collection_of_names():
    with pytest.raises(TypeError, match="skip takes an iterable, got 'score'"):
        check(TEACHER, skip="score")


def test_a_number_that_is_none_is_named():
    with pytest.raises(ValueError, match="scale is nan"):
        Guided(TEACHER, np.float32("nan"))
