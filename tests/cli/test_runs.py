"""Runs: killed and interrupted ones, and what overwriting keeps."""

import json
import shlex
import shutil
import signal
import time

import pytest
import torch

from pdmd.cli.config_files import load_config
from pdmd.cli.main import main
from pdmd.cli.run_folders import check_folder
from pdmd.cli.runs import Run
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.recorder import RunRecorder
from tests.helpers.tiny_runs import bits, distill


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def read_any(checkpointer, read=Checkpointer.read):
    """Reads a checkpoint whatever its settings were."""
    name = checkpointer.store.latest()
    checkpointer.fingerprint = checkpointer.store.content(name)["fingerprint"]
    return read(checkpointer)


def kill_in(monkeypatch, owner, name, at, *, after=False):
    """Kills the run at a call of a method, by its number from 1."""
    method, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == at and not after:
            raise Killed
        out = method(*args, **kwargs)
        if len(calls) == at:
            raise Killed
        return out

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(RunRecorder, "on_update", 5), (RunRecorder, "on_update", 9), (Checkpointer, "save", 3)],
)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch, finished, owner, name, at):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_in(patch, owner, name, at)
        with pytest.raises(Killed):
            distill(folder)
    for manifest in sorted((folder / "checkpoint").glob("*/manifest.json"))[1:]:
        manifest.unlink()  # as a kill in the middle of a save leaves it
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"phase": 1, "upd')
    (folder / "calibration.json").write_text("[{")
    assert distill(folder, "--resume") == 0
    assert torch.equal(bits(folder), bits(finished))
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [(r["phase"], r["update"]) for r in rows] == sorted({(1, 6), (2, 6)})


def test_a_truncated_checkpoint_is_named_and_the_one_before_offered(
    tmp_path, monkeypatch, capsys, finished
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_in(patch, RunRecorder, "on_update", 5)
        with pytest.raises(Killed):
            distill(folder)
    files = sorted((folder / "checkpoint").glob("*/*.distcp"))
    newest, before = files[-1], files[0].parent.name
    newest.write_bytes(newest.read_bytes()[:100])
    assert distill(folder, "--resume") == 2
    error = capsys.readouterr().err.strip()
    assert "damaged" in error and newest.name in error and "\n" not in error
    assert f"--checkpoint {before}" in error
    assert distill(folder, "--checkpoint", before) == 0
    assert torch.equal(bits(folder), bits(finished))


def test_ctrl_c_in_the_evaluation_is_resumed(tmp_path, monkeypatch, capsys, finished):
    folder = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(
            "pdmd.cli.final_evaluation.draw_samples",
            lambda *a, **k: signal.raise_signal(signal.SIGINT),
        )
        assert distill(folder) == 130
    _, *words = shlex.split(capsys.readouterr().err.split("resume with: ")[1])
    assert words == ["distill", str(folder / "config.toml"), "--resume"]
    assert main([*words, "--no-progress"]) == 0
    assert torch.equal(bits(folder), bits(finished))
    assert len(list((folder / "checkpoint").glob("*/manifest.json"))) == 1
    assert (folder / "report.html").exists()


def test_a_run_stops_before_the_time_limit_of_its_job(tmp_path, monkeypatch, capsys, finished):
    folder = tmp_path / "run"
    assert distill(folder, "--train.save-before", "5m") == 2
    assert "--train.time-limit 24h" in capsys.readouterr().err
    assert not folder.exists()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 290))
    assert distill(folder, "--train.save-before", "5m") == 130
    error = capsys.readouterr().err
    assert "stopped in phase 1 after update 0" in error and "resume with: pdmd distill" in error
    assert distill(folder, "--resume", "--train.save-before", "1m") == 0
    assert torch.equal(bits(folder), bits(finished))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_after_the_last_update_stops_before_the_evaluation(
    number, tmp_path, monkeypatch, capsys
):
    folder, done = tmp_path / "run", []

    def on_update(self, update):
        done.append(update)
        if len(done) == 12:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_update", on_update)
        assert distill(folder) == 130
    assert "stopped before the evaluation; resume with" in capsys.readouterr().err
    assert not (folder / "metrics.json").exists()
    assert distill(folder, "--resume") == 0


def test_ctrl_c_before_training_stops_at_once(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            "pdmd.teachers.packaged.pretraining.pretrain",
            lambda *a, **k: signal.raise_signal(signal.SIGINT),
        )
        assert distill(tmp_path / "run") == 130
    assert "--overwrite" in capsys.readouterr().err
    assert distill(tmp_path / "run", "--overwrite") == 0


def test_overwriting_leaves_the_users_own_files(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    own = ["notes.md", "student/card.md", "grids/best.png", "tensorboard/layout.json", "data/x"]
    own += ["student/expert_1_best.safetensors", "grids/phase_1_of_monday.png"]
    own += ["validation/phase_1_best.png", "validation/extra/metrics.jsonl"]
    for name in own:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "grids" / "phase_7.png").write_bytes(b"of a longer plan")
    events = set((folder / "tensorboard").glob("events*"))
    assert distill(folder, "--overwrite") == 0
    assert all((folder / name).read_text() == "mine" for name in own)
    assert not (folder / "grids" / "phase_7.png").exists()
    assert not events & set((folder / "tensorboard").glob("events*"))


def test_a_folder_that_is_no_run_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert distill(tmp_path, "--overwrite") == 2
    assert "not a run folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "config.toml").write_text('out = "elsewhere"\n')
    assert distill(tmp_path, "--overwrite") == 2
    assert (tmp_path / "config.toml").read_text() == 'out = "elsewhere"\n'


def test_a_run_that_ended_before_it_had_a_plan_is_overwritten(tmp_path):
    (tmp_path / ".config.toml.0123456789ab.tmp").write_text("of a killed process")
    (tmp_path / "config.toml").write_text(f'out = "{tmp_path}"\n')
    arguments = {"resume": False, "occupied": True, "unfinished": False}
    check_folder(tmp_path, overwrite=True, **arguments)
    with pytest.raises(ValueError, match="replace it with --overwrite"):
        check_folder(tmp_path, overwrite=False, **arguments)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sample", "--prompts", "cat"], "'cat' is not a class from 0 to 1"),
        (["sample", "--prompts", "2"], "'2' is not a class"),
        (["sample", "--prompts", ""], "'' is not a class"),
        (["sample", "--out", "x.png"], "use --out samples.safetensors"),
        (["sample", "--out", "x.jpg"], "--out must be a folder or end in"),
        (["sample", "--n", "0"], "--n is from 1"),
        (["sample", "--n", str(10**12)], "--n is from 1"),
        (["sample", "--seed", str(10**30)], "--seed is from 0"),
        (["sample", "--seed", "-1"], "--seed is from 0"),
        (["evaluate", "--seed", str(10**30)], "--seed is from 0"),
        (["evaluate", "--samples", "3"], "--samples is from 100"),
        (["evaluate", "--guidance", "nan"], "nan"),
        (["evaluate", "--out", "taken/x.json"], "taken"),
    ],
)
def test_bad_requests_end_in_one_line_and_write_nothing(
    tmp_path, monkeypatch, capsys, finished, words, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    command, *rest = words
    if command == "sample" and "--out" not in rest:
        rest += ["--out", "x.safetensors"]
    assert main([command, str(finished), *rest]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_sampling_creates_the_output_folder(tmp_path, finished):
    from safetensors import safe_open

    out = tmp_path / "new" / "folder" / "x.safetensors"
    assert (
        main(["sample", str(finished), "--prompts", "0", "1", "--n", "5", "--out", str(out)]) == 0
    )
    with safe_open(str(out), framework="pt") as file:
        assert file.get_tensor("latents").shape == (5, 2)
        assert json.loads(file.metadata()["prompts"]) == ["0", "1", "0", "1", "0"]


@pytest.mark.parametrize("folder", ["taken/run", "taken"])
def test_a_folder_that_cannot_be_created_fails_before_training(tmp_path, capsys, folder):
    (tmp_path / "taken").write_text("a file")
    assert distill(tmp_path / folder) == 2
    error = capsys.readouterr().err.strip()
    assert "taken" in error and "\n" not in error


def test_a_student_of_an_unknown_teacher_names_the_remedy(tmp_path, finished, capsys):
    shutil.copytree(finished / "student", tmp_path / "student")
    path = tmp_path / "student" / "student.json"
    content = json.loads(path.read_text())
    content["source"]["teacher"] = "of_my_own"
    path.write_text(json.dumps(content))
    assert main(["sample", str(tmp_path / "student"), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err.strip()
    assert "'of_my_own'" in error and "--plugins" in error and "\n" not in error


def test_other_code_than_the_checkpoints_is_named(tmp_path, monkeypatch):
    config = load_config("mixture")
    config.out = str(tmp_path / "run")
    config.teacher.arguments = {"dim": 2, "classes": 2, "modes": 2}
    config.network.updates, config.train.updates, config.train.batch_size = 5, 6, 8
    config.train.checkpoint_every = 2
    with monkeypatch.context() as patch:
        kill_in(patch, RunRecorder, "on_update", 5)
        with pytest.raises(Killed):
            Run(config, progress=False).distill()
    config.network.arguments = {"width": 16}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "read", read_any)
        with pytest.raises(ValueError, match="does not fit this run.*here float32 .16"):
            Run(config, resume=True, progress=False).distill()


def test_a_stop_before_the_evaluation_is_an_interruption(tmp_path):
    config = load_config("mixture")
    config.out = str(tmp_path / "run")
    config.teacher.arguments = {"dim": 2, "classes": 0, "modes": 2}
    config.network.updates, config.train.updates, config.train.batch_size = 5, 1, 8
    config.plan.phases = 1
    run = Run(config, progress=False)
    run.checkpointer.stop_requested = True
    with pytest.raises(Interrupted):
        run.distill()


def test_checkpoints_may_be_kept_in_the_new_run_folder(tmp_path):
    folder = tmp_path / "run"
    where = ["--train.checkpoint-folder", str(folder / "checkpoint")]
    assert distill(folder, *where) == 0
    assert distill(folder, *where, "--overwrite") == 0
