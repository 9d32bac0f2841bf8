"""Arguments: words of the command line as values."""

import pytest

from pdmd.cli.arguments import UsageError, gather_arguments
from pdmd.cli.config import DistillConfig
from pdmd.cli.main import main
from pdmd.cli.values import inline_toml, plain_value


def test_booleans_on_the_command_line_are_booleans(monkeypatch):
    seen = []
    monkeypatch.setattr("pdmd.cli.distill._run", lambda config, options: seen.append(config) or 0)
    words = ["--teacher.arguments", "flag", "True", "dim", "3", "std", "0.5", "name", "cat"]
    assert main(["distill", "mixture", *words]) == 0
    arguments = seen[0].teacher.arguments
    assert arguments == {"flag": True, "dim": 3, "std": 0.5, "name": "cat"}
    assert [type(v) for v in arguments.values()] == [bool, int, float, str]


@pytest.mark.parametrize(
    ("words", "gathered"),
    [
        ("--a 1 --x.arguments dim 2 --b", "--a 1 --b --x.arguments dim 2"),
        ("--x.arguments.dim 2 --x.arguments.mo-des=-4", "--x.arguments dim 2 mo_des -4"),
        ("--arguments a -1 --arguments.b 2", "--arguments a -1 b 2"),
        ("--y.arguments k v --x.arguments l w", "--y.arguments k v --x.arguments l w"),
        ("--x.argument dim", "--x.argument dim"),
    ],
)
def test_arguments_by_name_are_gathered(words, gathered):
    assert gather_arguments(words.split()) == gathered.split()


def test_an_argument_without_a_value_is_named(capsys):
    with pytest.raises(UsageError, match="missing the value of --x.arguments.dim"):
        gather_arguments(["--x.arguments.dim"])
    assert main(["distill", "mixture", "--teacher.arguments", "dim"]) == 2
    assert "give a value for each name, got 'dim'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("-3", -3), ("1e-3", 1e-3), ("3.0", 3.0), ("3x", "3x")],
)
def test_words_are_plain_values(text, value):
    assert plain_value(text) == value and type(plain_value(text)) is type(value)


def test_inline_toml_reads_as_itself():
    import tomllib

    value = {"a": [1, 2.5, True, 'with "quotes"'], "b": {"c": "ü", "d": []}}
    assert tomllib.loads(f"value = {inline_toml(value)}")["value"] == value


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ('[{name = "repulsion", weight = 0.5}]', ({"name": "repulsion", "weight": 0.5},)),
        ('{name = "repulsion"}', ({"name": "repulsion"},)),
        ('["repulsion"]', ("repulsion",)),
        ("repulsion", ("repulsion",)),
    ],
)
def test_terms_on_the_command_line(monkeypatch, text, terms):
    seen: list[DistillConfig] = []
    monkeypatch.setattr("pdmd.cli.distill._run", lambda config, options: seen.append(config) or 0)
    assert main(["distill", "digits", "--objective.generator", text]) == 0
    assert seen[0].objective.generator == terms


def test_text_that_is_not_toml_is_named(capsys):
    assert main(["distill", "digits", "--objective.generator", "[{name ="]) == 2
    error = capsys.readouterr().err
    assert "--objective.generator" in error and "is not inline TOML" in error


def test_a_value_of_another_type_is_named(capsys):
    assert main(["distill", "digits", "--teacher.guidance", "two"]) == 2
    error = capsys.readouterr().err
    assert "--teacher.guidance: cannot read 'two' as its value" in error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("sample x --samples 3", "unknown option --samples: did you mean --n? 'pdmd sample"),
        ("evaluate x --metric frechet", "unknown option --metric: did you mean --metrics?"),
        ("check digits --plugin m", "did you mean --plugins? 'pdmd check TEACHER --help' lists"),
        ("push x a/b --dryrun", "unknown option --dryrun: did you mean --dry-run?"),
    ],
)
def test_an_unknown_option_of_any_command_is_answered_with_one_that_there_is(words, error, capsys):
    assert main(words.split()) == 2
    found = capsys.readouterr().err
    assert error in found and found.count("\n") == 1
