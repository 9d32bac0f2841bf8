"""The fashion benchmark: a data folder, shared references, errors at boundaries."""

import json

import pytest

from pdmd.benchmarks import BenchConfig, read_results, run_benchmark
from pdmd.benchmarks.base import Benchmark
from pdmd.benchmarks.fashion import FashionBenchmark
from pdmd.cli.main import main
from tests.helpers.fashion_folders import write_fashion

TINY = dict(name="fashion", updates=4, fake_updates=1, batch_size=2, samples=20)


def test_runs_are_compared_with_the_teacher_and_real_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(FashionBenchmark, "teacher_steps", 2)
    folder = write_fashion(tmp_path / "data", count=140)
    benchmark = FashionBenchmark(BenchConfig(**TINY, data=str(folder)), tmp_path)
    benchmark.prepare(False)
    kept = (tmp_path / "references.safetensors").stat().st_mtime_ns
    row, picture = benchmark.run("phased", 0)
    assert (tmp_path / "references.safetensors").stat().st_mtime_ns == kept
    assert benchmark.teacher().scales == (1.5,) and picture.startswith("data:image")
    assert {"boundary_1", "boundary_3", "forwards"} <= set(row) and "boundary_4" not in row
    assert {"feature_distance_real", "vendi", "accuracy_lowest"} <= set(row)
    assert row["nfe"] == 4


def test_the_results_state_the_pictures_and_not_their_folder(tmp_path, monkeypatch):
    """Runs resume with the same pictures elsewhere, and not with others."""
    monkeypatch.setattr("pdmd.benchmarks.base.ProcessPoolExecutor", Inline)
    monkeypatch.setattr(FashionBenchmark, "run", lambda self, m, s: ({"nfe": 1, "x": 0.5}, None))
    monkeypatch.setattr(FashionBenchmark, "prepare", Benchmark.prepare)
    out = tmp_path / "fashion.json"
    for place, seed in (("a", 0), ("b", 0)):
        data = str(write_fashion(tmp_path / place, seed=seed))
        run_benchmark(
            BenchConfig(**TINY, data=data),
            out=out,
            seeds=(0,),
            methods=("teacher",),
            progress=False,
        )
    content = read_results(out)
    assert len(content["rows"]) == 1 and len(content["config"]["data"]) == 16
    assert str(tmp_path) not in json.dumps(content)
    data = str(write_fashion(tmp_path / "c", seed=1))
    with pytest.raises(ValueError, match="results of another configuration"):
        run_benchmark(BenchConfig(**TINY, data=data), out=out, seeds=(0,), progress=False)


def test_missing_data_and_few_samples_are_errors_before_any_work(tmp_path, capsys):
    out = ["--out", str(tmp_path / "f.json")]
    assert main(["bench", "fashion", *out]) == 2
    assert "--data FOLDER" in capsys.readouterr().err
    folder = str(write_fashion(tmp_path / "data"))
    assert main(["bench", "fashion", *out, "--data", folder, "--samples", "19"]) == 2
    assert "--samples must be at least 20, got 19" in capsys.readouterr().err
    assert not (tmp_path / "f.json").exists()


class Inline:
    """Runs tasks in this process."""

    def __init__(self, *arguments, **named):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **named):
        pass
