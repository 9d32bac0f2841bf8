"""Modes of evaluation: each part gets back its own, and calls without gradients are named."""

import pytest
import torch
from torch import nn

from pdmd.conformance import check
from pdmd.diffusion.modes import evaluation_mode
from tests.helpers.broken_teachers import SmallTeacher
from tests.helpers.small_runs import small


def test_every_part_gets_back_its_mode():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    before = [part.training for part in module.modules()]
    with pytest.raises(RuntimeError, match="within"), evaluation_mode(module):
        assert not any(part.training for part in module.modules())
        raise RuntimeError("within")
    assert [part.training for part in module.modules()] == before


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("call", "name"), [(small, "distill"), (lambda: check(SmallTeacher()), "check")]
)
def test_where_gradients_are_off_is_named(off, call, name):
    with off(), pytest.raises(ValueError, match=f"{name} computes gradients.*{off.__name__}"):
        call()
