"""``pdmd recipes``: presets, and the figures that ship with them."""

import json

import pytest

from pdmd.cli.config_files import load_config, presets
from pdmd.cli.main import main
from pdmd.cli.plan import plan_run
from pdmd.cli.recipes import FIGURES, digest_recipe
from pdmd.planning.clusters import Cluster


def shipped():
    return json.loads((next(iter(presets().values())).parent / FIGURES).read_text())


def test_every_preset_is_listed_with_figures_of_its_present_state(capsys):
    assert main(["recipes"]) == 0
    rows = capsys.readouterr().out.splitlines()
    figures = shipped()
    for name, path in presets().items():
        assert figures[name]["digest"] == digest_recipe(path), f"plan {name} again"
        (row,) = [line for line in rows if line.split()[:1] == [name]]
        assert f"{figures[name]['gpus']} x 80 GiB" in row and "-" not in row.split()[3:]


def test_a_changed_preset_has_no_figures(tmp_path, monkeypatch, capsys):
    path = tmp_path / "digits.toml"
    path.write_text(presets()["digits"].read_text().replace("updates = 220", "updates = 221"))
    (tmp_path / FIGURES).write_text(json.dumps(shipped()))
    monkeypatch.setattr("pdmd.cli.config_files.presets", lambda: {"digits": path})
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["-"] * 4
    assert main(["recipes", "--only", "cat"]) == 2
    assert "unknown preset 'cat'" in capsys.readouterr().err


def test_planning_on_the_spot_gives_the_figures_that_ship(tmp_path, capsys):
    out = tmp_path / "plans.json"
    assert main(["recipes", "--plan", "--only", "digits", "--json", str(out)]) == 0
    planned, ships = json.loads(out.read_text())["digits"], shipped()["digits"]
    # A temporary more or less moves the bytes of a tiny model by less than the table shows.
    assert planned.pop("bytes") == pytest.approx(ships.pop("bytes"), rel=1e-3)
    assert planned == pytest.approx(ships)
    capsys.readouterr()


NARROW = {"num_attention_heads": 2, "attention_head_dim": 16, "height": 64, "width": 64}


@pytest.mark.parametrize(
    "name", ["qwen_image_lora", pytest.param("z_image", marks=pytest.mark.slow)]
)
def test_a_listed_model_is_planned_from_shallow_ones_as_from_the_whole(name):
    config = load_config(name)
    config.teacher.arguments |= {**NARROW, "num_layers": 6}
    shallow = plan_run(config, Cluster(gpus=8))
    del config.teacher.arguments["folder"], config.teacher.arguments["embeddings"]
    config.teacher.arguments["text_length"] = 512  # as listed
    whole = plan_run(config, Cluster(gpus=8))
    assert shallow.roles[0].teacher.parameters == whole.roles[0].teacher.parameters
    assert shallow.best.memory.total == pytest.approx(whole.best.memory.total, rel=1e-3)
    assert shallow.totals().flops == pytest.approx(whole.totals().flops, rel=1e-6)
