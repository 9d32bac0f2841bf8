"""Activation checkpointing: recomputation gives the same bits."""

import pytest
import torch

from pdmd import AdaptedDenoiser, FromTeacher, LowRankRoles
from pdmd.distillation.adapters import adapted_parts
from tests.helpers.adapters import (
    FOUR,
    digits,
    evaluated,
    run,
    same,
    shaken,
    teacher_of,
)


def test_recomputation_without_the_adapter_of_its_forward_raises(monkeypatch):
    from torch.utils.checkpoint import noop_context_fn

    from pdmd.distributed import activation_checkpointing

    teacher = digits()

    def gradients():
        adapted = shaken(AdaptedDenoiser(teacher, FOUR, seed=0))
        teacher(torch.zeros(1, 1, 8, 8), 0.5)
        evaluated(adapted, teacher).square().sum().backward()
        return [p.grad for p in adapted.parameters()]

    right = gradients()
    activation_checkpointing.checkpoint_units(teacher)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), right, strict=True))
    monkeypatch.setattr(activation_checkpointing, "checkpoint_contexts", noop_context_fn)
    with pytest.raises(Exception, match="different number of tensors"):
        gradients()


def test_checkpointed_networks_are_plain_again_after_a_run():
    teacher = teacher_of("qwen_image")
    before = [type(m) for m in teacher.modules()]
    _, _, student = run(
        teacher, LowRankRoles(FOUR, None), activation_checkpointing=True, updates=1
    )
    assert [type(m) for m in teacher.modules()] == before
    assert [type(m) for m in adapted_parts(student)[0].base.modules()] == before


def test_recomputation_gives_the_same_bits():
    teacher = teacher_of("wan_2.1")
    same(run(teacher, FromTeacher(), activation_checkpointing=True), run(teacher, FromTeacher()))
