"""The clips benchmark: prompts held out, figures of motion, errors at boundaries."""

import pytest
import torch

from pdmd.benchmarks import BenchConfig
from pdmd.benchmarks.clips import ClipsBenchmark
from pdmd.benchmarks.held_out_prompts import split_prompts
from pdmd.teachers.packaged.clip_world import CLIP_NAMES

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


def test_too_few_samples_for_diversity_are_an_error(tmp_path):
    benchmark = ClipsBenchmark(BenchConfig(name="clips", **TINY | {"samples": 31}), tmp_path)
    with pytest.raises(ValueError, match="--samples must be at least 32, got 31"):
        _ = benchmark.prompts
