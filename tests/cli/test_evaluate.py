"""`pdmd evaluate`."""

import shutil

import pytest
import torch

from pdmd.cli.config_files import load_config, write_config
from pdmd.cli.evaluation_options import EvaluateOptions
from pdmd.cli.main import main
from pdmd.cli.parallel_config import PRECISIONS, ParallelConfig
from pdmd.teachers.guided import Guided, unguided
from tests.helpers.small_runs import untrained_student
from tests.helpers.tiny_runs import distill


def nfe_by_method(table):
    lines = [line.split() for line in table.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) > 1}


def test_a_moved_student_is_compared_at_the_guidance_of_its_distillation(tmp_path, capsys):
    assert distill(tmp_path / "run", "--teacher.guidance", "2") == 0
    shutil.move(tmp_path / "run" / "student", tmp_path / "moved")
    capsys.readouterr()
    words = ["evaluate", str(tmp_path / "moved"), "--samples", "100", "--teacher-steps", "3"]
    assert main(words) == 0
    found = capsys.readouterr()
    assert "no better than the teacher's own 2 Euler steps" in found.err  # after two updates
    guided = nfe_by_method(found.out)
    assert main([*words, "--guidance", "1"]) == 0
    plain = nfe_by_method(capsys.readouterr().out)
    assert guided["teacher"] == "6" and plain["teacher"] == "3"  # NFE
    assert guided["student"] == plain["student"] == "2"


def test_the_negative_prompt_of_a_student_is_the_evaluated_teachers(tmp_path, monkeypatch, capsys):
    words = ["--teacher.guidance", "2", "--teacher.negative-prompt", "1"]
    assert distill(tmp_path / "run", *words) == 0
    evaluated = {}

    def record(student, teacher, **options):
        evaluated.update(student=student, teacher=teacher)
        return {}

    monkeypatch.setattr("pdmd.evaluation.evaluate.draw_samples", record)
    monkeypatch.setattr(
        "pdmd.evaluation.evaluate.score",
        lambda *a, **k: {"rows": [{"method": "student"}], "quality": "sw2"},
    )
    words = ["evaluate", str(tmp_path / "run"), "--samples", "100"]
    assert main(words) == 0
    null = unguided(evaluated["teacher"]).encode(["1"])["label"]
    assert torch.equal(evaluated["teacher"].null["label"], null)
    assert main([*words, "--guidance", "1"]) == 0
    assert not isinstance(evaluated["teacher"], Guided)
    assert "\r" not in capsys.readouterr().err


@pytest.mark.parametrize("run", ["run", "run/student"])
def test_an_evaluation_has_the_precision_of_the_run(tmp_path, run):
    (tmp_path / "run" / "student").mkdir(parents=True)
    config = load_config("mixture")
    config.parallel.precision = "bfloat16"
    write_config(config, tmp_path / "run" / "config.toml")
    options = EvaluateOptions()
    options.choose_precision(str(tmp_path / run))
    assert options.parallel.precision == "bfloat16"
    given = EvaluateOptions(parallel=ParallelConfig(precision="float32"))
    given.choose_precision(str(tmp_path / run))
    assert given.parallel.precision == "float32"
    alone = EvaluateOptions()
    alone.choose_precision(str(tmp_path))
    assert PRECISIONS[alone.parallel.precision] is torch.float32


@pytest.mark.parametrize("guidance", [2, 2.0, [2.0]])
def test_the_guidance_of_a_student_may_be_one_number(tmp_path, capsys, guidance):
    student = untrained_student()
    student.source = {**student.source, "guidance": guidance}
    student.save(tmp_path)
    words = ["--samples", "100", "--teacher-steps", "2", "--no-progress"]
    assert main(["evaluate", str(tmp_path), *words]) == 0
    assert nfe_by_method(capsys.readouterr().out)["teacher"] == "4"


@pytest.mark.parametrize(
    "words", ["--seeds 2", "--prompts x.txt", "--clip x", "--fps 8", "--folder x", "--overwrite"]
)
def test_options_of_metrics_are_rejected_without_metrics(capsys, words):
    option, *_ = words = words.split()
    assert main(["evaluate", "nowhere", *words]) == 2
    assert f"{option} is for --metrics; add some or leave it out" in capsys.readouterr().err
