"""`pdmd distill --dry-run`."""

from pdmd.cli.config_sections.random_weights import available_memory
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


def test_random_weights_are_said_to_be_so_and_must_fit_into_memory(tmp_path, capsys, monkeypatch):
    words = ["distill", "digits", "--out", str(tmp_path / "run"), "--dry-run", "--teacher.name"]
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    sizes |= {"joint_attention_dim": 16, "height": 32, "width": 32}
    small = [*words, "qwen_image", "--teacher.arguments"]
    small += [str(word) for pair in sizes.items() for word in pair]
    assert main(small) == 0
    assert "notice     the teacher (qwen_image) has random weights" in capsys.readouterr().out
    monkeypatch.setattr("pdmd.cli.config_sections.random_weights.available_memory", lambda: 2e9)
    assert main(small) == 0
    capsys.readouterr()
    large = [*words[:-1], "--student.name", "flux"]
    assert main(large) == 2
    found = capsys.readouterr().err
    assert "11.9 billion random" in found and "--student.arguments folder FOLDER" in found
    assert main([*words, "qwen_image"]) == 2
    found = capsys.readouterr().err
    assert "20.4 billion random weights need 82 GB, and 2 GB of memory are free" in found
    assert "--teacher.arguments folder FOLDER" in found and found.count("\n") == 1


def test_free_memory_is_what_the_system_or_the_container_leaves():
    assert 0 < available_memory() < 2**50
