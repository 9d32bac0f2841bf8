"""`pdmd`: help, exit codes and errors on one line."""

import pytest
import torch

from pdmd.cli.main import COMMANDS, main
from pdmd.teachers.base import teachers

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["distil"], "distill"),
        (["distill", "digit"], "did you mean 'digits'"),
        (["distill", "digits", "--train.updats", "3"], "train.updats"),
        (["distill", "digits", "--train.updates", "many"], "many"),
        (["distill", "digits", "--train.updates", "0"], "train.updates"),
        (["distill", "digits", "--train.lr", "nan"], "nan"),
        (["distill", "digits", "--plan.timesteps", "0.9", "0"], "0.9"),
        (["distill", "digits", "--plan.timesteps", "1", "0.4", "0.6", "0"], "0.6"),
        (["distill", "digits", "--teacher.name", "cat"], "unknown teacher 'cat'"),
        (["distill", "digits", "--objective.weight", "cat"], "'cat' at objective.generator[1]"),
        (["distill", "digits", "--resume"], "no checkpoint"),
        (["sample", "nowhere"], "no student.json"),
        (["sample"], "missing the student folder"),
        (["distill", ""], "missing a preset or TOML file, got ''"),
        (["verify", ""], "missing a folder"),
        (["report", ""], "missing a run folder"),
        (["completion", ""], "missing the shell"),
        (["evaluate", "nowhere"], "no student.json"),
        (["pretrain", "cats"], "cannot pretrain 'cats'"),
        (["report", "nowhere"], "neither a run folder nor"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and "Traceback" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["teachers", "foo"], "unexpected 'foo'"),
        (["objectives", "foo"], "unexpected 'foo'"),
        (["report", "run", "foo"], "unexpected 'foo'"),
        (["distill", "digits", "foo"], "error: Unrecognized options: foo"),
        (["pretrain", "digits", "--updates", "1", "--out", "taken/x.safetensors"], "taken"),
        (["distill", "mixture", "--teacher.arguments", "dim", "x"], "dim takes an integer"),
        (["distill", "mixture", "--teacher.arguments", "std", "nan"], "is nan"),
    ],
)
def test_words_that_do_not_fit_are_named(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and len(error) < 300


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == main([]) == 0
    page, again = capsys.readouterr().out.split("usage: pdmd COMMAND")[1:]
    assert page == again
    assert [line.split()[0] for line in page.splitlines() if line.startswith("  ")] == [*COMMANDS]
    assert "digits by default" in page and "list the presets" in page


def test_the_version_is_the_packages(capsys):
    import pdmd

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == pdmd.__version__


SHOWN = {
    "distill": [
        "teacher options",
        "--teacher.name STR",
        "(default: mixture)",
        "--teacher.arguments NAME VALUE",
        "(default: width 64 depth 3)",
        "objective options",
        """--objective.generator '[{name = NAME, ...}, ...]'""",
        """(default: '[{name = "distribution_matching"}]')""",
        """(default: '[{name = "score_matching"}]')""",
        """(default: '{name = "features"}')""",
        "--objective.margin FLOAT",
        "(default: 0.02)",
        "train options",
        "--train.curriculum {progressive,joint,shared}",
        "--train.fake-scores {one,per_exit_step}",
        "(default: 200)",
        "parallel options",
        "evaluate options",
        "--resume, --no-resume",
    ],
    "plan": ["--gpus INT", "--memory FLOAT", "(default: 80.0)", "--train.updates"],
    "embed": ["--teacher STR", "--arguments NAME VALUE", "(default: 16)", "data set"],
    "sample": ["--prompts", "(default: samples.png)", "--arguments NAME VALUE"],
    "evaluate": ["--samples INT", "(default: 2000)", "--teacher-steps INT", "(default: 50)"],
    "export": ["--to {diffusers,lora}", "--scheduler {exact,stock}", "(default: 10GB)"],
    "bench": ["--seeds", "(default: 0 1 2)", "--updates INT"],
    "report": ["usage: pdmd report PATH", "report.html"],
    "pretrain": ["--updates INT", "--out STR"],
    "check": ["--guidance", "(default: 1.0)", "--schedule-end {noise,teacher}"],
    "verify": ["usage: pdmd verify", "digests"],
    "doctor": ["usage: pdmd doctor RUN", "--json", "what to change"],
    "teachers": ["--plugins", "Lists the registered teachers."],
    "recipes": ["usage: pdmd recipes", "--only", "--plan"],
    "push": ["--dry-run", "--private", "usage: pdmd push STUDENT USER/NAME"],
    "completion": ["usage: pdmd completion {bash,zsh,fish}"],
    "objectives": ["usage: pdmd objectives", "[[objective.generator]]", "counted from 1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_options_with_their_defaults(capsys, command):
    words = [command, "mixture", "--help-all"] if command == "distill" else [command, "--help"]
    assert main(words) == 0
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"usage: pdmd {command}" in page
    assert [text for text in SHOWN[command] if text not in page] == []


def test_teachers_are_listed_with_what_they_predict(capsys):
    assert main(["teachers"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "parameters", "predicts", "schedule", "latents", "times"]
    table = {row.split()[0]: row for row in rows}
    assert {*teachers} <= table.keys()
    assert "exact" in table["mixture"] and "velocity" in table["mixture"]


def test_objectives_are_listed_with_their_keys(capsys):
    assert main(["objectives"]) == 0
    page = capsys.readouterr().out
    for line in (
        "distribution_matching(weighting, times, loss_name, timestep_samples)",
        "inverse_variance(std, limit)",
        "log_snr(margin)",
        "pseudo_huber(c)",
        "finite_difference_r1(delta)",
        "bounded(ratio, limit)",
    ):
        assert f"  {line}\n" in page


@pytest.mark.parametrize("code", [None, 0, 3, "no licence"])
def test_code_that_exits_is_a_failure(monkeypatch, capsys, code):
    def leave():
        raise SystemExit(code)

    teachers.register("leaving")(leave)
    try:
        assert main(["check", "leaving"]) == 1
    finally:
        teachers.remove("leaving")
    error = capsys.readouterr().err.strip()
    assert error.startswith("pdmd: error: ") and repr(code) in error and "\n" not in error


def test_a_plugin_that_exits_is_a_failure(monkeypatch, tmp_path, capsys):
    (tmp_path / "leaving_plugin.py").write_text("import sys\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["distill", "digits", "--teacher.plugins", "leaving_plugin"]) == 1
    assert "plugin" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY],
)
def test_a_command_that_runs_out_of_memory_says_so_in_one_line(monkeypatch, capsys, error):
    def command(words):
        raise error

    monkeypatch.setattr("pdmd.cli.sample.sample_command", command)
    assert main(["sample", "student"]) == 1
    said = capsys.readouterr().err.strip()
    assert "out of memory" in said and "smaller batches" in said and "\n" not in said


def test_another_error_keeps_its_traceback(monkeypatch):
    def command(words):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("pdmd.cli.sample.sample_command", command)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["sample", "student"])
