"""Initializers: which network an expert or a fake score starts from."""

import pytest
import torch

from pdmd import (
    FromDenoiser,
    FromPrevious,
    FromTeacher,
    LowRankRoles,
    MlpDenoiser,
    OdeExpert,
    PerStep,
    PhasePlan,
)
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from tests.helpers.adapters import FOUR, TWO, run, shaken, teacher_of
from tests.helpers.small_runs import StopAt


@pytest.mark.parametrize("start", [FromTeacher(), FromPrevious()], ids=["teacher", "previous"])
def test_a_resumed_run_has_the_same_bits(tmp_path, start):
    teacher, init = teacher_of("wan_2.2_a14b"), LowRankRoles(FOUR, TWO, start=start)
    whole = run(teacher, init)[2].state_dict()
    for stop in (1, 2, 0):
        checkpointer = Checkpointer(tmp_path / "checkpoint", every=1)
        try:
            student = run(
                teacher,
                init,
                checkpointer=checkpointer,
                recorder=StopAt(checkpointer, stop),
                resume=checkpointer.exists(),
            )[2]
        except Interrupted:
            assert stop
    assert all(torch.equal(v, whole[k]) for k, v in student.state_dict().items())


def test_from_previous_copies_the_factors_of_the_previous_adapter():
    teacher = teacher_of("wan_2.2_a14b")
    init = LowRankRoles(FOUR, start=FromPrevious())
    plan = PhasePlan.from_timesteps([1, 0.875, 0])
    first = init.expert(teacher, plan[0], [])
    assert first.base is teacher.routed.denoisers[0]
    second = init.expert(teacher, plan[1], [OdeExpert(shaken(first), plan[0])])
    assert second.base is teacher.routed.denoisers[1]  # that of its phase, as saved and exported
    assert all(
        torch.equal(v, second.state_dict()[k]) and v is not second.state_dict()[k]
        for k, v in first.state_dict().items()
    )


def mlp(seed):
    torch.manual_seed(seed)
    return MlpDenoiser.rectified_flow(dim=2, width=8)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


PLAN = PhasePlan.uniform(2, steps=2)


def test_full_weights_are_copied_from_the_source():
    teacher, other = mlp(0), mlp(1)
    finished = [OdeExpert(mlp(2), PLAN[0])]
    sources = {
        FromTeacher(): (teacher, teacher),
        FromPrevious(): (finished[0].denoiser, teacher),
        FromDenoiser(other): (other, other),
    }
    for initializer, (expert_source, fake_source) in sources.items():
        expert = initializer.expert(teacher, PLAN[1], finished)
        fake = initializer.fake(teacher, PLAN[1])
        assert same_weights(expert, expert_source) and expert is not expert_source
        assert same_weights(fake, fake_source) and fake is not fake_source
        assert all(p.requires_grad for network in (expert, fake) for p in network.parameters())
    assert same_weights(FromPrevious().expert(teacher, PLAN[0], []), teacher)


def test_per_step_builds_a_separate_network_for_every_step():
    expert = PerStep(FromTeacher()).expert(mlp(0), PLAN[1], [])
    first, second = expert.denoisers
    assert same_weights(first, second)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    with torch.no_grad():
        next(second.parameters()).add_(1.0)
    x, (early, late) = torch.randn(3, 2), PLAN[1].timesteps
    assert torch.equal(expert(x, early).value, first(x, early).value)
    assert torch.equal(expert(x, late).value, second(x, late).value)
    assert not torch.equal(first(x, late).value, second(x, late).value)


def test_roles_without_an_adapter_have_full_weights():
    teacher, roles = mlp(0), LowRankRoles(None, FOUR)
    assert same_weights(roles.expert(teacher, PLAN[0], []), teacher)
    fake = roles.fake(teacher, PLAN[0])
    assert fake.base is teacher and roles.adapts and not LowRankRoles(None, None).adapts
