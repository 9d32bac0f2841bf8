"""Checks of what an objective returned, with the role and phase."""

import warnings

import pytest
import torch

from pdmd import DistributionMatching, PhasePlan
from pdmd.training.checks import check_update

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
