"""What plans say, and what is refused before anything changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distributed import (
    Columnwise,
    ContextPlan,
    Input,
    NormAcrossHeads,
    PackedColumnwise,
    ParallelPlan,
    Ranks,
    Rowwise,
    TensorPlan,
    check,
    parallel_plans,
    plans_of,
    units_of,
)
from pdmd.distributed.context_parallel import HeadExchange
from pdmd.distributed.styles import packed_order
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from tests.distributed.networks import Network


def test_packed_order_deals_out_every_part():
    order = packed_order((4, 2), 2)
    assert order.tolist() == [0, 1, 4, 2, 3, 5]
    assert packed_order((6,), 3).tolist() == list(range(6))


def test_plans_are_found_from_the_outside_in():
    teacher = DigitsTeacher(ImageTransformer(width=16, depth=3), std=1.0)
    assert list(plans_of(teacher)) == ["transformer"]
    routed = RoutedDenoiser([teacher, copy.deepcopy(teacher)], IntervalRouter([1, 0.5, 0]))
    paths = [f"denoisers.{i}.transformer" for i in (0, 1)]
    assert list(plans_of(routed)) == paths
    units = units_of(routed)
    assert [name for name, _ in units] == [f"{p}.blocks.{i}" for p in paths for i in range(3)]
    assert all(routed.get_submodule(name) is unit for name, unit in units)
    check(routed, tensor=2, context=2)


def test_a_class_is_registered_in_one_line():
    class Theirs(nn.Module):
        pass

    class Finer(Theirs):
        pass

    parallel_plans.register("Theirs")(lambda network: ParallelPlan(units=()))
    try:
        assert plans_of(Finer()) == {"": ParallelPlan(units=())}
    finally:
        parallel_plans.remove("Theirs")
    assert plans_of(Finer()) == {}


@pytest.mark.parametrize(
    ("degrees", "changes", "message"),
    [
        ({"tensor": 3}, {}, "16 features, which is not divisible by 3 tensor"),
        ({"tensor": 4}, {"heads": 2}, "heads is 2, which is not divisible by 4 tensor"),
        ({"context": 8}, {}, "4 heads .* not divisible by 8 context"),
        ({"tensor": 2, "context": 4}, {}, "2 heads on each tensor parallel rank.* by 4 context"),
    ],
)
def test_degrees_that_do_not_divide_are_refused(degrees, changes, message):
    with pytest.raises(ValueError, match=message):
        check(Network(**changes), **degrees)


class Stated(Network):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def parallel_plan(self):
        return self.plan


def styled(**styles):
    return ParallelPlan(("blocks.*",), TensorPlan({f"blocks.*.{k}": v for k, v in styles.items()}))


@pytest.mark.parametrize(
    ("plan", "degrees", "message"),
    [
        (ParallelPlan(("layers.*",)), {}, r"names 'layers\.\*', which the network does not have"),
        (ParallelPlan(()), {"tensor": 2}, "Stated has no tensor plan; state a TensorPlan"),
        (ParallelPlan(()), {"context": 2}, "Stated has no context plan; state a ContextPlan"),
        (styled(norm=Columnwise()), {"tensor": 2}, "norm is a LayerNorm; Columnwise splits"),
        (styled(norm=NormAcrossHeads()), {"tensor": 2}, "LayerNorm; NormAcrossHeads splits"),
        (styled(queries=Rowwise()), {"tensor": 2}, "names 'blocks.*.queries'"),
        (styled(qkv=PackedColumnwise((16, 16))), {"tensor": 2}, "48 features, but its plan packs"),
        (
            ParallelPlan((), TensorPlan({"*.0.up": Columnwise(), "blocks.*.up": Columnwise()})),
            {"tensor": 2},
            "blocks.0.up matches both",
        ),
        (
            ParallelPlan((), TensorPlan({}, {"blocks.*": ("groups",)})),
            {"tensor": 2},
            "groups is None; a plan must name an integer",
        ),
        (
            ParallelPlan((), None, ContextPlan((Input("blocks.0", "x", 1),), (), {})),
            {"context": 2},
            "blocks.0 has no argument 'x', which its context plan splits; it takes h",
        ),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan, degrees, message):
    with pytest.raises(ValueError, match=message):
        check(Stated(plan), **degrees)


def test_a_network_without_a_plan_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"Sequential states no parallel plan.*parallel_plan\(\)"):
        check(nn.Sequential(nn.Linear(2, 2)), tensor=2)
    check(nn.Identity(), tensor=2)


def test_attention_that_cannot_be_split_is_refused():
    ranks = Ranks("none", 2, 0)
    q = torch.randn(1, 2, 4, 8)
    with HeadExchange(ranks, []):
        with pytest.raises(ValueError, match="causal"):
            scaled_dot_product_attention(q, q, q, is_causal=True)
        with pytest.raises(ValueError, match="over keys only"):
            scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="heads divisible by 2"):
            scaled_dot_product_attention(q[:, :1], q, q)
