"""Validation: few rows of every network that a plan evaluates, and nothing encoded twice."""

import pytest
import torch
from tensordict import TensorDict

from pdmd import Guided, MixtureTeacher, PhasePlan, RectifiedFlow
from pdmd.diffusion.checks import inputs_kept
from pdmd.distillation.validation import (
    check_discriminators,
    check_same_weights,
    check_teacher,
    check_times,
)
from pdmd.distributed.communicator import SingleRank
from pdmd.distributed.placement import LocalPlacement
from pdmd.objectives import DistributionMatching, SubintervalScoreMatching
from pdmd.objectives.adversarial import R1, DiscriminatorLoss, FiniteDifferenceR1
from pdmd.objectives.critics import Critics
from pdmd.teachers import RoutedTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.training.session import Session
from tests.helpers.broken_teachers import (
    Clamping,
    Emptying,
    Rounding,
    SmallTeacher,
    Widening,
)
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import family

WIDE = torch.float64


class Wide(SmallTeacher):
    """A sound teacher in float64, whatever its latents."""

    def __init__(self):
        super().__init__()
        self.double()

    def network(self, x_t, t, condition):
        text = None if condition is None else condition.to(WIDE)
        return super().network(x_t.to(WIDE), t, text)


def test_a_routed_teacher_is_checked_on_few_rows_of_each_network():
    teacher, rows = family("wan_2.2_a14b"), {0: 0, 1: 0}
    assert isinstance(teacher, RoutedTeacher)
    handles = [
        part.register_forward_pre_hook(
            lambda module, args, i=i: rows.__setitem__(i, rows[i] + len(args[0]))
        )
        for i, part in enumerate(teacher.routed.denoisers)
    ]
    plan, condition = PhasePlan.uniform(4, steps=2), teacher.conditions(teacher.prompts)
    check_teacher(teacher, plan, DistributionMatching(), condition)
    for handle in handles:
        handle.remove()
    assert min(rows.values()) > 0 and sum(rows.values()) <= 4


def test_times_are_checked_without_an_evaluation():
    teacher = MixtureTeacher.random(dim=2)
    teacher.network = None
    check_times(teacher, PhasePlan.uniform(2), DistributionMatching())
    teacher.time_range = (0.0, 0.9)
    with pytest.raises(ValueError, match=r"phase 1 evaluates the teacher at t = 1, outside"):
        check_times(teacher, PhasePlan.uniform(2), DistributionMatching())
    teacher = MixtureTeacher.random(dim=2)
    teacher.kind, teacher.schedule = "epsilon", RectifiedFlow()
    with pytest.raises(ValueError, match="no step can be taken from a prediction of epsilon"):
        check_times(teacher, PhasePlan.uniform(2), DistributionMatching())


def test_an_output_that_is_not_finite_raises():
    teacher = MixtureTeacher.random(dim=2)
    teacher.network = lambda x, t, condition: x / 0
    with pytest.raises(ValueError, match="at t = 1 is not finite"):
        check_teacher(teacher, PhasePlan.uniform(2), DistributionMatching(), None)


@pytest.mark.parametrize("broken", [Clamping, Rounding, Emptying])
def test_a_network_that_modifies_its_inputs_raises(broken):
    with pytest.raises(ValueError, match="modifies its input .* in place"):
        distill(broken(), PhasePlan.uniform(2), updates=1)


def test_a_network_returns_a_type_that_it_takes():
    plan, settings = PhasePlan.uniform(2), {"updates": 1, "fake_updates": 1, "batch_size": 2}
    with pytest.raises(
        ValueError, match=r"returned torch.float64.*convert its times.*t.to\(x_t\)"
    ):
        distill(Widening(), plan, **settings)
    teacher = Wide()
    assert distill(teacher, plan, **settings).experts[0].denoiser.outside.weight.dtype is WIDE


def test_encoded_prompts_are_used_as_they_are(monkeypatch):
    teacher = family("qwen_image")
    settings = {"updates": 1, "fake_updates": 1, "batch_size": 2}
    plan = PhasePlan.uniform(1)
    expected = distill(teacher, plan, **settings)
    conditions = teacher.conditions(teacher.prompts)
    monkeypatch.setattr(type(teacher), "conditions", lambda *args: pytest.fail("encoded again"))
    found = distill(teacher, plan, conditions=conditions, session=Session(), **settings)
    for a, b in zip(expected.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_conditions_of_other_prompts_raise():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    with pytest.raises(ValueError, match="conditions of 3 prompts for 2 prompts"):
        distill(
            teacher, PhasePlan.uniform(1), [0, 1], conditions=teacher.encode([0, 1, 1]), updates=1
        )


@pytest.mark.parametrize("limited", [False, True])
def test_a_critic_that_will_be_sharded_is_not_differentiated_twice(limited):
    class Sharded(LocalPlacement):
        in_place = False

    def objective(**more):
        loss = DiscriminatorLoss(Critics(lambda *_: None), **more)
        return SubintervalScoreMatching() + 0.5 * (loss.only(1) if limited else loss)

    where, teacher = (torch.device("cpu"), torch.float32), MixtureTeacher.random(dim=2)
    sharded = Sharded(*where, activation_checkpointing=False)
    with pytest.raises(ValueError, match="use FiniteDifferenceR1"):
        check_discriminators(objective(penalty=R1()), teacher, sharded)
    check_discriminators(objective(penalty=FiniteDifferenceR1()), teacher, sharded)
    check_discriminators(objective(penalty_weight=0.0), teacher, sharded)
    check_discriminators(
        objective(), teacher, LocalPlacement(*where, activation_checkpointing=False)
    )


class Beside(SingleRank):
    """A rank beside one with another teacher."""

    def __init__(self, other):
        numbers = []
        heard = SingleRank()
        heard.highest = lambda value: numbers.append(value) or value
        check_same_weights(other, heard)
        self.numbers = iter(numbers)

    def highest(self, value):
        return max(value, next(self.numbers))


def test_ranks_with_teachers_of_different_weights_are_an_error():
    def network(seed):
        torch.manual_seed(seed)
        return MlpDenoiser.rectified_flow(dim=2)

    check_same_weights(network(0), Beside(network(0)))
    for seeds in ((0, 1), (1, 0)):
        own, other = map(network, seeds)
        with pytest.raises(ValueError, match="ranks have teachers of different weights"):
            check_same_weights(own, Beside(other))
    check_same_weights(network(0).to("meta"), Beside(network(1).to("meta")))


class Encoding(MixtureTeacher):
    def encode(self, prompts):
        return self.returned(torch.zeros(len(prompts), dtype=torch.int64))

    prompts = (0, 1)


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (lambda rows: {"label": rows}, r"Encoding.encode returned \{'label': .*TensorDict\(\{"),
        (lambda rows: rows, "Encoding.encode returned a tensor of shape .2,."),
        (lambda rows: TensorDict({"label": rows}), "batch size .. for 2 prompts; return one row"),
        (lambda rows: TensorDict({"label": rows[:1]}, [1]), "batch size .1. for 2 prompts"),
    ],
)
def test_conditions_are_one_row_per_prompt(returned, error):
    teacher = Encoding(torch.eye(2), labels=torch.arange(2))
    teacher.returned = returned
    for own in (teacher, Guided(teacher, 1.0)):
        with pytest.raises((TypeError, ValueError), match=error):
            distill(own, PhasePlan.uniform(1), updates=1)


def test_a_network_that_fails_is_named_with_its_inputs():
    teacher = MixtureTeacher.random(dim=2, classes=2)
    condition, plan = teacher.encode([0, 1]), PhasePlan.uniform(2)
    teacher.network = lambda x, t, condition: condition["text"]
    found = r"at t = 1 on latents of shape \(2, 2\) with a condition of shapes \{'label': \(2,\)"
    with pytest.raises(ValueError, match=rf"{found}.*KeyError"):
        check_teacher(teacher, plan, DistributionMatching(), condition)
    teacher.network = lambda x, t, condition: x @ torch.eye(3)
    with pytest.raises(RuntimeError) as failed:
        check_teacher(teacher, plan, DistributionMatching(), condition)
    assert "at t = 1 on latents of shape (2, 2)" in failed.value.__notes__[0]


def test_inputs_that_count_no_changes_pass():
    with torch.inference_mode():
        x = torch.zeros(2, 3)
    with inputs_kept(x, torch.ones(2), None):
        pass
