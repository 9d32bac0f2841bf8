"""Parallel plans: how they are found and registered."""

import copy

from torch import nn

from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distributed import (
    ParallelPlan,
    check,
    parallel_plans,
    plans_of,
    units_of,
)
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer


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


def test_the_plan_of_a_class_is_registered_by_name():
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
