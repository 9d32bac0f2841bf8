"""Footprints: FLOPs in closed form, sharded and routed networks."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pdmd import FromDenoiser, MlpDenoiser
from pdmd.cli.config_files import load_config
from pdmd.cli.plan import plan_run
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.planning import measure_footprint
from pdmd.teachers.mixture import MixtureTeacher
from tests.helpers.trainings import MEDIUM, SMALL, Images


def test_flops_equal_the_closed_form():
    network = Images(**MEDIUM)
    tokens, width, depth = (MEDIUM["image_size"] // 2) ** 2, MEDIUM["width"], MEDIUM["depth"]
    block = 2 * 12 * width**2 * tokens + 4 * tokens**2 * width
    ends = 2 * (4 * width + width * 4) * tokens
    once = 2 * (2 * width**2 + 6 * width**2 + 2 * width**2)
    cost = measure_footprint(
        network, network.encode([1]), train=True, activation_checkpointing=True
    )
    assert cost.flops == depth * block + ends + once
    assert cost.recomputed_flops == depth * block
    # Twice the products, except the input gradients of the first layers; fused attention
    # recomputes its weights.
    first = 2 * (4 * width * tokens + width**2)
    attention = depth * 2 * tokens**2 * width
    assert cost.backward_flops == 2 * cost.flops - first + attention


def test_flops_equal_those_counted_by_torch():
    config = load_config("mixture")
    plan = plan_run(config)
    teacher = MixtureTeacher.random()
    network = MlpDenoiser.rectified_flow(dim=16, classes=8)
    init = FromDenoiser(network)
    expert = init.expert(teacher, plan.work.plan[0], [])
    x, t = torch.zeros(3, 16), torch.full((3,), 0.5)
    with FlopCounterMode(display=False) as counter:
        expert(x, t, teacher.encode([1, 2, 3])).value.sum().backward()
    cost = plan.roles[0].generator
    assert 3 * (cost.flops + cost.backward_flops) == counter.get_total_flops()


def test_tensor_parallel_memory_equals_that_of_a_half_network():
    """Half of every sharded layer has the planned memory of one of two ranks."""
    whole = Images(**MEDIUM)
    half = copy.deepcopy(whole)
    width = MEDIUM["width"]
    for block in half.net.blocks:
        block.heads //= 2
        block.qkv = nn.Linear(width, 3 * width // 2)
        block.proj = nn.Linear(width // 2, width)
        block.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
    condition = whole.encode([1])
    for activation_checkpointing in (False, True):
        settings = {"train": True, "activation_checkpointing": activation_checkpointing}
        planned = measure_footprint(whole, condition, **settings)
        built = measure_footprint(half, condition, **settings)
        assert planned.local(2) == built.parameters
        for batch in (1, 7):
            for timeline in ("inference_memory", "training_memory"):
                left = getattr(planned, timeline).bytes(batch, (1, 1, 1 / 2, 1, 1 / 2))
                right = getattr(built, timeline).bytes(batch, (1, 1, 1, 1, 1))
                assert left.max() == pytest.approx(right.max(), rel=1e-6)
                end = getattr(planned, timeline).forward_end
                assert left[end] == pytest.approx(right[end], rel=1e-6)


def test_activations_are_proportional_to_the_tokens():
    """A quarter of the tokens keeps a quarter of the memory, except modulation."""
    many, few = (Images(**{**MEDIUM, "patch_size": p}) for p in (2, 4))
    condition = many.encode([1])
    a, b = (measure_footprint(n, condition, train=True).training_memory for n in (many, few))
    inside = (0, 1, 1, 0, 0)
    kept = [float(c.bytes(4, inside)[c.forward_end]) for c in (a, b)]
    assert kept[0] / 4 == pytest.approx(kept[1], rel=0.1)
    assert (
        a.bytes(4, (1, 0, 0, 0, 0))[a.forward_end] < 0.2 * kept[0]
    )  # outside the units it is small


def test_a_routed_network_has_all_parameters_and_the_flops_of_one():
    network = Images(**SMALL)
    pair = RoutedDenoiser([network, network.trainable_copy()], IntervalRouter((1.0, 0.5, 0.0)))
    condition = network.encode([1])
    one, two = (measure_footprint(n, condition, train=True) for n in (network, pair))
    assert two.parameters == 2 * one.parameters and two.local(2) == 2 * one.local(2)
    for tp in (1, 2):  # gathered for a call, and reduced after it
        assert two.gathered(tp) == one.gathered(tp) and two.evaluated(tp) == one.local(tp)
    assert (two.flops, two.backward_flops) == (one.flops, one.backward_flops)
    for timeline in ("inference_memory", "training_memory"):
        a, b = (getattr(n, timeline).bytes(4, (1, 1, 1, 1, 1)) for n in (one, two))
        assert a.tolist() == b.tolist()
