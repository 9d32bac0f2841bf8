"""Recipes at tiny size: walked from prompts to exported students."""

import pytest

from pdmd import Student
from pdmd.cli.config_files import load_config, presets
from pdmd.cli.main import main
from pdmd.cli.tiny import shrink, tiny_folder
from pdmd.teachers.families.tiny.pipelines import TINY

RECIPES = sorted(name for name in presets() if load_config(name).teacher.name in TINY)


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_recipe_keeps_what_the_recipe_is_about(name):
    recipe, tiny = load_config(name), shrink(load_config(name))
    folder = tiny_folder(tiny)
    tiny.check()
    assert (tiny.plan, tiny.objective) == (recipe.plan, recipe.objective)
    assert tiny.teacher.guidance == recipe.teacher.guidance
    assert bool(tiny.lora.rank) == bool(recipe.lora.rank)
    assert bool(tiny.lora.fake_rank) == bool(recipe.lora.fake_rank)
    assert tiny.teacher.arguments["folder"] == str(folder) == f"runs/{name}_tiny/tiny_pipeline"
    assert recipe.train.batch_size * recipe.train.accumulate == 64  # as in the paper


def test_packaged_teachers_need_no_tiny_networks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "digits", "--tiny"]) == 2
    assert "'digits' is small as it is" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


SHORT = ("--evaluate.at-end", "never", "--validation.every", "0", "--health.every", "0")


def walk(name, folder, capsys, *more):
    """Distills, samples and exports; returns the student."""
    run = folder / "run"
    words = ["distill", name, "--tiny", "--out", str(run), "--no-progress", *more]
    assert main(words) == 0
    assert "--tiny: the networks in" in capsys.readouterr().err
    student = Student.load(run / "student", trust_source=True)
    assert student.plan == load_config(name).plan.build()
    return student


@pytest.mark.filterwarnings("ignore")
def test_qwen_image_is_walked_to_a_student(tmp_path, capsys):
    student = walk("qwen_image", tmp_path, capsys, *SHORT)
    assert [type(e.denoiser).__name__ for e in student.experts] == ["AdaptedDenoiser"] * 2
    assert main(["distill", "qwen_image", "--tiny", "--out", str(tmp_path / "run")]) == 2
    assert (
        "replace it with --overwrite, or train it longer with --resume" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "qwen_image"])
def test_every_recipe_is_walked_to_an_exported_student(name, tmp_path, capsys):
    walk(name, tmp_path, capsys)
    student = str(tmp_path / "run" / "student")
    assert main(["export", student, str(tmp_path / "out"), "--no-progress"]) == 0
    assert main(["export", student, str(tmp_path / "lora"), "--to", "lora"]) == 0
