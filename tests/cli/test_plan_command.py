"""``pdmd plan``: its tables, its JSON file and its errors."""

import json
import math

import pytest

from pdmd.cli.main import main


@pytest.mark.parametrize("preset", ["digits", "mixture", "mixture_tuned"])
def test_plan_prints_its_tables_and_writes_json(preset, tmp_path, capsys):
    out = tmp_path / "plans" / "plan.json"
    words = ["plan", preset, "--gpus", "4", "--json", str(out)]
    words += ["--parallel.precision", "bfloat16"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    plan = json.loads(out.read_text())
    number = len(plan["choices"])
    assert plan["cluster"]["gpus"] == 4 and plan["precision"] == "bfloat16"
    best = plan["choices"][0]
    assert math.isclose(sum(best["memory"].values()), best["bytes"])
    assert (
        "network evaluations and FLOPs per cycle" in printed
        and "peak memory of a GPU at replicate" in printed
    )
    assert f"{number} of {number} choices of degrees fit" in printed
    assert main(["plan", preset, "--memory", "1e-6"]) == 0
    assert "nothing fits" in capsys.readouterr().out


def test_a_negative_prompt_costs_what_guidance_costs(tmp_path, capsys):
    plans = []
    for i, more in enumerate(([], ["--teacher.negative-prompt", "1"])):
        path = tmp_path / f"{i}.json"
        words = ["plan", "digits", "--teacher.guidance", "2", *more, "--json", str(path)]
        assert main(words) == 0
        plans.append(json.loads(path.read_text()))
    assert plans[0] == plans[1]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--gpus", "0"], "expected 1 to 100,000 GPUs"),
        (["digits", "--gpus", "7"], "no degrees of parallelism for 7 ranks"),
        (["digits", "--memory", "nan"], "memory is nan"),
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
def test_invalid_arguments_are_one_line_errors(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and not any(tmp_path.iterdir())
