"""The evaluation at the end of a run."""

import json

import pytest

from pdmd.cli.run_folders import is_finished, mark_finished
from tests.helpers.tiny_runs import distill


@pytest.mark.parametrize("way", ["never", "large"])
def test_a_run_can_end_without_an_evaluation(tmp_path, monkeypatch, capsys, way):
    folder, words = tmp_path / "run", ["--plan.phases=1", "--train.updates=1"]
    if way == "large":
        monkeypatch.setattr("pdmd.cli.final_evaluation.LARGE", -1)
    else:
        words += ["--evaluate.at-end", "never"]
    monkeypatch.setattr("pdmd.cli.final_evaluation.draw_samples", None)  # would fail if called
    assert distill(folder, *words) == 0
    out, error = capsys.readouterr()
    assert ("no evaluation at the end" in error + out) == (way == "large")
    assert (folder / "report.html").exists() and (folder / "student").is_dir()
    assert not (folder / "metrics.json").exists() and not (folder / "grids").exists()
    assert "report" in out and "sw2" not in out
    assert distill(folder, *words) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_networks_are_sampled_where_they_were_trained(tmp_path, monkeypatch, capsys):
    placed, networks = [], []

    def recorded(self, network, **options):
        placed.append(network)
        return network

    def drawn(student, teacher, **options):
        networks.extend([teacher, *(expert.denoiser for expert in student.experts)])
        assert all(any(network is one for one in placed) for network in networks)
        released.clear()
        raise KeyboardInterrupt

    released = []
    monkeypatch.setattr("pdmd.cli.final_evaluation.draw_samples", drawn)
    with monkeypatch.context() as patch:
        patch.setattr("pdmd.distributed.placement.LocalPlacement.frozen", recorded)
        patch.setattr(
            "pdmd.distributed.placement.LocalPlacement.release",
            lambda self, network: released.append(network),
        )
        assert distill(tmp_path / "run", "--plan.phases=2", "--train.updates=1") == 130
    assert len(networks) == 3
    assert all(any(network is one for one in released) for network in networks)
    capsys.readouterr()


def test_a_run_is_finished_as_it_says_or_where_it_has_metrics(tmp_path):
    assert not is_finished(tmp_path)
    mark_finished(tmp_path, True)  # without a summary
    assert not (tmp_path / "summary.json").exists()
    (tmp_path / "metrics.json").write_text("{}")
    assert is_finished(tmp_path)
    (tmp_path / "summary.json").write_text('{"seconds": 3}')
    assert is_finished(tmp_path)  # of an earlier version
    for finished in (False, True):
        mark_finished(tmp_path, finished)
        assert is_finished(tmp_path) == finished
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary == {"seconds": 3, "finished": finished}
