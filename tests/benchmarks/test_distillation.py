"""Benchmarks: schemes, the results file, resuming and errors."""

import json
import os
import subprocess
import sys
import time

import pytest

from pdmd.benchmarks import SCHEMES, BenchConfig, run_benchmark
from pdmd.benchmarks.base import read_results
from pdmd.benchmarks.overhead import OverheadBenchmark
from pdmd.benchmarks.toy1d import WEIGHTINGS
from pdmd.cli.main import main
from pdmd.evaluation.bench_report import summarise
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.mlp import MlpDenoiser
from pdmd.training.monitoring.accounting import Account
from pdmd.training.trainer import PhaseTrainer

TINY = dict(updates=8, fake_updates=1, batch_size=8, samples=96, dim=3, modes=2, classes=3)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Pretrains the shared network for three updates."""
    import pdmd.benchmarks.distillation as module

    real = module.pretrained_network
    monkeypatch.setattr(
        module, "pretrained_network", lambda *a, **k: real(*a, **{**k, "updates": 3})
    )


def test_every_scheme_runs(tmp_path):
    from pdmd.benchmarks.distillation import MixtureBenchmark

    benchmark = MixtureBenchmark(BenchConfig(name="mixture", **TINY), tmp_path / "shared")
    benchmark.prepare(False)
    rows = {m: benchmark.run(m, 0)[0] for m in benchmark.methods}
    for method, row in rows.items():
        assert {"klh", "sw2", "nfe", "forwards", "cpu_seconds", "saved_mib"} <= set(row)
        expected = {"one_step": 1, "one_step_4_fakes": 1, "teacher": 100}.get(method, 4)
        assert row["nfe"] == expected, method
    assert rows["vanilla"]["saved_mib"] > 3.5 * rows["phased"]["saved_mib"]
    assert rows["phased"]["saved_mib"] == rows["one_step"]["saved_mib"] > 0
    # a cycle: one generator and one fake update, with phase input, rollout, scores, backwards
    per_cycle = {"one_step": 1 + 2 + 1 + 1 + (1 + 1 + 2), "vanilla": 4 + 8 + 1 + 1 + (4 + 1 + 2)}
    for method, forwards in per_cycle.items():
        assert rows[method]["forwards"] == 8 * forwards, method


def test_one_fast_fake_update_has_the_rate_of_all_that_it_replaces(tmp_path, monkeypatch):
    import pdmd.benchmarks.distillation as module

    found = []
    monkeypatch.setattr(module, "distill", lambda *a, fake_scores, **k: found.append(fake_scores))
    config = BenchConfig(name="mixture", **{**TINY, "fake_updates": 4, "fake_lr": 1e-3})
    benchmark = module.MixtureBenchmark(config, tmp_path)
    teacher = benchmark.teacher()
    for name in ("phased", "phased_fast_fake"):
        benchmark._train(SCHEMES[name], teacher, 0, 8, 8, Account())
    all_of_them, one = found
    assert [s.updates.number for s in found] == [4, 1]
    assert one.optimizer.lr == 4 * all_of_them.optimizer.lr == 4e-3


def test_the_mixture_follows_the_options(tmp_path):
    from pdmd.benchmarks.distillation import MixtureBenchmark

    teachers = [
        MixtureBenchmark(BenchConfig(name="mixture", **{**TINY, **changes}), tmp_path).teacher()
        for changes in ({}, {"data_seed": 8}, {"dim": 5}, {"modes": 4})
    ]
    assert [tuple(t.means.shape) for t in teachers] == [(6, 3), (6, 3), (6, 5), (12, 3)]
    assert (teachers[0].means != teachers[1].means).all()


def test_results_resume_and_report(tmp_path, capsys):
    out = tmp_path / "toy.json"
    words = ["bench", "toy1d", "--updates", "3", "--batch-size", "8", "--out", str(out)]
    words += ["--no-progress", "--workers", "1", "--methods", "full", "biased"]
    assert main([*words, "--seeds", "0"]) == 0
    first = read_results(out)["rows"]
    assert [r["method"] for r in first] == ["full", "biased"]
    assert main([*words, "--seeds", "0", "1"]) == 0
    both = read_results(out)
    assert [(r["method"], r["seed"]) for r in both["rows"]] == [
        ("full", 0),
        ("full", 1),
        ("biased", 0),
        ("biased", 1),
    ]
    assert first[0] in both["rows"] and both["version"]
    page = out.with_suffix(".html").read_text()
    assert "trajectory rmse" in page and 'src="http' not in page
    assert main(["report", str(out)]) == 0
    capsys.readouterr()
    assert main([*words, "--seeds", "0", "--data-seed", "9"]) == 2
    assert "another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["bench"], "missing the benchmark"),
        (["bench", "cats"], "unknown benchmark 'cats'"),
        (["bench", "mixture", "--methods", "cat"], "unknown method 'cat'"),
        (["bench", "mixture", "--dim", "0"], "dim must be from 1"),
        (["bench", "mixture", "--lr", "nan"], "lr must be from 0"),
        (["bench", "mixture", "--out", "x.txt"], "ends in .json"),
        (["bench", "mixture", "--seeds", "-1"], "none negative"),
        (["report", "nothing.json"], "does not exist"),
    ],
)
def test_invalid_arguments_are_one_line_errors(capsys, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
    assert not any(tmp_path.iterdir())


def test_one_process_at_a_time_writes_a_results_file(tmp_path, monkeypatch):
    out, config = tmp_path / "toy.json", BenchConfig(name="toy1d", updates=2, samples=8)
    settings = {"out": out, "methods": ["full"], "workers": 1, "progress": False}

    def prepare_meanwhile(self, progress, methods=()):
        with pytest.raises(ValueError, match=f"toy.json is in use by process {os.getpid()} "):
            run_benchmark(config, seeds=(1,), **settings)

    with monkeypatch.context() as patch:
        patch.setattr("pdmd.benchmarks.toy1d.Toy1d.prepare", prepare_meanwhile)
        run_benchmark(config, seeds=(0,), **settings)
    assert [row["seed"] for row in run_benchmark(config, seeds=(1,), **settings)["rows"]] == [0, 1]


def test_the_worker_of_a_killed_benchmark_ends(tmp_path):
    """Output ends when the last process that could write to it has ended."""
    out = tmp_path / "toy.json"
    words = ["bench", "toy1d", "--updates", "1000000", "--samples", "8", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pdmd", *words, "--seeds", "0", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not workers_of(process.pid):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert workers_of(process.pid)
    process.kill()
    process.communicate(timeout=60)


def workers_of(pid):
    """Returns the spawned processes that have begun to work: they use the processor."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "cputimes=", "-o", "args=", "--ppid", str(pid)],
        capture_output=True,
        text=True,
    )
    rows = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [args for seconds, args in rows if int(seconds) > 3 and "multiprocessing.spawn" in args]


def test_damaged_results_raise(tmp_path):
    path = tmp_path / "r.json"
    for content in ("{", "[]", json.dumps({"rows": [{}], "config": {"name": "x"}}), "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match="not a results file"):
            read_results(path)


def test_the_documented_methods_are_registered():
    promised = "one_step vanilla vanilla_experts sgts sgts_per_exit_step phased phased_2x2"
    assert set(promised.split()) | {"phased_disjoint"} <= set(SCHEMES)
    assert {"full", "unbiased", "biased"} <= set(WEIGHTINGS)


@pytest.mark.parametrize("method", ["mlp", "transformer_small"])
def test_the_overhead_is_measured_at_equal_work(tmp_path, monkeypatch, method):
    config = BenchConfig(name="overhead", updates=2, fake_updates=3, batch_size=4)
    rows, side = {"pdmd": 0, "bare": 0}, "bare"
    owner = MlpDenoiser if method == "mlp" else DigitsTeacher
    network, cycle = owner.network, PhaseTrainer.cycle

    def counted(self, x, t, condition):
        rows[side] += len(x)
        return network(self, x, t, condition)

    def cycled(self):
        nonlocal side
        side = "pdmd"
        out = cycle(self)
        side = "bare"
        return out

    monkeypatch.setattr(owner, "network", counted)
    monkeypatch.setattr(PhaseTrainer, "cycle", cycled)
    row, _ = OverheadBenchmark(config, tmp_path).run(method, 0)
    # three fake updates of a rollout and a score, one rollout and two scores; four cycles
    assert rows == {"pdmd": 4 * 4 * (3 * 2 + 3), "bare": 4 * 4 * (3 * 2 + 3)}
    assert row["ratio"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


@pytest.mark.slow
def test_the_toy_reproduces_the_paper(tmp_path):
    config = BenchConfig(name="toy1d")
    methods = ("full", "unbiased", "biased")
    results = run_benchmark(config, out=tmp_path / "toy.json", methods=methods, progress=False)
    rmse = {e["method"]: e["trajectory_rmse"][0] for e in summarise(results["rows"])}
    assert rmse["biased"] > 5 * rmse["unbiased"]
    assert rmse["unbiased"] < 2 * rmse["full"]
