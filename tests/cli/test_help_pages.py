"""Help: the common settings, all settings, and their defaults."""

import re

import pytest

from pdmd.cli.config_files import key_paths
from pdmd.cli.help_pages import COMMON, shortened
from pdmd.cli.main import main


def options(page):
    """Returns the options that a help page describes, as key paths."""
    return {
        word.removeprefix("--no-").removeprefix("--").replace("-", "_")
        for word in re.findall(r"^[│ ]*(--[\w.-]+)", page, re.MULTILINE)
    }


@pytest.mark.parametrize("command", ["distill", "plan"])
def test_help_shows_common_settings_and_help_all_the_others(capsys, command):
    assert main([command, "mixture", "--help"]) == 0
    short = capsys.readouterr().out
    assert main([command, "mixture", "--help-all"]) == 0
    page = capsys.readouterr().out
    assert options(short) & {*key_paths()} == {*COMMON}
    assert "teacher.negative_prompt" in options(short)
    named = " ".join(short.split())
    for path in {*key_paths()} - {*COMMON}:
        section, _, key = path.rpartition(".")
        assert re.search(rf"(?<!\S)- {section}: ([\w]+, )*{key}(?=,|$|\s)", named), path
    assert options(page) & {*key_paths()} == {*key_paths()}
    assert f"'pdmd {command} --help-all' shows all" in " ".join(short.split())
    assert page.count("(default:") >= len(key_paths())


def test_every_default_is_that_of_the_chosen_configuration(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("[train]\nupdates = 7\n[plan]\nphases = 3\nsteps = [1, 2, 1]\n")
    assert main(["distill", str(path), "--help"]) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("(default: 7)", "(default: 3)", "(default: 1 2 1)", "(default: runs/own)"):
        assert text in page


def test_a_shortened_configuration_keeps_its_values():
    from pdmd.cli.config_files import load_config

    config = load_config("glyphs")
    page = shortened(config)
    assert all(
        getattr(page, section) == getattr(config, section) or section in ("teacher", "plan")
        for section in ("network", "out", "teacher", "plan")
    )
    assert vars(page.train) == vars(config.train) and vars(page.plan) == vars(config.plan)
