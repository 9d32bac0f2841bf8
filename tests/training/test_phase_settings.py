"""Settings that differ between phases: one value for all, or one per phase."""

from dataclasses import replace

import pytest
import torch

from pdmd import (
    AdamRecipe,
    ExpertTraining,
    FakeScoreTraining,
    FromDenoiser,
    Joint,
    PhasePlan,
    Rollouts,
    Session,
    distill,
)
from pdmd.teachers import MixtureTeacher, MlpDenoiser
from pdmd.training.fake_scores import AdaptiveUpdates, FixedUpdates
from pdmd.training.learning_rates import Constant
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.phase_settings import check_settings, setting_of

PLAN = PhasePlan.uniform(2)
RECIPES = (
    AdamRecipe(lr=1e-3, decay=Constant()),
    AdamRecipe(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, warmup=2),
)


def test_a_setting_is_one_value_or_one_per_phase():
    first, second = PLAN
    assert [setting_of(3, [phase], "it") for phase in PLAN] == [3, 3]
    assert [setting_of((3, 5), [phase], "it") for phase in PLAN] == [3, 5]
    assert setting_of((3, 3), [first, second], "it") == 3
    with pytest.raises(ValueError, match="it differs between phases 1 and 2, which train togeth"):
        setting_of((3, 5), [first, second], "it")
    check_settings((3, 5), PLAN, "it")
    with pytest.raises(ValueError, match="it has 3 values, but the plan has 2 phases"):
        check_settings((3, 5, 7), PLAN, "it")


class Seen(Recorder):
    """Records the fake updates of every cycle with its phase."""

    def __init__(self):
        self.interval, self.scalars = 1, []

    def on_scalars(self, phase, update, values):
        self.scalars.append((phase.number, values["fake_updates"]))


def trained(**changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2)
    start = FromDenoiser(MlpDenoiser(dim=2, width=8, depth=1, schedule=teacher.schedule))
    changes = {
        "experts": ExpertTraining(optimizer=RECIPES),
        "fake_scores": FakeScoreTraining(updates=[2, FixedUpdates(1)], optimizer=RECIPES[::-1]),
        **changes,
    }
    changes["experts"] = replace(changes["experts"], initializer=start)
    recorder = Seen()
    student = distill(
        teacher,
        PLAN,
        updates=[2, 3],
        rollouts=Rollouts(batch_size=4),
        session=Session(recorder=recorder),
        check_score=False,
        **changes,
    )
    weights = [torch.cat([p.flatten() for p in e.parameters()]) for e in student.experts]
    return weights, recorder.scalars


def test_each_phase_trains_with_its_own_settings():
    """A phase's settings are those of a run that has them in every phase."""
    weights, scalars = trained()
    assert scalars == [(1, 2.0)] * 2 + [(2, 1.0)] * 3
    same, _ = trained(
        experts=ExpertTraining(optimizer=RECIPES[0]),
        fake_scores=FakeScoreTraining(updates=2, optimizer=RECIPES[1]),
    )
    assert torch.equal(weights[0], same[0])
    assert not torch.equal(weights[1], same[1])


def test_phases_that_train_together_have_one_optimizer():
    recipes = [AdamRecipe(lr=1e-3), AdamRecipe(lr=1e-4)]
    with pytest.raises(ValueError, match="the experts' optimizer differs between phases 1 and 2"):
        trained(experts=ExpertTraining(optimizer=recipes, curriculum=Joint()))
    with pytest.raises(ValueError, match="the number of fake updates has 3 values"):
        trained(fake_scores=FakeScoreTraining(updates=(1, 2, 3)))
    with pytest.raises(ValueError, match="fake updates must be at least 0, got -1"):
        FakeScoreTraining(updates=(1, -1))
    rule = AdaptiveUpdates()
    assert FakeScoreTraining(updates=(1, rule)).schedule([PLAN[1]]) is rule
