"""The speed benchmark: equal work, closed-form costs, statistics and missing packages."""

import importlib.util
import json

import pytest
import torch

from pdmd.benchmarks import BenchConfig, efficiency, speed, speed_networks
from pdmd.benchmarks.base import read_results, run_benchmark
from pdmd.benchmarks.memory import peak_allocated
from pdmd.benchmarks.speed import SETTINGS, PhasedTraining, SpeedBenchmark, Timings
from pdmd.benchmarks.speed_networks import EvaluationCounter, FlatDigits
from pdmd.benchmarks.speed_peers import PEERS, Task
from pdmd.cli.main import main
from pdmd.training.fused_adam import FusedAdam

HERE = importlib.util.find_spec("modelopt") is not None
PRESENT = [name for name in PEERS if name != "modelopt" or HERE]


@pytest.fixture(autouse=True)
def few_pretraining_updates(monkeypatch):
    monkeypatch.setattr(speed_networks, "PRETRAINING_UPDATES", 2)


def make_task(**changes):
    torch.manual_seed(0)
    teacher, counter = (
        FlatDigits(width=8, depth=1).requires_grad_(False).eval(),
        EvaluationCounter(),
    )
    teacher.mlp.layers.register_forward_hook(counter)
    numbers = dict(guidance=3.0, fake_updates=3, batch=4, lr=1e-3, fake_lr=1e-3, seed=0)
    return Task(teacher=teacher, **{**numbers, **changes}), counter


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    config = BenchConfig(name="speed", updates=2, fake_updates=3, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_networks, "PRETRAINING_UPDATES", 2)
        found, _ = SpeedBenchmark(config, tmp_path_factory.mktemp("speed")).run("mlp", 0)
    return {row["method"].removeprefix("mlp/"): row for row in found}


def test_every_implementation_and_setting_has_a_row(rows):
    assert list(rows) == [*PRESENT, *SETTINGS]
    for row in rows.values():
        assert row["cycles_per_second"] > 0 and row["peak_mib"] > 0
        assert row["speed_low"] <= row["speed"] <= row["speed_high"]
    for reference in ("pdmd", "full_rollout"):
        assert rows[reference]["speed"] == rows[reference]["memory"] == 1
    assert all(set(row) == set(rows["pdmd"]) for row in rows.values())


def test_implementations_have_equal_evaluations(rows):
    # a fake update: a rollout, a score and its backward; the generator's: a rollout with its
    # backward, the fake score, and the teacher twice
    expected = 3 * (1 + 1 + 2) + (1 + 2) + 1 + 2
    assert {name: rows[name]["evaluations"] for name in PRESENT} == dict.fromkeys(
        PRESENT, expected
    )


def test_efficiency_settings_have_their_closed_form_cost(rows):
    inputs = (0 + 1 + 2 + 3) / 4  # steps before the phase, on average over phases
    update, score = 3 + 1 + 2, 1 + 2
    expected = {
        "full_rollout": inputs + update + 3 * (4 + score),
        "boundary": 4 * inputs + update + 3 * (1 + score),
        "buffer_reuse": 3 / 4 + update + 3 * score,
        "buffer_reuse_2": 3 / 4 + update + 2 * score,
    }
    for name, evaluations in expected.items():
        assert rows[name]["evaluations"] == evaluations, name
    adaptive = rows["buffer_reuse_adaptive"]
    assert 1 <= adaptive["fake_updates"] <= 3
    updates = adaptive["fake_updates"]
    assert adaptive["evaluations"] == pytest.approx(3 / 4 + update + updates * score, abs=2e-3)


@pytest.mark.parametrize("name", PRESENT)
def test_implementations_train(name):
    task, counter = make_task()
    networks = []
    optimizer = FusedAdam if name == "pdmd" else torch.optim.AdamW
    step = optimizer.step

    def watched(self, *args, **kwargs):
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        out = step(self, *args, **kwargs)
        after = [p for group in self.param_groups for p in group["params"]]
        networks.append(
            (id(self), any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        )
        return out

    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "step", watched)
        PEERS[name](task)()
    fake, generator = networks[0][0], networks[-1][0]
    assert [owner for owner, _ in networks] == [fake] * 3 + [generator] and fake != generator
    assert all(moved for _, moved in networks)
    assert all(torch.equal(before[k], v) for k, v in task.teacher.state_dict().items())


def test_modelopt_has_the_same_loss():
    """Its loss at our networks equals our formula."""
    pytest.importorskip("modelopt")
    task, _ = make_task(fake_updates=1)
    import modelopt.torch.fastgen as fastgen

    seen = {}
    real = {n: getattr(fastgen.DMDPipeline, n) for n in ("compute_student_loss", "_call_model")}

    def student(self, latents, noise, condition, **more):
        torch.manual_seed(5)
        out = real["compute_student_loss"](self, latents, noise, condition, **more)
        seen.update(noise=noise, condition=condition, loss=float(out["total"].detach()))
        seen["weights"] = {k: v.clone() for k, v in self.student.state_dict().items()}
        seen["fake"] = self.fake_score
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastgen.DMDPipeline, "compute_student_loss", student)
        PEERS["modelopt"](task)()
    torch.manual_seed(5)
    t = torch.rand(4) * 0.96 + 0.02
    eps = torch.randn(seen["noise"].shape)
    generator = task.teacher.trainable_copy()
    generator.load_state_dict(seen["weights"])
    high, label = torch.full((4,), 0.98), seen["condition"]
    with torch.no_grad():
        x = 0.98 * seen["noise"]
        x = x - 0.98 * generator.network(x, high, label)
        column = t.reshape(-1, 1, 1, 1)
        x_t = (1 - column) * x + column * eps
        null = task.teacher.encode([None] * 4)
        given, without = (task.teacher.network(x_t, t, c) for c in (label, null))
        clean = x_t - column * (without + task.guidance * (given - without))
        fake = x_t - column * seen["fake"].network(x_t, t, label)
        weight = (x - clean).abs().flatten(1).mean(1).reshape(-1, 1, 1, 1) + 1e-6
        expected = 0.5 * ((fake - clean) / weight).square().mean()
    assert seen["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_phased_training_advances_its_buffer():
    task, _ = make_task()
    training = PhasedTraining(task, SETTINGS["buffer_reuse"], 4)
    for index in range(4):
        trainer = training.advance()
        assert trainer.phase.index == index and len(training.finished) == index
        for _ in range(4):
            trainer.cycle()
        frozen = trainer.session.account.forward["frozen"] / task.batch
        assert frozen == (4 if index else 0)  # one step of one expert for each batch


def test_ratios_are_taken_within_rounds():
    turns = {
        "a": Timings([1.0, 10.0, 2.0], [1.0] * 3, [0.0] * 3),
        "b": Timings([0.5, 5.0, 0.5], [1.0] * 3, [0.0] * 3),
    }
    (one, two) = speed._rows(turns, {"a": 2**20, "b": 2**21}, nfe=1)
    assert one["speed"] == 1 and two["cycles_per_second"] == 2
    assert (two["speed_low"], two["speed"], two["speed_high"]) == (2, 2, 4)
    assert (two["peak_mib"], two["memory"]) == (2, 2)


def test_runs_alternate():
    task, counter = make_task()
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    turns = speed._interleave(sides, task, counter, rounds=5, warm=1, cycles=2)
    rounds = ["".join(order[i : i + 6 : 2]) for i in range(0, 36, 6)]
    assert order[::2] == order[1::2] and set(rounds) == {"abc", "bca", "cab", "cba", "acb", "bac"}
    assert all(len(side.seconds) == 5 for side in turns.values())


@pytest.mark.parametrize("n", [1, 5, 6, 24, 72, 200])
def test_the_confidence_interval_of_a_median_has_its_coverage(n):
    rank = speed._median_rank(n)
    draws = torch.rand(4000, n, generator=torch.Generator().manual_seed(n)).sort(1).values
    missed = float(((draws[:, rank] > 0.5) | (draws[:, n - 1 - rank] < 0.5)).float().mean())
    assert missed < 0.06 if n > 5 else rank == 0
    if n > 5:  # a narrower interval would miss too often
        missed = (draws[:, rank + 1] > 0.5) | (draws[:, n - 2 - rank] < 0.5)
        assert float(missed.float().mean()) > 0.045


def test_peak_memory_excludes_earlier_allocations():
    before = torch.ones(2**20)

    def run():
        x = before + 1
        y = x + 1
        del x
        return y + 1

    assert peak_allocated(run) == pytest.approx(2 * 4 * 2**20, rel=1e-4)


def test_without_modelopt_its_rows_are_left_out_with_one_warning(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "has_modelopt", lambda: False)
    config = BenchConfig(name="speed", updates=1, fake_updates=1, batch_size=2)
    benchmark = SpeedBenchmark(config, tmp_path)
    assert list(benchmark.left_out()) == ["modelopt"]
    found, _ = benchmark.run("mlp", 0)
    assert not [row for row in found if "modelopt" in row["method"]]
    out = tmp_path / "speed.json"
    words = ["bench", "speed", "--methods", "mlp", "--seeds", "0", "--out", str(out)]
    monkeypatch.setattr("pdmd.benchmarks.base._run_task", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _inline(monkeypatch)
        main([*words, "--no-progress"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rows are left out" in line and "pip install 'pdmd[bench]'" in line


def _inline(monkeypatch):
    """Runs benchmarks in this process."""
    from concurrent.futures import Future

    class Inline:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def submit(self, work, *args):
            future = Future()
            future.set_result(work(*args))
            return future

        def shutdown(self, **kwargs):
            return

    monkeypatch.setattr("pdmd.benchmarks.base.ProcessPoolExecutor", Inline)


def test_results_and_table(monkeypatch, tmp_path, capsys):
    _inline(monkeypatch)
    out = tmp_path / "speed.json"
    words = ["bench", "speed", "--methods", "mlp", "--seeds", "0", "--out", str(out)]
    words += ["--updates", "2", "--fake-updates", "1", "--batch-size", "2", "--no-progress"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"mlp/{name} " in printed for name in [*PRESENT, *SETTINGS])
    content = read_results(out)
    assert {row["run"] for row in content["rows"]} == {"mlp"}
    assert set(content["machine"]) == {"processor", "threads", "torch", "device"}
    assert content["machine"]["torch"] == torch.__version__
    assert set(content["left_out"]) == (set() if HERE else {"modelopt"})
    assert "speed low" in out.with_suffix(".html").read_text()
    monkeypatch.setattr("pdmd.benchmarks.base._run_task", lambda *a: pytest.fail("ran again"))
    assert main(words) == 0 and read_results(out) == content
    capsys.readouterr()
    content["machine"]["processor"] = "another"
    out.write_text(json.dumps(content))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "measured elsewhere" in error and "choose another --out" in error


def test_devices_are_checked(tmp_path):
    with pytest.raises(ValueError, match="toy1d runs on cpu, got device 'cuda'"):
        run_benchmark(BenchConfig(name="toy1d", device="cuda"), out=tmp_path / "r.json")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not available here"):
            run_benchmark(BenchConfig(name="speed", device="cuda"), out=tmp_path / "r.json")


def test_the_settings_are_efficiency_settings():
    for name in set(SETTINGS) - {"buffer_reuse_2"}:
        assert SETTINGS[name] is efficiency.EFFICIENCY_SETTINGS[name]
    assert list(SETTINGS)[0] == "full_rollout"
