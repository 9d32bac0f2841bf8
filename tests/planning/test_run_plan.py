import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pdmd import FromDenoiser, FullGradient, MlpDenoiser, PhasePlan, StochasticTruncation
from pdmd.cli.config_files import load_config
from pdmd.cli.main import main
from pdmd.cli.plan import plan_run
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser
from pdmd.distillation.experts import Truncation
from pdmd.planning import (
    Degrees,
    Precision,
    Work,
    calls,
    measure,
    memory_of,
    plan_roles,
    tables,
    traffic_of,
)
from pdmd.planning.search import degrees_for
from pdmd.planning.units import units_of
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.monitoring.accounting import WAYS
from tests.helpers.trainings import (
    MEDIUM,
    SMALL,
    Checkpointed,
    Images,
    checkpointed,
    roles_of,
    trainer_of,
)

# -------------------------------------------------------------------------------- evaluations


class EveryStop(Truncation):
    """Stops at the steps in turn, so that averages over stops are met exactly."""

    def __init__(self):
        self.calls = -1  # a plan asks once too

    def __call__(self, phase, generator):
        self.calls += 1
        return self.calls % phase.steps


@pytest.mark.parametrize(
    ("plan", "truncation", "fake_updates", "accumulate", "guidance", "timestep_samples"),
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
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_evaluations_are_those_that_a_run_counts(
    plan,
    truncation,
    fake_updates,
    accumulate,
    guidance,
    timestep_samples,
    activation_checkpointing,
    monkeypatch,
):
    teacher, cycles, batch = Images(**SMALL), 12, 4
    rows, block = [], type(teacher.net.blocks[0])
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest)
    )
    for index in range(len(plan)):
        rows.clear()
        work = Work(
            plan=plan,
            truncation=truncation(),
            batch_size=batch,
            fake_updates=fake_updates,
            accumulate=accumulate,
            timestep_samples=timestep_samples,
            evaluations=1 if guidance == 1 else 2,
            activation_checkpointing=activation_checkpointing,
        )
        expected = calls(work, index)
        trainer = trainer_of(teacher, work, index, guidance=guidance)
        for _ in range(cycles):
            trainer.cycle()
        trainer.session.account.close()
        counted = trainer.session.account.state()
        for way in WAYS:
            planned = {k: n * cycles * batch for k, n in getattr(expected, way).items()}
            assert planned == counted[way]
        ran = [sum(counted[way].values()) for way in ("forward", "recomputed")]
        assert sum(rows) == SMALL["depth"] * sum(ran)


# ---------------------------------------------------------------------------------- operations


def test_operations_are_the_closed_form():
    network = Images(**MEDIUM)
    tokens, width, depth = (MEDIUM["image_size"] // 2) ** 2, MEDIUM["width"], MEDIUM["depth"]
    block = 2 * 12 * width**2 * tokens + 4 * tokens**2 * width
    ends = 2 * (4 * width + width * 4) * tokens
    once = 2 * (2 * width**2 + 6 * width**2 + 2 * width**2)
    cost = measure(network, network.encode([1]), train=True, activation_checkpointing=True)
    assert cost.flops == depth * block + ends + once
    assert cost.recomputed_flops == depth * block
    # Twice the products, of which the first layers need no gradient of their input; fused
    # attention computes its weights again.
    first = 2 * (4 * width * tokens + width**2)
    attention = depth * 2 * tokens**2 * width
    assert cost.backward_flops == 2 * cost.flops - first + attention


def test_operations_are_those_of_a_run():
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


# ------------------------------------------------------------------------------------- degrees


def small_plan(**changes):
    network = Images(**SMALL)
    settings = {"plan": PhasePlan.uniform(2), "truncation": StochasticTruncation()}
    work = Work(**{**settings, "batch_size": 16, "fake_updates": 2, **changes})
    return [roles_of(network, work, k) for k in range(2)], work


ROLES, WORK = small_plan()
DEGREES = st.sampled_from(list(degrees_for(16, batch_size=16, heads=4, tokens=16)))


@given(gpus=st.integers(1, 48), batch=st.integers(1, 64), heads=st.integers(0, 12))
def test_degrees_divide_what_they_share(gpus, batch, heads):
    found = list(degrees_for(gpus, batch_size=batch, heads=heads, tokens=24))
    for d in found:
        assert d.gpus == gpus and batch % d.batches == 0 and 24 % d.cp == 0
        assert d.tp * d.cp == 1 or heads % (d.tp * d.cp) == 0
    assert len(set(found)) == len(found)
    if batch % gpus == 0:
        assert Degrees(dp_replicate=gpus) in found and Degrees(dp_shard=gpus) in found


@given(degrees=DEGREES)
def test_states_are_shared_out_over_the_shards(degrees):
    alone = memory_of(ROLES[1], WORK, Degrees(), Precision())
    memory = memory_of(ROLES[1], WORK, degrees, Precision())
    network = ROLES[1].generator
    share = network.local(degrees.tp) / network.parameters / degrees.shards
    for item in ("generator_optimizer", "fake_optimizer"):
        assert memory.items[item] == pytest.approx(share * alone.items[item])
    assert share >= 1 / (degrees.shards * degrees.tp) - 1e-12
    assert memory.total == pytest.approx(sum(memory.items.values()))
    copies = dataclasses.replace(degrees, dp_replicate=1)
    assert copies.gpus == degrees.gpus // degrees.dp_replicate
    kept = memory_of(ROLES[1], WORK, copies, Precision())
    for item in ("generator", "frozen", "average", "in_flight"):
        if kept.moment == memory.moment:
            assert kept.items[item] == pytest.approx(memory.items[item])


@given(degrees=DEGREES)
def test_traffic_is_the_closed_form(degrees):
    sent = traffic_of(ROLES[1], WORK, 1, degrees, Precision())
    network, s, tp = ROLES[1].generator, degrees.shards, degrees.tp
    local, root = network.local(tp), network.root.local(tp)
    # Of the teacher 1, of the fake score 2 + 1, of the generator 3, of the frozen expert 3.
    forward, backward = 1 + 3 + 3 + 3, 2 + 1
    gathered = forward * local + backward * (local - root)
    assert sent.all_gather == pytest.approx(4 * gathered * (s - 1) / s)
    assert sent.reduce_scatter == pytest.approx(4 * backward * local * (s - 1) / s)
    r = degrees.dp_replicate
    assert sent.all_reduce == pytest.approx(4 * backward * local / s * 2 * (r - 1) / r)
    tokens, width, depth = 16, SMALL["width"], SMALL["depth"]
    stream = 4 * tokens * width * depth * WORK.batch_size / degrees.batches / degrees.cp
    assert sent.cp_all_to_all == pytest.approx(
        (forward + backward) * 4 * stream / tp * (degrees.cp - 1) / degrees.cp
    )
    assert sent.tp_all_reduce == pytest.approx(
        (forward + backward) * 2 * stream * 2 * (tp - 1) / tp
    )


def test_what_fits_comes_first_and_more_memory_fits_more():
    roles, work = small_plan()
    settings = {"gpus": 8, "precision": Precision()}
    everything = plan_roles(roles, work, memory=1.0, **settings)
    sizes = sorted(c.memory.total for c in everything.choices)
    middle = sizes[len(sizes) // 2]
    plan = plan_roles(roles, work, memory=middle / 2**30, **settings)
    fits = [c.fits for c in plan.choices]
    assert fits == sorted(fits, reverse=True) and 0 < sum(fits) < len(fits)
    assert all(c.fits == (c.memory.total <= middle) for c in plan.choices)
    sent = [c.traffic.total for c in plan.fitting]
    assert sent == sorted(sent)
    none = plan_roles(roles, work, memory=sizes[0] / 2**31, **settings)
    assert not none.fitting and none.least.memory.total == sizes[0]
    assert "nothing fits: the least that any choice needs is" in tables(none)


# -------------------------------------------------------------------------------------- a plan


def test_no_weight_is_loaded_where_that_can_be_helped(monkeypatch):
    seen = []
    real = measure

    def watched(denoiser, *args, **settings):
        seen.append({p.device.type for p in denoiser.parameters()})
        return real(denoiser, *args, **settings)

    monkeypatch.setattr("pdmd.planning.run_plan.measure", watched)
    plan_run(load_config("digits"))
    assert seen and all(devices == {"meta"} for devices in seen)
    seen.clear()
    plan_run(load_config("mixture"))
    assert all(devices <= {"meta"} for devices in seen)


def test_a_plan_is_that_of_the_configuration():
    config = load_config("digits")
    config.teacher.guidance = (3.0,)
    config.train.accumulate = 2
    plan = plan_run(config, gpus=2)
    assert [c.forward["teacher"] for c in plan.calls] == [4] * 4
    assert [c.forward["frozen"] for c in plan.calls] == [0, 4, 8, 12]
    parameters = sum(p.numel() for p in ImageTransformer().parameters())
    assert {r.generator.parameters for r in plan.roles} == {parameters}
    config.parallel.activation_checkpointing = "full"
    again = plan_run(config, gpus=2)
    assert again.choices[0].memory.activations < plan.choices[0].memory.activations
    assert sum(again.flops[0].values()) > sum(plan.flops[0].values())


@pytest.mark.parametrize("preset", ["digits", "mixture", "mixture_tuned"])
def test_the_command_prints_the_plan_and_writes_its_figures(preset, tmp_path, capsys):
    out = tmp_path / "plans" / "plan.json"
    words = ["plan", preset, "--gpus", "4", "--json", str(out)]
    words += ["--parallel.precision", "bfloat16"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["gpus"] == 4 and figures["precision"] == "bfloat16"
    best = figures["choices"][0]
    assert math.isclose(sum(best["memory"].values()), best["bytes"])
    assert "evaluations" in printed and "memory of a GPU at replicate" in printed
    assert (
        f"of {len(figures['choices'])} choices of degrees {len(figures['choices'])} fit" in printed
    )
    assert main(["plan", preset, "--memory", "1e-6"]) == 0
    assert "nothing fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--gpus", "0"], "GPUs is from 1"),
        (["digits", "--gpus", "7"], "7 ranks cannot share batches of 128"),
        (["digits", "--memory", "nan"], "positive"),
        (["digits", "--memory", "-1"], "positive"),
        (["digits", "--parallel.precision", "fp8"], "fp8"),
        (["digits", "--parallel.activation-checkpointing", "selective"], "selective"),
        (["digits", "--json", "plan.txt"], ".json"),
        (["digits", "--show", "0"], "--show"),
        (["digits", "--teacher.name", "cat"], "unknown teacher 'cat'"),
        (["digits", "--train.batch-size", "0"], "train.batch_size"),
        (["mixture", "--teacher.arguments", "dim", "0"], "dim"),
        (["mixture", "--teacher.arguments", "classes", "0", "--teacher.guidance", "2"], "guid"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not any(tmp_path.iterdir())


def test_units_are_the_blocks_that_hold_most_parameters():
    network = Images(**MEDIUM)
    assert list(units_of(network).values()) == list(network.net.blocks)
    wrapped = checkpointed(Images(**MEDIUM))
    assert all(isinstance(unit, Checkpointed) for unit in units_of(wrapped).values())
    assert units_of(nn.Linear(2, 2)) == {}


def test_of_a_routed_network_all_parameters_count_and_the_work_of_one():
    network = Images(**SMALL)
    pair = RoutedDenoiser([network, network.trainable_copy()], IntervalRouter((1.0, 0.5, 0.0)))
    condition = network.encode([1])
    one, two = (measure(n, condition, train=True) for n in (network, pair))
    assert two.parameters == 2 * one.parameters and len(two.units) == 2 * len(one.units)
    assert (two.flops, two.backward_flops) == (one.flops, one.backward_flops)
    for course in ("quiet", "recorded"):
        a, b = (getattr(n, course).bytes(4, (1, 1, 1, 1, 1)) for n in (one, two))
        assert a.tolist() == b.tolist()
