"""Other names of keys: what is proposed for an unknown one."""

import pytest

from pdmd.cli.config_files import key_paths, read_config
from pdmd.cli.main import main
from pdmd.cli.renamed_keys import MEANINGS, proposals
from pdmd.teachers.families.wan import WanTeacher


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("train.learning_rate", ("train.lr",)),
        ("learning_rate", ("train.lr",)),
        ("lr", ("train.lr",)),
        ("train.steps", ("train.updates",)),
        ("plan.num_steps", ("plan.steps",)),
        ("steps", ("train.updates", "plan.steps")),
        ("train.epochs", ("train.updates",)),
        ("gpus", ("parallel.dp_shard",)),
        ("seed", ("train.seed",)),
        ("train.cfg_scale", ("teacher.guidance",)),
        ("train.phases", ("plan.phases",)),  # in another section
        ("train.updats", ("train.updates",)),  # misspelled
        ("teacher.folder", ("teacher.arguments.folder",)),
        ("train.warmup_steps", ("train.generator.warmup",)),
        ("resolution", ("teacher.arguments.height", "teacher.arguments.width")),
        ("prompts", ("teacher.arguments.prompts",)),
        ("wandb", ("tracking.trackers",)),
    ],
)
def test_an_unknown_key_proposes_the_one_that_is_meant(unknown, meant):
    assert proposals(unknown, key_paths()) == meant


def test_every_proposal_is_a_key():
    proposed = {path for paths in MEANINGS.values() for path in paths}
    arguments = {path for path in proposed if path.startswith("teacher.arguments.")}
    assert proposed - arguments <= {*key_paths()}
    taken = {"folder", *WanTeacher.options, *WanTeacher.common}
    assert {path.rpartition(".")[2] for path in arguments} <= taken


def test_files_and_options_propose(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"'train.learning_rate': did you mean 'train.lr'\?"):
        read_config({"train": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match=r"unknown key 'trian': did you mean 'train'\?"):
        read_config({"trian": {"updates": 2}})
    with pytest.raises(ValueError, match=r"'train.generater': did you mean 'train.generator'\?"):
        read_config({"train": {"generater": {"lr": 2}}})
    with pytest.raises(ValueError, match="did you mean 'train.updates' or 'plan.steps'"):
        read_config({"steps": 100})
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "digits", "--batch-size=3"]) == 2
    error = capsys.readouterr().err
    assert "unknown option --batch-size: did you mean --train.batch-size?" in error
    assert main(["plan", "digits", "--learning_rate", "3"]) == 2
    assert "did you mean --train.lr? 'pdmd plan --help-all'" in capsys.readouterr().err
