"""`pdmd distill --dry-run`."""

from pdmd.cli.main import main


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    words = ["distill", "digits", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--plan.phases=2", "--train.updates=30"]) == 0
    out = capsys.readouterr().out
    assert "phase 2  t 0.5, 0; scores in (0, 1); 30 updates" in out
    assert "teacher    digits: 194,244 parameters" in out and "dry run writes nothing" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_checks_as_the_run_does(tmp_path, capsys):
    words = ["distill", "digits", "--out", str(tmp_path / "run"), "--dry-run"]
    for more, error in (
        (["--lora.rank=4", "--lora.targets", "nothing"], "nothing"),
        (["--objective.generator", '["distribution_matching", "adversarial"]'], "trains them"),
        (["--train.truncation=full", "--train.fake-scores=per_exit_step"], "untrained"),
    ):
        assert main([*words, "--plan.phases=1", "--plan.steps=2", *more]) == 2
        found = capsys.readouterr().err
        assert found.startswith("pdmd: error") and error in found, found


def test_a_dry_run_says_what_the_run_would_say(tmp_path, capsys):
    words = ["distill", "digits", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--objective.fake", '["velocity_regression"]']) == 0
    assert "notice     no term of the fake score's objective" in capsys.readouterr().out
