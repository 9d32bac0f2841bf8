"""Bars of progress, and lines where there is no terminal."""

import pytest

from pdmd.training.monitoring import bars
from pdmd.training.monitoring.bars import progress_bar


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_written_at_most_every_ten_seconds_and_at_the_end(clock, capsys):
    with progress_bar("evaluate", 10, unit="sample", done=2) as bar:
        for second in range(8):
            clock[0] = 3.0 * second
            bar.update(1)
    assert capsys.readouterr().err.splitlines() == [
        "evaluate  sample 3/10",
        "evaluate  sample 7/10",
        "evaluate  sample 10/10",
    ]


def test_nothing_is_written_where_nothing_is_wanted(clock, capsys):
    with progress_bar("evaluate", 1, unit="sample", shown=False) as bar:
        bar.update(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(bars, "in_terminal", lambda: True)
    with progress_bar("evaluate", 4, unit="sample", done=1) as bar:
        bar.update(2)
    error = capsys.readouterr().err
    assert "\r" in error and "3/4" in error
