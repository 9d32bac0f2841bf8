"""The diagnosis of runs that were made to fail, and of one that was not."""

import json

import pytest

from pdmd.cli.main import main
from pdmd.verification.diagnosis import diagnose_run
from tests.helpers.failing_runs import FAILURES, failing_run


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_made_to_fail_is_named_while_it_trains_and_afterwards(tmp_path, capsys, name):
    failing_run(tmp_path, name)
    live = capsys.readouterr().err
    assert f"pdmd: warning: {name} since phase 1, update" in live
    assert name in [finding.name for finding in diagnose_run(tmp_path).findings]
    assert main(["doctor", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"\n{name}, since phase 1, update " in told and "now     train." in told
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["healthy"] and name in [one["name"] for one in found["findings"]]


def test_a_good_run_is_healthy(tmp_path, capsys):
    failing_run(tmp_path, updates=80, every=8)
    assert capsys.readouterr().err == ""
    assert main(["doctor", str(tmp_path)]) == 0
    assert "nothing went wrong" in capsys.readouterr().out


def run_folder(folder, *, health="", metrics=None, updates=100):
    (folder / "config.toml").write_text("[train]\nlr = 0.1\n")
    row = {"phase": 1, "update": updates, "seconds": 1.0, "scalars": {"generator/x": 1.0}}
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    if health:
        (folder / "health.jsonl").write_text(health)
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps({"rows": metrics}))
    return folder


def warning(update):
    return json.dumps({"phase": 1, "update": update, "warning": "the loss is nan"}) + "\n"


def test_skipped_steps_are_a_finding_where_they_are_many_or_ended_the_run(tmp_path):
    assert not diagnose_run(run_folder(tmp_path, health=warning(3))).findings
    many = diagnose_run(run_folder(tmp_path, health="".join(map(warning, range(5)))))
    last = diagnose_run(run_folder(tmp_path, health=warning(100)))
    for found in (many, last):
        assert [finding.name for finding in found.findings] == ["skipped steps"]
    assert many.settings == {"train.lr": 0.1}
    assert many.state == "unfinished: phase 1, update 100"


def test_metrics_that_are_not_finite_are_a_finding(tmp_path):
    rows = [{"method": "student", "nfe": 4, "sw2": None}]
    found = diagnose_run(run_folder(tmp_path, metrics=rows))
    assert [finding.name for finding in found.findings] == ["broken samples"]


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_run_that_was_not_measured_says_so(tmp_path, capsys):
    assert main(["doctor", str(run_folder(tmp_path))]) == 0
    assert "nothing was measured" in capsys.readouterr().out
