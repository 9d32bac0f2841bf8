"""The clips benchmark: prompts held out, figures of motion, errors at boundaries."""

from dataclasses import replace

import pytest
import torch

from pdmd.benchmarks import SCHEMES, BenchConfig
from pdmd.benchmarks.clips import ClipsBenchmark
from pdmd.benchmarks.held_out_prompts import split_prompts
from pdmd.teachers.packaged.clip_world import CLIP_NAMES
from pdmd.training.monitoring.accounting import Account

TINY = dict(updates=2, fake_updates=1, batch_size=2, samples=32)


@pytest.fixture
def benchmark(tmp_path):
    benchmark = ClipsBenchmark(BenchConfig(name="clips", **TINY, guidance=2.0), tmp_path)
    benchmark.teacher_steps = 2
    return benchmark


def test_a_run_trains_on_some_prompts_and_measures_others(benchmark):
    row, picture = benchmark.run("phased_2x2", 0)
    train, held = split_prompts(CLIP_NAMES, 7)
    teacher = benchmark.teacher()
    assert list(teacher.prompts) == train and set(benchmark.prompts[1]) == set(held)
    assert teacher.scales == (2.0,) and picture.startswith("data:image")
    assert {
        "relative_flow",
        "held_out_relative_flow",
        "flow_spread",
        "boundary_1",
        "forwards",
    } <= set(row)
    assert row["nfe"] == 4 and "boundary_2" not in row


def test_the_floor_is_another_draw_of_the_teacher(benchmark):
    row, _ = benchmark.run("teacher", 0)
    first, second = benchmark.references(benchmark.teacher(), False)
    assert row["nfe"] == 4 and row["flow_distance"] > 0 and not torch.equal(first, second)


def test_the_stochastic_row_samples_the_reverse_process(benchmark):
    row, _ = benchmark.run("teacher_stochastic", 0)
    flow, _ = benchmark.run("teacher", 0)
    assert row["nfe"] == 3 * flow["nfe"] == 12 and row["forwards"] == 0
    assert row["feature_distance"] != flow["feature_distance"]


def test_too_few_samples_for_diversity_are_an_error(tmp_path):
    benchmark = ClipsBenchmark(BenchConfig(name="clips", **TINY | {"samples": 31}), tmp_path)
    with pytest.raises(ValueError, match="--samples must be at least 32, got 31"):
        _ = benchmark.prompts


@pytest.mark.parametrize("name", ["phased", "phased_2x2", "phased_disjoint", "one_step"])
def test_plans_and_the_teachers_steps_are_shifted_alike(benchmark, name):
    plain, plan = SCHEMES[name].plan(), benchmark.plan(SCHEMES[name])
    assert plan.timesteps == pytest.approx([3 * t / (1 + 2 * t) for t in plain.timesteps])
    assert [p.score_range[1] == p.t_start for p in plan] == [
        p.score_range[1] == p.t_start for p in plain
    ]
    assert benchmark.times(4) == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_a_method_trains_at_its_own_rates_unless_options_state_others(tmp_path):
    def rates(method, **options):
        config = BenchConfig(name="clips", **TINY, **options)
        return ClipsBenchmark(config, tmp_path).scheme(method).learning_rates

    assert rates("one_step") == (3e-4, 6e-4) and rates("vanilla") is None
    assert rates("one_step", lr=1e-5) is None and rates("one_step", fake_lr=1e-5) is None
    assert rates("phased_lora", lr=1e-5) == (1e-3, 0.0)  # part of the scheme


def test_a_scheme_may_guide_the_training_at_early_times_alone(benchmark, monkeypatch):
    import pdmd.benchmarks.distillation as module

    found = []
    monkeypatch.setattr(module, "distill", lambda teacher, *a, **k: found.append(teacher))
    early = replace(SCHEMES["phased"], guidance_interval=(0.5, 1.0))
    for scheme in (SCHEMES["phased"], early):
        benchmark._train(scheme, benchmark.teacher(), 0, 4, 2, Account())
    assert [(t.scales, t.interval) for t in found] == [((2.0,), (0, 1)), ((2.0,), (0.5, 1))]
