import copy
import dataclasses
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

from pdmd import Student
from pdmd.cli.config_files import load_config, presets, read_config
from pdmd.cli.main import main
from pdmd.cli.runs import Run

TINY = [
    "--train.updates=4",
    "--train.fake-updates=1",
    "--train.batch-size=16",
    "--evaluate.samples=200",
    "--evaluate.teacher-steps=3",
    "--network.updates=20",
    "--no-progress",
]


@pytest.mark.parametrize("preset", ["digits", "mixture", "mixture_tuned"])
def test_the_main_job(tmp_path, capsys, preset):
    run = tmp_path / preset
    assert main(["distill", preset, "--out", str(run), *TINY]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["real", "teacher", "teacher_euler_4", "student"]
    assert all(row["method"] in printed for row in rows) and str(run / "report.html") in printed
    assert rows[-1]["nfe"] == 4
    page = (run / "report.html").read_text()
    assert (
        "data:image/png" in page
        and 'src="http' not in page
        and "not available" not in page.lower()
    )
    assert (run / "grids" / "phase_4.png").exists() and any((run / "tensorboard").iterdir())
    again = tmp_path / "again"
    assert main(["distill", str(run / "config.toml"), "--out", str(again), "--no-progress"]) == 0
    pair = [Student.load(folder / "student") for folder in (run, again)]
    assert all(
        torch.equal(a, b) for a, b in zip(*(s.state_dict().values() for s in pair), strict=True)
    )
    out = tmp_path / ("s.png" if preset == "digits" else "s.safetensors")
    assert main(["sample", str(run), "--n", "12", "--out", str(out)]) == 0 and out.exists()
    assert (
        main(["evaluate", str(run / "student"), "--samples", "200", "--teacher-steps", "2"]) == 0
    )
    assert main(["distill", preset, "--out", str(run), *TINY]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["distil"], "distill"),
        (["distill", "digit"], "did you mean 'digits'"),
        (["distill", "digits", "--train.updats", "3"], "train.updats"),
        (["distill", "digits", "--train.updates", "many"], "many"),
        (["distill", "digits", "--train.updates", "0"], "train.updates"),
        (["distill", "digits", "--train.lr", "nan"], "nan"),
        (["distill", "digits", "--plan.timesteps", "0.9", "0"], "0.9"),
        (["distill", "digits", "--plan.timesteps", "1", "0.4", "0.6", "0"], "0.6"),
        (["distill", "digits", "--teacher.name", "cat"], "unknown teacher 'cat'"),
        (["distill", "digits", "--objective.weight", "cat"], "unknown gap weight 'cat'"),
        (["distill", "digits", "--resume"], "no checkpoint"),
        (["sample", "nowhere"], "no student.json"),
        (["sample"], "missing the student folder"),
        (["evaluate", "nowhere"], "no student.json"),
        (["pretrain", "cats"], "cannot pretrain 'cats'"),
        (["report", "nowhere"], "neither a run folder nor"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and "Traceback" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["teachers"], ["objectives"], ["--version"]]
    + [
        [c, "--help"]
        for c in ("distill", "plan", "sample", "evaluate", "pretrain", "report", "teachers")
    ],
)
def test_help_and_lists(capsys, words):
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_ctrl_c_stops_cleanly_and_resume_gives_the_same_bits(tmp_path):
    words = [
        "distill",
        "mixture",
        "--train.updates",
        "150",
        "--train.batch-size",
        "16",
        "--network.updates",
        "10",
        "--evaluate.samples",
        "100",
        "--no-progress",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-m", "pdmd", *words, "--out", str(tmp_path / "a")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    history, waited = tmp_path / "a" / "history.jsonl", time.monotonic()
    while not (history.exists() and history.stat().st_size) and time.monotonic() - waited < 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130, error
    assert "go on with: pdmd distill" in error and "Traceback" not in error
    assert main(["distill", str(tmp_path / "a" / "config.toml"), "--resume", "--no-progress"]) == 0
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    pair = [Student.load(tmp_path / name / "student").state_dict() for name in "ab"]
    assert all(torch.equal(pair[0][k], pair[1][k]) for k in pair[0])


JUNK = [
    None,
    True,
    -1,
    0,
    3,
    10**400,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "cat",
    "digits",
    [],
    [1],
    [1, "a"],
    [[1]],
    {},
    {"a": 1},
    {"name": 3},
]


def mutate(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        place = data
        while True:
            keys = list(place)
            key = rng.choice(keys) if keys else "x"
            if isinstance(place.get(key), dict) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            break
        match rng.randrange(3):
            case 0:
                place[key] = rng.choice(JUNK)
            case 1:
                place.pop(key, None)
            case 2:
                place[key + rng.choice("abc_")] = rng.choice(JUNK)
    return data


def without_none(data):
    if isinstance(data, dict):
        return {k: without_none(v) for k, v in data.items() if v is not None}
    return data


def test_mutated_configurations_never_crash(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pdmd.cli.distill._run", lambda config, options: Run(config) and 0)
    rng, refused = random.Random(0), []
    starts = [tomllib.loads(p.read_text()) for p in presets().values()]
    starts += [dataclasses.asdict(load_config(name)) for name in presets()]
    for _ in range(5000):
        data = mutate(rng.choice(starts), rng)
        try:
            config = read_config(data)
            config.check()
            config.teacher.build()
        except ValueError as error:
            refused.append(data)
            assert str(error).strip() and len(str(error)) < 600
    assert len(refused) > 2500

    for i, data in enumerate(rng.sample(refused, 150)):
        path = tmp_path / f"{i}.toml"
        path.write_text(tomli_w.dumps(without_none(data)))
        before = sorted(tmp_path.iterdir())
        code = main(["distill", str(path), "--out", str(tmp_path / "run")])
        *shown, error = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
        if code == 0:  # only the None, which TOML cannot say, was wrong
            continue
        assert code == 2 and error.startswith("pdmd: error: "), (shown, error)
        assert all("Loading" in line for line in shown if line.strip())  # a text encoder's bars
        assert sorted(tmp_path.iterdir()) == before
