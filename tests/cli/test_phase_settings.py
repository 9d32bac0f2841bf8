"""The tables ``[[train.phase]]``: what they take, what runs of them train, and how they resume."""

import json
import signal

import pytest
import torch

from pdmd import PhasePlan
from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import read_config, write_config
from pdmd.cli.main import main
from pdmd.cli.resumed_settings import fingerprint
from pdmd.documents import read_toml
from pdmd.training.learning_rates import CosineDecay, LinearDecay
from pdmd.training.monitoring.recorder import RunRecorder
from tests.helpers.tiny_runs import bits, distill

PLAN = PhasePlan.uniform(3)
TABLES = (
    {"phases": [2, 3], "lr": 5e-5, "fake": {"betas": [0, 0.9], "lr_decay": "cosine"}},
    {"phases": 3, "updates": 7, "fake_updates": 2, "generator": {"warmup": 4}},
)


def test_tables_replace_settings_in_their_phases():
    config = DistillConfig()
    config.train.phase = TABLES
    generators, fakes = config.train.recipes(PLAN)
    assert [r.lr for r in generators] == [5e-4, 5e-5, 5e-5]
    assert [r.warmup for r in generators] == [0, 0, 4]
    assert generators[2].decay == LinearDecay(start=0.5, final=0.02)  # that of the section
    assert [r.betas for r in fakes] == [(0.5, 0.99), (0, 0.9), (0, 0.9)]
    assert fakes[1].decay == CosineDecay() and fakes[1].lr == 1e-3
    assert config.train.updates_of(PLAN) == [200, 200, 7]
    assert [rule.number for rule in config.train.build_fake_updates(PLAN)] == [5, 5, 2]


def test_without_tables_the_number_of_fake_updates_is_one():
    config = DistillConfig()
    config.train.phase = ({"phases": 2, "updates": 3},)
    config.train.curriculum = "joint"
    config.check()
    assert config.train.build_fake_updates(PLAN).number == 5


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"lr": 1}, "train.phase[1] is a table of phases and their settings"),
        ("cat", "train.phase[1] is a table of phases and their settings"),
        ({"phases": [0], "lr": 1}, "train.phase[1].phases are whole numbers from 1, got [0]"),
        ({"phases": [], "lr": 1}, "train.phase[1].phases is empty"),
        ({"phases": [5], "lr": 1}, "train.phase[1].phases has 5, but the plan has 4 phases"),
        ({"phases": 1, "lrr": 1}, "unknown key 'train.phase[1].lrr': did you mean 'lr'?"),
        ({"phases": 1, "ema": 0.1}, "unknown key 'train.phase[1].ema'"),
        ({"phases": 1, "lr": "cat"}, "train.phase[1].lr is a number, got 'cat'"),
        ({"phases": 1, "lr": -1}, "train.generator: lr must be positive and finite, got -1.0"),
        ({"phases": 1, "updates": 0}, "train.updates is from 1 to 1,000,000,000, got 0"),
        ({"phases": 1, "fake": {"beta": 1}}, "unknown key 'train.phase[1].fake.beta'"),
        ({"phases": 1, "fake": 3}, "train.phase[1].fake is a table of keys and values, got 3"),
        ({"phases": [1, 1], "lr": 1}, "train.phase[1].lr is set twice for phase 1"),
    ],
)
def test_tables_that_do_not_fit_are_named(table, named):
    config = DistillConfig()
    config.train.phase = (table,)
    with pytest.raises(ValueError) as caught:
        config.check()
    assert named in str(caught.value)


def test_phases_that_train_together_have_the_same_settings():
    config = DistillConfig()
    config.train.phase = ({"phases": 2, "lr": 1e-4},)
    config.train.curriculum = "joint"
    with pytest.raises(ValueError, match=r"train\.generator differs between phases 1 and 2"):
        config.check()


def test_tables_are_written_and_read(tmp_path):
    config = DistillConfig()
    config.train.phase = TABLES
    write_config(config, tmp_path / "config.toml")
    read = read_config(read_toml(tmp_path / "config.toml")[1])
    assert fingerprint(read) == fingerprint(config)
    assert fingerprint(config)["train"]["phase"]["2"]["lr"] == 5e-5
    config.train.phase = ({"phases": 1, "lr": config.train.lr},)  # no difference
    assert fingerprint(config)["train"]["phase"] == {}


WORDS = (
    "--train.phase",
    "[{phases = 2, lr = 1e-3, updates = 4, fake_updates = 2, fake = {betas = [0.9, 0.95]}}]",
)


def test_a_run_with_tables_resumes_exactly(tmp_path, monkeypatch, capsys):
    assert distill(tmp_path / "a", *WORDS) == 0
    rows = [json.loads(line) for line in (tmp_path / "a/history.jsonl").read_text().splitlines()]
    fakes = {(row["phase"], row["scalars"]["fake_updates"]) for row in rows}
    assert fakes == {(1, 1.0), (2, 2.0)}
    done = []

    def on_update(self, update):
        done.append(update)
        if len(done) == 8:  # the second update of the second phase
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "on_update", on_update)
        assert distill(tmp_path / "b", *WORDS) == 130
    resume = ["distill", "--resume", str(tmp_path / "b"), "--no-progress"]
    other = "[{phases = 2, lr = 1e-3, updates = 4, fake_updates = 2, fake = {betas = [0.9, 0.9]}}]"
    assert main([*resume, "--train.phase", other]) == 2
    assert "train.phase.2.fake.betas" in capsys.readouterr().err
    assert main(resume) == 0
    assert torch.equal(bits(tmp_path / "a"), bits(tmp_path / "b"))


def test_learning_rates_and_updates_of_a_phase_may_change_on_resuming(tmp_path, capsys):
    words = ("--evaluate.at-end=never", "--train.updates=2")
    assert distill(tmp_path / "a", *words, *WORDS) == 0
    other = WORDS[1].replace("1e-3", "1e-4").replace("updates = 4", "updates = 5", 1)
    capsys.readouterr()
    resume = ["distill", "--resume", str(tmp_path / "a"), "--no-progress"]
    assert main([*resume, "--train.phase", other]) == 0
    said = capsys.readouterr().err
    assert "resuming with train.phase.2.lr = 0.0001 (0.001 before)" in said
    assert "train.phase.2.updates = 5 (4 before); phases that are finished stay" in said
