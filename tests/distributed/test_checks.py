"""Checks: networks that cannot be split raise before they are changed."""

import pytest
from torch import nn

from pdmd.distributed import (
    Columnwise,
    ContextPlan,
    Input,
    NormAcrossHeads,
    PackedColumnwise,
    ParallelPlan,
    Rowwise,
    TensorPlan,
    check,
)
from tests.distributed.networks import Network


@pytest.mark.parametrize(
    ("degrees", "changes", "message"),
    [
        ({"tensor": 3}, {}, "16 features, which is not divisible by 3 tensor"),
        ({"tensor": 4}, {"heads": 2}, "heads is 2, which is not divisible by 4 tensor"),
        ({"context": 8}, {}, "4 heads .* not divisible by 8 context"),
        ({"tensor": 2, "context": 4}, {}, "2 heads on each tensor parallel rank.* by 4 context"),
    ],
)
def test_degrees_that_do_not_divide_raise(degrees, changes, message):
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
def test_plans_that_do_not_match_raise(plan, degrees, message):
    with pytest.raises(ValueError, match=message):
        check(Stated(plan), **degrees)


def test_the_error_for_a_missing_plan_names_the_remedy():
    with pytest.raises(ValueError, match=r"Sequential states no parallel plan.*parallel_plan\(\)"):
        check(nn.Sequential(nn.Linear(2, 2)), tensor=2)
    check(nn.Identity(), tensor=2)
