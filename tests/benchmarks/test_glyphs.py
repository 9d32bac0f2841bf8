"""The glyphs benchmark: prompts held out, equal budgets, errors at boundaries."""

import pytest
import torch

from pdmd import PhasePlan, Student
from pdmd.benchmarks import SCHEMES, BenchConfig
from pdmd.benchmarks.boundary_errors import boundary_errors
from pdmd.benchmarks.distillation import MixtureBenchmark
from pdmd.benchmarks.glyphs import GlyphsBenchmark, split_prompts
from pdmd.diffusion.solvers import renoise_step
from pdmd.distillation.experts import OdeExpert
from pdmd.evaluation import evaluators
from pdmd.teachers.mixture import MixtureTeacher
from pdmd.teachers.packaged.glyph_world import NAMES, GlyphBank

TINY = dict(updates=4, fake_updates=1, batch_size=2, samples=74)


def test_prompts_are_split_and_nothing_is_held_out_twice():
    train, held = split_prompts(7)
    assert sorted([*train, *held]) == sorted(NAMES) and len(held) == 9
    assert split_prompts(7) == (train, held) != split_prompts(8)


def test_too_few_samples_for_diversity_are_an_error(tmp_path):
    benchmark = GlyphsBenchmark(BenchConfig(name="glyphs", **{**TINY, "samples": 40}), tmp_path)
    with pytest.raises(ValueError, match="--samples must be at least 74, got 40"):
        _ = benchmark.prompts


@pytest.mark.slow
def test_a_run_trains_on_some_prompts_and_measures_others(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "_bank", lambda seed: GlyphBank(1, seed=seed))
    benchmark = GlyphsBenchmark(BenchConfig(name="glyphs", **TINY), tmp_path)
    benchmark.teacher_steps = 2
    row, picture = benchmark.run("phased", 0)
    train, held = split_prompts(7)
    teacher = benchmark.teacher()
    assert list(teacher.prompts) == train and set(benchmark.prompts[1]) == set(held)
    assert teacher.scales == (1.5,) and picture.startswith("data:image")
    assert {"faces", "held_out_faces", "boundary_1", "boundary_3", "forwards"} <= set(row)
    assert "boundary_4" not in row


def test_the_error_at_a_boundary_is_one_for_the_teachers_own_samples():
    teacher = MixtureTeacher.random(dim=4, classes=1, modes=3)
    plan = PhasePlan.uniform(2)
    student = Student([OdeExpert(teacher, phase) for phase in plan])
    generator = torch.Generator().manual_seed(0)
    first, second, third = (teacher.sample(4000, generator=generator) for _ in range(3))
    exact = renoise_step(third, 0.0, 0.5, teacher.schedule, generator)
    right = boundary_errors([first, exact, third], student, (first, second), generator)
    wrong = boundary_errors([first, 1.5 * exact, third], student, (first, second), generator)
    assert list(right) == ["boundary_1"]
    assert right["boundary_1"] == pytest.approx(1, abs=0.5) and wrong["boundary_1"] > 3


@pytest.mark.parametrize("method", ["one_step", "phased"])
def test_methods_of_one_budget_cost_the_same(method, tmp_path, monkeypatch):
    monkeypatch.setattr(MixtureBenchmark, "prepare", lambda *a: None)
    config = BenchConfig(name="mixture", forwards=3000, batch_size=4, samples=50, dim=3, classes=2)
    benchmark = MixtureBenchmark(config, tmp_path)
    from pdmd.distillation.initializers import FromDenoiser
    from pdmd.teachers.base import networks

    network = networks["mlp"](dim=3, classes=2, width=8, schedule=benchmark.teacher().schedule)
    monkeypatch.setattr(benchmark, "start", lambda width: FromDenoiser(network))
    _, cost = benchmark.distill(SCHEMES[method], benchmark.teacher(), 0)
    assert cost["forwards"] == pytest.approx(3000, rel=0.02)
