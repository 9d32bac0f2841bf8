"""Configuration files: what they accept, and their merging with the command line."""

import copy
import dataclasses
import math
import random
import re
import tomllib

import pytest
import tomli_w
import torch

from pdmd import PhasePlan
from pdmd.cli.config import DistillConfig
from pdmd.cli.config_files import load_config, presets, read_config, write_config
from pdmd.cli.main import main
from pdmd.cli.renamed_keys import RENAMED
from pdmd.cli.runs import Run
from pdmd.training.learning_rates import CosineDecay, LinearDecay
from tests.helpers.tiny_runs import bits

PACKAGED = ("clips", "digits", "fashion", "glyphs", "mixture", "mixture_tuned")
"""The presets of teachers that ship, which are built in a moment."""


def configured(monkeypatch, words):
    """Returns the configuration that a command line gives."""
    seen = []
    monkeypatch.setattr("pdmd.cli.distill._run", lambda config, options: seen.append(config) or 0)
    assert main(["distill", *words]) == 0
    return seen[0]


def test_optimizers_have_their_own_sections_by_role(tmp_path, monkeypatch):
    path = tmp_path / "roles.toml"
    path.write_text(
        """
        [train]
        lr = 2e-6
        fake_lr = 4e-7
        [train.generator]
        betas = [0.0, 0.999]
        warmup = 10
        lr_decay = "cosine"
        [train.fake]
        weight_decay = 0.01
        lr_decay = { name = "linear", start = 0.25 }
        """
    )
    (generator,), (fake,) = configured(monkeypatch, [str(path)]).train.recipes(
        PhasePlan.uniform(1)
    )
    assert (generator.betas, generator.warmup, generator.decay) == ((0, 0.999), 10, CosineDecay())
    assert (generator.lr, fake.lr, fake.weight_decay) == (2e-6, 4e-7, 0.01)
    assert fake.decay == LinearDecay(start=0.25)
    words = [
        str(path),
        "--train.fake.lr-decay.final=0.5",
        "--train.generator.lr_decay.name",
        "linear",
    ]
    (generator,), (fake,) = configured(monkeypatch, words).train.recipes(PhasePlan.uniform(1))
    assert fake.decay == LinearDecay(start=0.25, final=0.5)  # merged
    assert generator.decay == LinearDecay()  # another object


def test_keys_of_tables_merge_with_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "tables.toml"
    path.write_text(
        """
        [objective]
        times = { name = "balanced", times = { name = "shifted", shift = 7.0 } }
        critic = { name = "mlp", width = 32 }
        [[objective.generator]]
        name = "adversarial"
        [[objective.fake]]
        name = "score_matching"
        [[objective.fake]]
        name = "discriminator"
        """
    )
    objective = configured(monkeypatch, [str(path), "--objective.critic.depth", "2"]).objective
    assert objective.critic == {"name": "mlp", "width": 32, "depth": 2}
    assert objective.times["times"] == {"name": "shifted", "shift": 7.0}
    objective = configured(monkeypatch, [str(path), "--objective.times.name", "uniform"]).objective
    assert objective.times == {"name": "uniform"}
    assert main(["distill", str(path), "--objective.critic.depth"]) == 2
    assert "missing the value of --objective.critic.depth" in capsys.readouterr().err


def test_toml_and_the_command_line_give_the_same_run(tmp_path, finished):
    path = tmp_path / "same.toml"
    path.write_text(
        """
        [teacher]
        name = "mixture"
        arguments = { dim = 2, classes = 2, modes = 2 }
        check_score = false
        [network]
        arguments = { width = 64, depth = 3 }
        updates = 5
        [plan]
        phases = 2
        [train]
        updates = 6
        fake_updates = 1
        batch_size = 8
        checkpoint_every = 2
        lr = 5e-4
        fake_lr = 1e-3
        [evaluate]
        samples = 100
        teacher_steps = 3
        """
    )
    folder = tmp_path / "run"
    assert main(["distill", str(path), "--out", str(folder), "--no-progress"]) == 0
    assert torch.equal(bits(folder), bits(finished))
    configs = [load_config(str(f / "config.toml")) for f in (folder, finished)]
    for config in configs:
        config.out = ""
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    "flag", ["--teacher.arguments dim 3 std 0.5", "--teacher.arguments.dim=3"]
)
def test_arguments_are_merged_key_by_key(tmp_path, monkeypatch, flag):
    path = tmp_path / "my.toml"
    path.write_text(
        """
        [teacher]
        name = "mixture"
        [teacher.arguments]
        dim = 2
        modes = 4
        [network.arguments]
        width = 32
        """
    )
    words = [str(path), *flag.split(), "--network.arguments.depth", "1"]
    config = configured(monkeypatch, words)
    expected = {"dim": 3, "modes": 4, **({"std": 0.5} if "std" in flag else {})}
    assert config.teacher.arguments == expected
    assert config.network.arguments == {"width": 32, "depth": 1}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_named_in_a_file_and_on_the_command_line(tmp_path, capsys, old, new):
    section, key = old.split(".")
    path = tmp_path / "old.toml"
    path.write_text(f"[{section}]\n{key} = 1\n")
    for words in ([str(path)], ["digits", f"--{old}", "1"], ["digits", f"--{old}=1"]):
        assert main(["distill", *words]) == 2
        error = capsys.readouterr().err.strip()
        assert error == f"pdmd: error: {old!r} was renamed; use {new!r}"


def test_a_new_key_is_a_key():
    for new in RENAMED.values():
        section, key, *_ = new.split(".")
        assert hasattr(getattr(DistillConfig(), section), key)


@pytest.mark.parametrize("preset", presets())
def test_a_written_configuration_reads_as_itself(tmp_path, preset):
    config = load_config(preset)
    config.objective.generator = (
        {"name": "distribution_matching", "times": {"name": "log_snr", "margin": 0.1}},
        {"name": "repulsion", "weight": 0.5, "phases": [1, 2]},
    )
    write_config(config, tmp_path / "config.toml")
    again = load_config(str(tmp_path / "config.toml"))
    assert again == config
    assert repr(again.objective.build()) == repr(config.objective.build())


JUNK = [
    None,
    True,
    -1,
    0,
    3,
    10**400,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "cat",
    "digits",
    [],
    [1],
    [1, "a"],
    [[1]],
    {},
    {"a": 1},
    {"name": 3},
]


COMPOSED = """
[teacher]
name = "mixture"
[objective]
critic = { name = "mlp", width = 16 }
[[objective.generator]]
name = "f_divergence"
phases = [1, 2]
times = { name = "log_snr", margin = 0.1 }
ratio = { name = "bounded", limit = 5.0, ratio = { name = "critic" } }
[[objective.generator]]
name = "trajectory_regression"
weight = 0.5
distance = { name = "pseudo_huber", c = 0.1 }
[[objective.fake]]
name = "score_matching"
[[objective.fake]]
name = "discriminator"
real_samples = { name = "teacher", pool = 16 }
"""


def mutate(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        place = data
        while True:
            keys = list(place)
            key = rng.choice(keys) if keys else "x"
            inner = place.get(key)
            if isinstance(inner, list | tuple) and inner and isinstance(inner[0], dict):
                inner = rng.choice(inner)
            if isinstance(inner, dict) and inner and rng.random() < 0.8:
                place = inner
                continue
            break
        match rng.randrange(3):
            case 0:
                place[key] = copy.deepcopy(rng.choice(JUNK))
            case 1:
                place.pop(key, None)
            case 2:
                place[key + rng.choice("abc_")] = copy.deepcopy(rng.choice(JUNK))
    return data


def without_none(data):
    if isinstance(data, dict):
        return {k: without_none(v) for k, v in data.items() if v is not None}
    if isinstance(data, list | tuple):
        return [without_none(v) for v in data if v is not None]
    return data


def test_mutated_configurations_never_crash(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pdmd.cli.distill._run", lambda config, options: Run(config) and 0)
    rng, rejected, built = random.Random(0), [], set()
    starts = [tomllib.loads(presets()[name].read_text()) for name in PACKAGED]
    starts += [dataclasses.asdict(load_config(name)) for name in PACKAGED]
    starts.append(tomllib.loads(COMPOSED))
    for _ in range(5000):
        data = mutate(rng.choice(starts), rng)
        try:
            config = read_config(data)
            config.check()
            if repr(config.teacher) not in built:
                config.teacher.build()
                built.add(repr(config.teacher))
        except ValueError as error:
            rejected.append(data)
            assert str(error).strip() and len(str(error)) < 600
    assert len(rejected) > 2500

    for i, data in enumerate(rng.sample(rejected, 150)):
        path = tmp_path / f"{i}.toml"
        path.write_text(tomli_w.dumps(without_none(data)))
        before = sorted(tmp_path.iterdir())
        code = main(["distill", str(path), "--out", str(tmp_path / "run")])
        *shown, error = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
        if code == 0:  # only the None, which TOML has no value for, was invalid
            continue
        assert code == 2 and error.startswith("pdmd: error: "), (shown, error)
        own = [s for s in shown if s.strip() and not re.search("Loading|torch", s)]
        assert not own  # but the bars of a text encoder, and what torchao makes torch say
        assert sorted(tmp_path.iterdir()) == before


def test_only_the_configuration_of_a_run_takes_its_folder_for_out(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[train]\nupdates = 3\n")
    assert load_config(str(path)).out == "runs/config"
    path.write_text('out = "elsewhere"\n')
    assert load_config(str(path)).out == "elsewhere"
    (tmp_path / "plan.json").write_text("{}")
    assert load_config(str(path)).out == str(tmp_path)
    other = path.rename(tmp_path / "other.toml")
    assert load_config(str(other)).out == "elsewhere"
