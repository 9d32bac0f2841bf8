"""Networks on an accelerator: what is computed around them stays with them.

The meta device stands for one: its tensors mix with the CPU's as little as an accelerator's do.
"""

import pytest
import torch

from pdmd import Guided, PhasePlan
from pdmd.experts import OdeExpert
from pdmd.objectives import DistributionMatching, SubintervalScoreMatching, gap_weights
from pdmd.objectives.base import Players, Rollout
from pdmd.objectives.critics import MlpCritic
from pdmd.schedules import RectifiedFlow
from pdmd.teachers.digits import DigitsTeacher
from pdmd.teachers.transformer import ImageTransformer

THERE = torch.device("meta")


def fake_players():
    teacher, fake, generator = (
        DigitsTeacher(ImageTransformer(width=16, depth=1, heads=2), std=0.7).to(THERE)
        for _ in range(3)
    )
    return Players(real=Guided(teacher, 2.0), fake=fake, generator=generator)


@pytest.mark.parametrize("weight", list(gap_weights))
@pytest.mark.parametrize("index", [0, 1])
def test_objectives_stay_on_the_networks_device(weight, index, monkeypatch):
    # times there have no values to check
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: False)
    players, phase = fake_players(), PhasePlan.uniform(2)[index]
    condition = players.real.encode([0, 1, 2, None]).to(THERE)
    x = torch.randn(4, 1, 8, 8, device=THERE)
    expert = OdeExpert(players.generator, phase)
    rollout = Rollout(x_s=expert(x, condition), condition=condition, phase=phase, entry=x, stop=0)
    generator = torch.Generator().manual_seed(0)
    for objective in (
        DistributionMatching(gap_weights[weight]()),
        SubintervalScoreMatching(),
    ):
        (loss,) = objective.losses(players, rollout, generator).values()
        assert loss.device.type == "meta" and loss.dtype == torch.float32
    assert players.real(x, 0.5).value.device.type == "meta"  # of no condition
    critic = MlpCritic(dim=64, classes=10).to(THERE)
    t = torch.rand(4, dtype=torch.float64)
    assert critic(x, t, condition).device.type == "meta"
    assert RectifiedFlow()(0.5)[0].device.type == "cpu"
