"""Reports: of files that someone else wrote, that were damaged, and of prompts with any text."""

import copy
import json
import random

import pytest
import torch
from matplotlib.text import Text

from pdmd.benchmarks.base import read_results
from pdmd.cli.config_files import load_config, write_config
from pdmd.cli.main import main
from pdmd.cli.run_folders import write_plan
from pdmd.evaluation.bench_report import tradeoff_figures, write_bench_report
from pdmd.evaluation.figures import (
    data_uri,
    image_grid,
    is_picture,
    loss_figure,
    png,
    prompt_rows,
    side_by_side,
    tradeoff_figure,
    vector_scatter,
)
from pdmd.evaluation.report import write_report

HOSTILE = [
    "a rapper with a $$ chain",
    "$",
    "$x_0$ and $\\frac{1}{0}$",
    "$\\undefined{",
    "{\\bf a} \\textbf{b} %s {0} {name}",
    "<script>alert(1)</script> & &amp; \"'",
    "{{ 7 * 7 }} {% raw %}",
    "a\nb\tc\x00d\x1b[31m",
    "\ud800 alone",
    "a \U0001f431 \u202e right to left",
    "",
    "a" * 5000,
    "_^~#\\",
]


def picture():
    return data_uri(image_grid(torch.zeros(1, 1, 2, 2), columns=1))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_texts_in_figures_are_no_markup():
    pictures = torch.rand(len(HOSTILE), 3, 4, 4)
    rows = [{"method": p, "nfe": i + 1, "$q$": 1.0, "d": 2.0} for i, p in enumerate(HOSTILE)]
    summary = [
        {"method": p, "n": 1, "nfe": (2.0, 0.0), "forwards": (9.0, 0.0), "$q$": (1.0, 0.1)}
        for p in HOSTILE
    ]
    history = [
        {"phase": 1, "update": u, "scalars": dict.fromkeys(HOSTILE, float(u))} for u in (1, 2)
    ]
    for figure in (
        prompt_rows({"$$": pictures}, HOSTILE),
        side_by_side({p: pictures[:1] for p in HOSTILE[:4]}, columns=1),
        vector_scatter({p: torch.rand(4, 2) for p in HOSTILE[:4]}),
        loss_figure(history),
        tradeoff_figure(rows, "$q$", "d"),
        tradeoff_figures(summary, ["$q$"]),
    ):
        assert png(figure, 40).startswith(b"\x89PNG")
        texts = [t for t in figure.findobj(Text) if any(c in t.get_text() for c in "$\\_{")]
        assert texts and not any(t.get_parse_math() or t.get_usetex() for t in texts)
    shown = [t.get_text() for t in prompt_rows({"a": pictures}, HOSTILE).findobj(Text)]
    assert HOSTILE[0] in shown and "$" in shown  # as they are


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    summary = [
        {"method": m, "n": 1, "nfe": (n, 0.0), "forwards": (n * 100.0, 0.0), "q": (1.0, 0.1)}
        for m, n in (("a", 1.0), ("b", 1000.0))
    ]
    figure = tradeoff_figures(summary, ["q"])
    png(figure, 40)
    labels = [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]
    assert "100" in labels and not any("$" in label or "\\" in label for label in labels)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "grids").mkdir(parents=True)
    config = load_config("mixture")
    write_config(config, folder / "config.toml")
    from pdmd import RectifiedFlow

    write_plan(folder / "plan.json", config.plan.build(), RectifiedFlow())
    rows = [
        {"phase": p, "update": u, "seconds": 0.1, "scalars": {"loss": 1.0, "x/norm": float(u)}}
        for p in (1, 2)
        for u in (1, 2, 3)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = [
        {"phase": p, "t": [0.2, 0.6], "fake": [1.0, 0.9], "real": [1.1, 1.0]} for p in (1, 2)
    ]
    (folder / "calibration.json").write_text(json.dumps(curves))
    metrics = {
        "rows": [
            {"method": m, "nfe": n, "sw2": 0.1, "coverage": 0.9}
            for m, n in (("teacher", 50), ("student", 4))
        ],
        "quality": "sw2",
        "diversity": "coverage",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    roles = {"student": 10, "fake": 20}
    summary = {
        "teacher": "mixture",
        "guidance": [1.0],
        "generator_objective": "DistributionMatching()",
        "fake_objective": "SubintervalScoreMatching()",
        "parameters": 100,
        "seconds": 1.5,
        "evaluations": {"forward": roles, "backward": roles, "recomputed": roles},
        "prompts": [0, 1],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in ("samples", "phase_1", "phase_2", "phase_10"):
        (folder / "grids" / f"{name}.png").write_bytes(
            png(image_grid(torch.rand(1, 1, 2, 2), columns=1), 40)
        )
    return folder


def test_hostile_prompts_reach_the_page_as_text(run):
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": HOSTILE}))
    page = write_report(run).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "$$" in page and "{{ 7 * 7 }}" in page


JUNK = [None, True, 0, -1, 1e308, "x", [], {}, [[]], {"a": {}}, 10**30, "\ud800", float("nan")]


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items if isinstance(value, dict | list) else ():
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def mutate(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 2)):
        found = list(places(data))
        if not found:
            return data
        *path, last = rng.choice(found)
        place = data
        for key in path:
            place = place[key]
        if rng.random() < 0.7:
            place[last] = copy.deepcopy(rng.choice(JUNK))
        else:
            del place[last]
    return data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plan.json", "summary.json", "metrics.json", "calibration.json"])
def test_damaged_files_of_a_run_end_in_one_line(run, name):
    path, rng, caught = run / name, random.Random(0), 0
    good = path.read_text()
    for i in range(6):
        if i % 3 == 0:
            path.write_text(good[: rng.randrange(1, len(good) - 2)])
        else:
            path.write_text(json.dumps(mutate(json.loads(good), rng)))
        (run / "report.html").unlink(missing_ok=True)
        try:
            write_report(run)
        except ValueError as error:
            caught += 1
            assert "\n" not in str(error) and len(str(error)) < 500
            assert name in str(error) or "config.toml or summary.json" in str(error)
            assert not (run / "report.html").exists()
    assert caught > 0


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("plan.json", "[" * 100_000, "nested deeper"),
        ("plan.json", '{"a":' * 80 + "1" + "}" * 80, "nested deeper"),
        ("metrics.json", "[]", None),
        ("metrics.json", "[1]", "metrics.json is damaged"),
        ("summary.json", "[1]", "summary.json in .* is damaged"),
        ("calibration.json", '{"a": 1}', "calibration.json is damaged"),
        ("config.toml", "a = " + "[" * 5000 + "]" * 5000, "config.toml is not readable TOML"),
        ("config.toml", "x = 1", "unknown key 'x'"),
        ("config.toml", "", "config.toml or summary.json in .* is damaged"),
        ("grids/samples.png", "root:x:0:0", "samples.png is damaged .*not a PNG"),
        ("grids/phase_x.png", "", None),
    ],
)
def test_files_of_another_kind_are_named(run, capsys, name, content, told):
    (run / name).write_text(content)
    code = main(["report", str(run)])
    error = capsys.readouterr().err.strip()
    if told is None:
        assert code == 0
        return
    import re

    assert code == 2 and re.search(told, error) and "\n" not in error, error


def test_a_history_ends_where_it_is_damaged(run):
    from pdmd.training.monitoring.recorder import read_history

    path = run / "history.jsonl"
    lines = path.read_text().splitlines()
    for bad in ("3", "{}", "[]", '{"phase": 1}', '{"phase": "1", "update": 1, "seconds": 0}', "{"):
        path.write_text("\n".join([*lines[:2], bad, *lines[2:]]))
        assert [row["update"] for row in read_history(path)] == [1, 2]
    write_report(run)


def test_phases_are_shown_in_their_order(run):
    page = write_report(run).read_text()
    assert page.count('alt="Phase ') == 3 and "data:image/png" in page


# --- results of benchmarks


@pytest.fixture
def results(tmp_path):
    row = {
        "nfe": 4,
        "forwards": 10.0,
        "cpu_seconds": 1.0,
        "saved_mib": 2.0,
        "sw2": 0.1,
        "klh": 0.2,
    }
    content = {
        "rows": [{"method": m, "seed": s, **row} for m in ("a", "b") for s in (0, 1)],
        "config": {"name": "mixture", "updates": 3},
        "version": "1",
        "methods": {"a": "one", "b": "two"},
        "samples": {"a": picture()},
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/pixel.png",
        "//example.org/pixel.png",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,iVBORw0KGgo" onerror="alert(1)',
        "data:image/png;base64,aGVsbG8=",
        "data:image/png;base64,iVBORw0KGgo\n",
        3,
        None,
    ],
)
def test_only_pictures_in_the_file_itself_are_shown(results, image):
    content = json.loads(results.read_text())
    content["samples"]["b"] = image
    results.write_text(json.dumps(content))
    page = write_bench_report(read_results(results), results.with_suffix(".html")).read_text()
    assert page.count("Samples of") == 1 and is_picture(content["samples"]["a"])
    assert not is_picture(image) and "example.org" not in page and "onerror" not in page
    assert all(part.startswith("data:image/png;base64,") for part in page.split('src="')[1:])


@pytest.mark.filterwarnings("ignore")
def test_damaged_results_end_in_one_line(results, capsys):
    good, rng, caught = results.read_text(), random.Random(0), 0
    for i in range(16):
        if i % 4 == 0:
            results.write_text(good[: rng.randrange(1, len(good) - 2)])
        else:
            results.write_text(json.dumps(mutate(json.loads(good), rng)))
        if main(["report", str(results)]) == 2:
            caught += 1
            error = capsys.readouterr().err.strip()
            assert error.startswith("pdmd: error: ") and "\n" not in error and len(error) < 600
    assert caught > 5


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "mixture", "--out", "s3://bucket/run"],
        ["distill", "mixture", "--out", "memory://run"],
        ["distill", "mixture", "--out", "runs/x", "--train.buffer-folder", "s3://bucket/b"],
        ["plan", "mixture", "--json", "s3://bucket/plan.json"],
        ["sample", "runs/x/student", "--out", "s3://bucket/x.png"],
        ["sample", "runs/x/student", "--out", "gs://bucket/x.safetensors"],
        ["sample", "runs/x/student", "--out", "s3://bucket/folder"],
        ["evaluate", "runs/x/student", "--out", "s3://bucket/x.json"],
        ["export", "runs/x/student", "s3://bucket/x"],
        ["bench", "toy1d", "--out", "s3://bucket/x.json"],
        ["report", "s3://bucket/run"],
        ["pretrain", "digits", "--out", "s3://bucket/x"],
    ],
)
def test_a_url_for_what_is_written_locally_is_rejected_at_once(
    tmp_path, monkeypatch, capsys, words
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert "local" in error and "\n" not in error, error
    assert not list(tmp_path.iterdir())
