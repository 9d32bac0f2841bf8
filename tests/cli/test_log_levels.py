"""The option ``--log-level``."""

import logging
import warnings

import pytest

from pdmd.cli.arguments import UsageError
from pdmd.cli.log_levels import take_log_level
from pdmd.cli.main import main


@pytest.fixture(autouse=True)
def levels():
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize(
    "words", [["a", "--log-level", "debug", "b"], ["--log-level=debug", "a", "b"]]
)
def test_the_level_is_taken_wherever_it_stands(words):
    assert take_log_level(words) == ["a", "b"]
    assert logging.getLogger("pdmd").getEffectiveLevel() == logging.DEBUG


def test_without_the_option_nothing_changes():
    level = logging.getLogger().level
    assert take_log_level(["distill", "digits"]) == ["distill", "digits"]
    assert logging.getLogger().level == level


def test_levels_are_checked_and_errors_hide_warnings(caplog, capsys):
    with pytest.raises(UsageError, match="one of debug, info, warning, error, got 'loud'"):
        take_log_level(["--log-level", "loud"])
    assert main(["--version", "--log-level"]) == 2
    take_log_level(["--log-level", "error"])
    warnings.warn("unheard", stacklevel=1)
    assert not caplog.records
    take_log_level(["--log-level", "warning"])
    warnings.warn("shown", stacklevel=1)
    assert "shown" in caplog.text
