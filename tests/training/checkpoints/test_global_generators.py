"""Networks that draw from torch's global generators resume to the same bits."""

import pytest
import torch
from torch import nn

from pdmd import PhasePlan, RectifiedFlow, Teacher
from pdmd.teachers.mixture import encode_labels
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from tests.helpers.distilling import distill
from tests.helpers.small_runs import StopAt, weights


class Dropping(Teacher):
    prompts = [0, 1]

    def __init__(self):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(4,))
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.SiLU(), nn.Linear(16, 4))

    def encode(self, prompts):
        return encode_labels(prompts, 2)

    def network(self, x_t, t, condition):
        return self.net(torch.cat([x_t, t[:, None].to(x_t)], 1))


def run(seed=11, **settings):
    teacher = Dropping()
    torch.manual_seed(seed)
    plan = PhasePlan.uniform(2, steps=2)
    return distill(teacher, plan, updates=5, fake_updates=2, batch_size=8, **settings)


@pytest.mark.parametrize("after", [1, 4, 5, 7])
def test_a_network_with_dropout_resumes_to_the_same_bits(tmp_path, after):
    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        run(checkpointer=checkpointer, recorder=StopAt(checkpointer, after))
    resumed = run(seed=99, checkpointer=Checkpointer(tmp_path / "c", every=100), resume=True)
    assert torch.equal(weights(resumed), weights(run()))


def test_the_global_seed_matters_to_it():
    assert not torch.equal(weights(run()), weights(run(seed=12)))
