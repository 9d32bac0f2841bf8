import copy
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.trainings import Checkpointed, Images, checkpointed, trainer_of
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pdmd import FullGradient, PhasePlan, StochasticTruncation
from pdmd.cli import main
from pdmd.experts import Truncation
from pdmd.planning import (
    Degrees,
    Precision,
    Roles,
    Work,
    calls,
    measure,
    memory_of,
    plan_run,
    tables,
    traffic_of,
)
from pdmd.planning.search import degrees_for
from pdmd.planning.units import units_of
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.training.config import load_config

SMALL = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "heads": 4}
MEDIUM = {"image_size": 16, "patch_size": 2, "width": 128, "depth": 5, "heads": 4}
ALL = (1, 1, 1, 0, 0)  # activations, of every kind


def roles_of(network, work, index, **settings):
    condition = network.encode([1])
    one = measure(network, condition, train=True, **settings)
    steps = work.recorded_steps(index)
    many = one if steps == 1 else measure(network, condition, train=True, steps=steps, **settings)
    return Roles(teacher=one, generator=many, fake=one, frozen=(one,) * index)


# -------------------------------------------------------------------------------- evaluations


class EveryStop(Truncation):
    """Stops at the steps in turn, so that averages over stops are met exactly."""

    def __init__(self):
        self.calls = -1  # a plan asks once too

    def __call__(self, phase, generator):
        self.calls += 1
        return self.calls % phase.steps


@pytest.mark.parametrize(
    ("plan", "truncation", "fake_updates", "accumulate", "guidance", "draws"),
    [
        (PhasePlan.uniform(4), EveryStop, 5, 1, 3.0, 1),
        (PhasePlan.uniform(4), EveryStop, 1, 2, 1.0, 1),
        (PhasePlan.uniform(2, steps=2), EveryStop, 5, 1, 3.0, 1),
        (PhasePlan.uniform(2, steps=2), EveryStop, 1, 2, 1.0, 2),
        (PhasePlan.uniform(2, steps=(3, 1)), EveryStop, 1, 1, 1.0, 1),
        (PhasePlan.uniform(1), EveryStop, 5, 2, 3.0, 1),
        (PhasePlan.uniform(1, steps=4), FullGradient, 1, 2, 3.0, 1),
        (PhasePlan.uniform(1, steps=4), EveryStop, 0, 1, 1.0, 1),
    ],
)
def test_evaluations_are_those_that_a_run_counts(
    plan, truncation, fake_updates, accumulate, guidance, draws
):
    teacher, cycles, batch = Images(**SMALL), 12, 4
    for index in range(len(plan)):
        work = Work(
            plan=plan,
            truncation=truncation(),
            batch_size=batch,
            fake_updates=fake_updates,
            accumulate=accumulate,
            draws=draws,
            evaluations=1 if guidance == 1 else 2,
        )
        expected = calls(work, index)
        trainer = trainer_of(teacher, work, index, guidance=guidance)
        for _ in range(cycles):
            trainer.cycle()
        trainer.account.close()
        counted = trainer.account.state()
        for way in ("forward", "backward"):
            planned = {k: n * cycles * batch for k, n in getattr(expected, way).items()}
            assert planned == counted[way]


# ------------------------------------------------------------------------------------- memory


def allocated(make, cycles=2):
    """Returns the peak of what the allocator gave out, the trainer and its networks included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = make()
        for _ in range(cycles):
            trainer.cycle()
        trainer.account.close()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


SETTINGS = {
    "one step": (PhasePlan.uniform(1), StochasticTruncation(), 0, {}),
    "guided": (PhasePlan.uniform(1), StochasticTruncation(), 0, {"evaluations": 2}),
    "phased": (PhasePlan.uniform(4), StochasticTruncation(), 3, {"evaluations": 2}),
    "2x2": (PhasePlan.uniform(2, steps=2), StochasticTruncation(), 1, {"accumulate": 2}),
    "vanilla": (PhasePlan.uniform(1, steps=4), FullGradient(), 0, {"evaluations": 2}),
    "no fake updates": (PhasePlan.uniform(1), StochasticTruncation(), 0, {"fake_updates": 0}),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("name", SETTINGS)
def test_memory_is_what_a_run_allocates(name, batch, checkpointing):
    if checkpointing and name not in ("phased", "vanilla"):
        pytest.skip("two of them show it")
    plan, truncation, index, more = SETTINGS[name]
    work = Work(
        **{"plan": plan, "truncation": truncation, "batch_size": batch, "fake_updates": 1, **more}
    )

    def make():
        teacher = checkpointed(Images(**MEDIUM)) if checkpointing else Images(**MEDIUM)
        return trainer_of(teacher, work, index, guidance=2.0 * work.evaluations - 1)

    roles = roles_of(Images(**MEDIUM), work, index, checkpointing=checkpointing)
    planned = memory_of(roles, work, Degrees(), Precision())
    assert planned.total == pytest.approx(allocated(make), rel=0.02)
