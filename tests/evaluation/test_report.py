"""Reports of runs: the page of a complete and of an unfinished folder."""

import json

import pytest

from pdmd.evaluation.report import write_report

CONFIG = """
[teacher]
name = "mixture"
[train]
updates = 7
share = []
fake_updates = 5
fake_error_tolerance = 0.0
batch_size = 16
"""
PLAN = {
    "phases": [
        {"timesteps": [1.0], "t_end": 0.5, "score_range": [0.5, 1.0], "log_snr": [None, 0.0]},
        {"timesteps": [0.5], "t_end": 0.0, "score_range": [0.0, 1.0], "log_snr": [0.0, None]},
    ]
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return tmp_path


def test_an_unfinished_run_states_what_is_missing(folder):
    page = write_report(folder)
    text = page.read_text()
    assert page == folder / "report.html"
    assert "mixture, distilled into 2 steps" in text
    assert "Not available: the run has not finished." in text
    assert text.count('src="data:image/png;base64,') == 1  # the plan


def test_metrics_are_a_table_with_the_student_highlighted(folder):
    rows = [
        {"method": "teacher", "nfe": 100, "sw2": 0.0421, "klh": 0.01},
        {"method": "student", "nfe": 2, "sw2": 0.0834, "klh": 0.02},
    ]
    metrics = {"rows": rows, "quality": "sw2", "diversity": "klh"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = write_report(folder).read_text()
    assert '<tr class="student"><td>student</td><td>2</td><td>0.083</td>' in text
    assert "<td>teacher</td><td>100</td><td>0.042</td>" in text
    assert text.count('src="data:image/png;base64,') == 2  # the plan and the trade-off


def test_damaged_files_raise(folder):
    (folder / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged .*; remove it to leave it out"):
        write_report(folder)
    (folder / "config.toml").write_text("[")
    with pytest.raises(ValueError, match=r"config\.toml is not readable TOML"):
        write_report(folder)
