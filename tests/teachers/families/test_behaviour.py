"""Properties of every flow family: independent samples, gradients, guidance, masks, precision."""

import copy
import functools
import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pdmd import (
    Guided,
)
from pdmd.distributed import check
from pdmd.distributed.plans import units_of
from tests.helpers.tiny_families import (
    FAMILIES,
    close,
    family,
    noise,
    transformers,
)
from tests.helpers.tiny_flows import FLOWS, flow

EVERY = [*FLOWS, *FAMILIES]
# the last block's output of the text is dropped
IDLE = r"transformer_blocks\.1\.(txt_mlp|attn\.(to_add_out|.*add.*q))"


def teacher_of(name):
    return flow(name) if name in FLOWS else family(name)


@pytest.mark.parametrize("name", EVERY)
def test_a_family_is_a_function_of_each_sample_alone(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts)
    x, t = noise(teacher, 3), torch.tensor([0.3, 0.9, 1.0])
    with torch.no_grad():
        whole = teacher(x, t, condition).value
        alone = teacher(x[1:2], t[1:2], condition[1:2]).value
        other = teacher(x[1:2], t[1:2], condition[2:3]).value
        later = teacher(x[1:2], t[2:3], condition[1:2]).value
    close(whole[1:2], alone)
    assert (other - alone).abs().max() > 1e-3  # it depends on its prompt
    assert (later - alone).abs().max() > 1e-3  # and its time


@pytest.mark.parametrize("name", ["qwen_image", "ltx", "z_image", "wan_2.1"])
def test_a_guided_row_does_not_depend_on_the_length_of_its_batch(name):
    teacher = Guided(teacher_of(name), 3.0)
    conditions = teacher.conditions(teacher.prompts)
    x, t = noise(teacher, 3), torch.tensor([0.3, 0.9, 1.0])
    with torch.no_grad():
        whole = teacher(x, t, conditions[torch.arange(3)]).value
        for i in range(3):
            row = conditions[torch.tensor([i])]
            assert row.get("mask", torch.ones(1)).all()  # no padding
            close(teacher(x[i : i + 1], t[i : i + 1], row).value, whole[i : i + 1])


@pytest.mark.parametrize("name", EVERY)
def test_it_depends_on_every_key_of_its_condition(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts[:1])
    x = noise(teacher, 1)
    with torch.no_grad():
        value = teacher(x, 0.6, condition).value
        for key in condition.exclude("lengths").keys():
            if condition[key].dtype != torch.bool:
                changed = condition.clone()
                changed[key] = changed[key].roll(1, -1)
                assert (teacher(x, 0.6, changed).value - value).abs().max() > 1e-4, key


@pytest.mark.parametrize("name", ["qwen_image", "ltx", "z_image"])
def test_what_the_mask_hides_does_not_matter(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts)
    assert not condition["mask"].all()
    x, t = noise(teacher, 3), torch.tensor([0.3, 0.9, 1.0])
    hidden = condition.clone()
    hidden["prompt"] = torch.where(hidden["mask"][..., None], hidden["prompt"], 7.0)
    lengths = condition["mask"].sum(1).tolist()
    with torch.no_grad():
        whole = teacher(x, t, condition).value
        close(teacher(x, t, hidden).value, whole, 0)
        for i, length in enumerate(lengths):
            row = condition[i : i + 1].clone()
            short = type(row)(
                {k: v[:, :length] if k in ("prompt", "mask") else v for k, v in row.items()},
                batch_size=[1],
            )
            close(teacher(x[i : i + 1], t[i : i + 1], short).value, whole[i : i + 1])


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_the_input_and_only_copies_train(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts[:1])
    x = noise(teacher, 1).requires_grad_(True)
    direction = noise(teacher, 1, seed=3)
    value = teacher(x, 0.6, condition).value
    (gradient,) = torch.autograd.grad((value * direction).sum(), x)
    with torch.no_grad():
        step = 1e-2 * direction
        rise = ((teacher(x + step, 0.6, condition).value - value) * direction).sum()
        fall = ((teacher(x - step, 0.6, condition).value - value) * direction).sum()
    torch.testing.assert_close((gradient * step).sum(), (rise - fall) / 2, rtol=2e-2, atol=2e-3)
    part = teacher.trainable_part(0.6, 0.5)
    part(x, 0.6, condition).value.square().sum().backward()
    idle = FLOWS[name].idle if name in FLOWS else IDLE
    for path, parameter in part.named_parameters():
        if not re.search(idle, path):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), path
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        close(part(x, 0.6, condition).value, value, 0)
    with pytest.raises(ValueError, match="has no prompts"):
        part.encode(["a cat"])


@pytest.mark.parametrize("name", EVERY)
def test_guidance_of_one_is_none(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts)
    x, t = noise(teacher, 3), torch.tensor([0.3, 0.9, 1.0])
    with torch.no_grad():
        value = teacher(x, t, condition).value
        assert torch.equal(Guided(teacher, 1.0)(x, t, condition).value, value)
        guided = Guided(teacher, 3.0)(x, t, condition).value
        assert (guided - value).abs().max() > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_computes_what_single_does_roughly(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts)
    x, t = noise(teacher, 3), torch.tensor([0.3, 0.9, 1.0])
    half = copy.deepcopy(teacher).to(torch.bfloat16)
    with torch.no_grad():
        value = teacher(x, t, condition).value
        rounded = half(x, t, condition).value
    assert rounded.dtype == torch.float32
    assert (rounded - value).abs().max() < 0.1 * value.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_key_is_named(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts)
    for key in keys_of(teacher):
        with pytest.raises(ValueError, match=f"'{key}' is missing; make it with encode"):
            teacher(noise(teacher, 3), 0.5, condition.exclude(key))


def keys_of(teacher):
    return getattr(teacher, "first", teacher).condition_keys


@pytest.mark.parametrize("name", ["ltx", "z_image", "flux", "sd3", "wan_i2v"])
def test_blocks_are_known_and_what_cannot_be_split_raises(name):
    parts = transformers(flow(name))
    for part in parts:
        units = {unit for _, unit in units_of(part)}
        repeated = {m for m in part.modules() if isinstance(m, torch.nn.ModuleList)}
        blocks = {b for m in repeated for b in m if type(b).__name__.endswith("Block")}
        assert units == blocks
        if name in ("ltx", "z_image"):
            with pytest.raises(ValueError, match="has no tensor plan"):
                check(part, tensor=2)
            with pytest.raises(ValueError, match="has no context plan"):
                check(part, context=2)
        else:
            check(part, tensor=2)


@pytest.mark.parametrize("name", ["ltx", "z_image", "wan_i2v_5b"])
def test_checkpointed_blocks_have_the_same_gradients(name):
    teacher = teacher_of(name)
    condition = teacher.encode(teacher.prompts[:2])
    x = noise(teacher, 2)

    def gradients(activation_checkpointing):
        part = teacher.trainable_copy()
        if activation_checkpointing:
            for _, unit in units_of(part):
                unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
        part(x, 0.6, condition).value.square().sum().backward()
        return [p.grad for p in part.parameters()]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert (plain is None and again is None) or torch.equal(plain, again)
