"""Resuming: what may have changed since the checkpoint, and what is reported or rejected."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from pdmd.cli.config_files import load_config
from pdmd.cli.main import main
from pdmd.cli.resumed_settings import CHANGEABLE
from pdmd.training.checkpoints.settings import differences
from pdmd.training.checkpoints.store import Store
from pdmd.training.monitoring.recorder import RunRecorder
from tests.helpers.exporting import qwen_folder
from tests.helpers.tiny_runs import TINY, bits, distill


def interrupt(patch, at):
    """Requests a stop after this many updates in all."""
    done = []

    def on_update(self, update):
        done.append(update)
        if len(done) == at:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(RunRecorder, "on_update", on_update)


def checkpoints(folder):
    return sorted(path.parent.name for path in folder.glob("checkpoint/*/manifest.json"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run stopped in its first phase, not to be written to."""
    folder = tmp_path_factory.mktemp("resuming") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 3)
        assert distill(folder) == 130
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def test_settings_on_the_list_may_change_and_are_reported(run, capsys):
    words = ["--train.lr=1e-4", "--train.batch-size=4", "--train.updates=7", "--no-progress"]
    assert main(["distill", "--resume", str(run), *words]) == 0  # by the folder alone
    said = capsys.readouterr().err
    assert "pdmd: resuming with train.lr = 0.0001 (0.0005 before)\n" in said
    assert "train.updates = 7 (6 before); phases that are finished stay as they are" in said
    assert "train.batch_size = 4 (8 before); other samples are drawn" in said
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["update"]) for row in rows] == [(1, 7), (2, 7)]
    train = load_config(str(run)).train
    assert (train.lr, train.batch_size, train.updates) == (1e-4, 4, 7)  # for the next resume


def test_the_course_of_the_learning_rate_may_change_and_continues_at_its_update(run, capsys):
    words = ["--train.generator.warmup=2", "--train.fake.lr_decay.name=cosine", "--no-progress"]
    assert main(["distill", "--resume", str(run), *words]) == 0
    said = capsys.readouterr().err
    assert "resuming with train.generator.warmup = 2 (0 before)" in said
    assert "resuming with train.fake.lr_decay.name = 'cosine' ('constant' before)" in said


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--train.fake.weight-decay=0.1", "train.fake.weight_decay = 0.0, this run has 0.1"),
        ("--train.ema=0.5", "train.ema = 0.99, this run has 0.5"),
        ("--train.seed=3", "train.seed = 0, this run has 3"),
        ("--plan.phases=3", "plan.phases = 2, this run has 3"),
        ("--parallel.precision=bfloat16", "parallel.precision = 'float32'"),
        ("--network.arguments.width=16", "network.arguments.width = 64, this run has 16"),
    ],
)
def test_other_settings_are_rejected_by_name_and_nothing_is_written(run, capsys, word, named):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert distill(run, "--resume", word) == 2
    error = capsys.readouterr().err
    assert named in error and "--overwrite" in error and error.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_resume_rewrites_neither_configuration_nor_plan(run):
    kept = [run / "config.toml", run / "plan.json"]
    before = [path.stat().st_ino for path in kept]
    (run / "config.toml").write_text("# mine\n" + (run / "config.toml").read_text())
    assert distill(run, "--resume") == 0
    assert [path.stat().st_ino for path in kept] == before
    assert (run / "config.toml").read_text().startswith("# mine")


def test_a_finished_run_trains_longer_from_its_last_checkpoint(tmp_path, finished, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert checkpoints(folder) == ["phase-0002-update-000000006"]
    assert distill(folder) == 2
    assert "--resume and more --train.updates" in capsys.readouterr().err
    assert distill(folder, "--resume", "--train.updates=9") == 0
    assert checkpoints(folder) == ["phase-0002-update-000000009"]
    first, last = bits(finished), bits(folder)
    half = len(first) // 2
    assert torch.equal(first[:half], last[:half])  # the first phase stays as it was
    assert not torch.equal(first[half:], last[half:])
    again = bits(folder)
    assert distill(folder, "--resume", "--train.updates=9") == 0
    assert torch.equal(bits(folder), again)


def test_a_restarted_run_resumes_or_starts_again(run, tmp_path, monkeypatch, finished):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert distill(run) == 0
    assert torch.equal(bits(run), bits(finished))
    died = tmp_path / "died"
    died.mkdir()
    for name in ("config.toml", "plan.json"):
        shutil.copy(run / name, died / name)
    assert distill(died) == 0
    assert torch.equal(bits(died), bits(finished))


def test_a_copied_run_resumes_by_its_own_configuration(run, stopped, finished):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert main(["distill", str(run / "config.toml"), "--resume", "--no-progress"]) == 0
    assert torch.equal(bits(run), bits(finished))
    after = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert after == before


def test_no_checkpoint_stays_where_none_is_to_be_kept(tmp_path):
    assert distill(tmp_path / "run", "--train.checkpoint-keep=0") == 0
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_every_setting_that_may_change_is_in_the_documentation(request):
    text = (request.config.rootpath / "docs" / "resuming.md").read_text()
    missing = [key for key in CHANGEABLE if key not in text]
    assert not missing


def test_moved_inputs_are_accepted_and_changed_ones_named(tmp_path, capsys):
    qwen_folder(tmp_path / "q")
    prompts, run = tmp_path / "p.txt", tmp_path / "run"
    prompts.write_text("a cat\na dog\n")
    words = [word for word in TINY if not word.startswith("--network")]
    words = words[: words.index("--teacher.arguments")]

    def qwen(*more, place=prompts):
        arguments = ["folder", str(tmp_path / "q"), "prompts", str(place), "height", "64"]
        arguments += ["width", "48", "dtype", "float32"]
        teacher = ["--teacher.name=qwen_image", "--teacher.guidance", "1.0"]
        return main(
            ["distill", "digits", "--out", str(run), *words, *teacher, "--train.batch-size=2"]
            + [*more, "--teacher.arguments", *arguments]
        )

    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)
        assert qwen() == 130
    name = checkpoints(run)[-1]
    prompts.write_text("a horse\n")
    capsys.readouterr()
    assert qwen("--resume") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--allow-changed" in error and name in error
    assert "prompts has changed (the list of 1 instead of the list of 2)" in error
    assert "teacher.arguments.prompts has changed (p.txt differs)" in error
    moved = tmp_path / "moved.txt"
    moved.write_text("a cat\na dog\n")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)
        assert qwen("--resume", place=moved) == 130
    weights = next((tmp_path / "q" / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert qwen("--resume", place=moved) == 2
    assert f"transformer/{weights.name} differs" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)
        assert qwen("--resume", "--allow-changed") == 130
    content = Store(run / "checkpoint").content(checkpoints(run)[-1])
    assert "the list of 1" in content["inputs"]["prompts"]  # the next resume compares with it


def test_checkpoint_settings_do_not_count():
    from pdmd.cli.resumed_settings import fingerprint

    config = load_config("mixture")
    other = replace(config, out="x", train=replace(config.train, checkpoint_every=7))
    assert differences(fingerprint(config), fingerprint(other)) == {}
