"""Checks of what an objective returned, with the role and phase, and of experts."""

import warnings

import pytest
import torch

from pdmd import (
    DistributionMatching,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    PhasePlan,
)
from pdmd.training.checks import check_update
from tests.helpers.distilling import distill

PHASE = PhasePlan.uniform(2)[1]
TRAINS, CONSTANT = torch.ones((), requires_grad=True), torch.ones(())


def test_a_loss_without_a_gradient_is_named_where_others_have_one():
    losses = {"matching": TRAINS, "extra": CONSTANT}
    with pytest.warns(UserWarning, match="'extra' of the generator's .* in phase 2") as said:
        assert check_update(DistributionMatching(), losses, "generator", PHASE) == losses
    assert len(said) == 1
    with warnings.catch_warnings():  # the penalty of a critic may be constant
        warnings.simplefilter("error")
        check_update(DistributionMatching(), losses, "fake score", PHASE)


def test_an_objective_without_a_gradient_raises():
    with pytest.raises(ValueError, match="no loss of the generator's objective has a gradient"):
        check_update(DistributionMatching(), {"extra": CONSTANT}, "generator", PHASE)


class ScaledExpert(OdeExpert):
    """Its scale is no parameter of its network, and would stay as it is."""

    def __init__(self, denoiser, phase):
        super().__init__(denoiser, phase)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def advance(self, prediction, tau, generator):
        return self.scale * super().advance(prediction, tau, generator)


def test_an_expert_with_parameters_of_its_own_is_named():
    teacher = MixtureTeacher.random(dim=2, modes=2, classes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    told = "the ScaledExpert has the parameter 'scale' of its own, which would neither be trained"
    with pytest.raises(ValueError, match=told):
        distill(
            teacher,
            PhasePlan.uniform(2),
            init=FromDenoiser(network),
            updates=1,
            expert=ScaledExpert,
        )
