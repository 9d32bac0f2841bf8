"""`pdmd distill`: the main job, and its interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pdmd import Student
from pdmd.cli.main import main

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
    assert "resume with: pdmd distill" in error and "Traceback" not in error
    assert main(["distill", str(tmp_path / "a" / "config.toml"), "--resume", "--no-progress"]) == 0
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    pair = [Student.load(tmp_path / name / "student").state_dict() for name in "ab"]
    assert all(torch.equal(pair[0][k], pair[1][k]) for k in pair[0])
