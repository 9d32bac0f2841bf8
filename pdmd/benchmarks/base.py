"""What benchmarks share: their configuration, the results file, and running in parallel.

A results file is JSON: ``{"rows": [{"method", "seed", metrics..., "nfe", "forwards",
"cpu_seconds", "saved_mib"}], "config", "version"}``. ``nfe`` counts network evaluations a sample;
``forwards`` the training's forward equivalents of one batch (a backward counts two);
``cpu_seconds`` the training's processor time on one thread; ``saved_mib`` the activations that a
generator update keeps for its backward. ``machine`` says what computed, ``left_out`` which methods
could not run there and why. A run that compares several methods has a row for each; ``run`` is its
name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from pdmd.documents import read_json
from pdmd.files import local_path, write_file
from pdmd.registry import Registry

__all__ = ["BenchConfig", "Benchmark", "benchmarks", "machine", "read_results", "run_benchmark"]


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("updates", "fake_updates", "batch_size", "samples"), (0, 10**7)),
    **dict.fromkeys(("dim", "modes", "classes"), (1, 10**5)),
    **dict.fromkeys(("lr", "fake_lr"), (0, 10)),
    "data_seed": (0, 2**62),
}
"""What the numbers of a configuration may be."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What a benchmark is run with; 0 takes the benchmark's own number."""

    name: tyro.conf.SuppressFixed[str]
    """The benchmark."""
    updates: int = 0
    """Generator updates in all; 0 takes the benchmark's."""
    fake_updates: int = 0
    """Fake updates before each of them, for methods that set none; 0 takes the benchmark's."""
    batch_size: int = 0
    """Samples in each update; 0 takes the benchmark's."""
    lr: float = 0.0
    """The generator's learning rate; 0 takes the benchmark's."""
    fake_lr: float = 0.0
    """The fake score's learning rate; 0 takes the benchmark's."""
    samples: int = 0
    """Samples measured; 0 takes the benchmark's."""
    data_seed: int = 7
    """Seed of the data: the mixture's means, the split of the digits."""
    dim: int = 16
    """Dimension of the mixture."""
    modes: int = 8
    """Modes in each of the mixture's classes."""
    classes: int = 8
    """Classes of the mixture."""
    device: str = "cpu"
    """Where speed computes: cpu or cuda."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is from {low:,} to {high:,}, got {value}")


class Benchmark(ABC):
    """Runs a method with a seed and measures what came out.

    Args:
        config: The configuration.
        folder: Where :meth:`prepare` keeps what all runs share.
    """

    methods: Sequence[str]
    alone: bool = False  # whether its runs would disturb each other
    devices: Sequence[str] = ("cpu",)  # the types of device on which it runs

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        if config.device.split(":")[0] not in self.devices:
            raise ValueError(
                f"the benchmark {config.name} runs on {' or '.join(self.devices)}, "
                f"got device {config.device!r}"
            )
        self.config, self.folder = config, folder

    @abstractmethod
    def run(
        self, method: str, seed: int
    ) -> tuple[dict[str, Any] | list[dict[str, Any]], str | None]:
        """Returns a row without its method and seed, and a picture as a data URI or ``None``.

        A run that compares several methods returns a row for each, with its ``method``.
        """

    def about(self) -> dict[str, str]:
        """Returns what the methods are, in a sentence each."""
        return {}

    def left_out(self) -> dict[str, str]:
        """Returns what of the runs cannot be measured here, and in a line why."""
        return {}

    def prepare(self, progress: bool) -> None:
        """Makes what all runs share, once, before they start."""
        return


benchmarks: Registry[type[Benchmark]] = Registry(
    "benchmark",
    {
        "toy1d": "pdmd.benchmarks.toy1d:Toy1d",
        "mixture": "pdmd.benchmarks.distillation:MixtureBenchmark",
        "digits": "pdmd.benchmarks.distillation:DigitsBenchmark",
        "cost": "pdmd.benchmarks.cost:CostBenchmark",
        "overhead": "pdmd.benchmarks.overhead:OverheadBenchmark",
        "speed": "pdmd.benchmarks.speed:SpeedBenchmark",
    },
)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Says what computes: processor, threads of a run, device and version of torch."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    out = {"processor": processor, "threads": 1, "torch": torch.__version__, "device": device}
    if torch.device(device).type == "cuda":
        out["device"] = torch.cuda.get_device_name(device)
    return out


def _work(
    config: BenchConfig, folder: Path, method: str, seed: int
) -> tuple[list[dict[str, Any]], str | None]:
    torch.set_num_threads(1)
    found, picture = benchmarks[config.name](config, folder).run(method, seed)
    if isinstance(found, dict):
        return [{"method": method, "seed": seed, **found}], picture
    rows = [{"method": row["method"], "seed": seed, "run": method, **row} for row in found]
    return rows, picture


def run_benchmark(
    config: BenchConfig,
    *,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = (),
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs methods over seeds and writes the results file after every run.

    Args:
        config: The benchmark and its numbers.
        out: The results file. Rows that it already holds of the same configuration are kept, so a
            run that was stopped goes on.
        seeds: The seeds.
        methods: The methods; all by default.
        workers: Runs at a time, each on one thread; by default one for every core. A benchmark
            of speed runs one at a time.
        progress: Whether to show a progress bar.

    Returns:
        The content of the results file.

    Raises:
        ValueError: If a method or the benchmark is unknown, or the file is of another
            configuration or, for a benchmark of speed, of another machine.
    """
    from tqdm import tqdm

    from pdmd import __version__

    out = local_path(out, "a results file")
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
    folder = out.with_name(out.name + ".shared") / hashlib.sha256(settings).hexdigest()[:12]
    benchmark = benchmarks[config.name](config, folder)
    chosen = list(methods) or list(benchmark.methods)
    for method in chosen:
        if method not in benchmark.methods:
            raise ValueError(
                f"unknown method {method!r} of {config.name}; choose among "
                f"{', '.join(benchmark.methods)}"
            )
    if not seeds or min(seeds) < 0:
        raise ValueError(f"give at least one seed, none negative, got {list(seeds)}")
    content: dict[str, Any] = {
        "rows": [],
        "config": dataclasses.asdict(config),
        "version": __version__,
        "methods": benchmark.about(),
        "machine": machine(config.device),
        "left_out": benchmark.left_out(),
        "samples": {},
    }
    if out.exists():
        old = read_results(out)
        defaults = dataclasses.asdict(BenchConfig(name=config.name))
        old["config"] = {**defaults, **old["config"]}  # of a version with fewer settings
        if old["config"] != content["config"]:
            changed = {
                k: (old["config"].get(k), v)
                for k, v in content["config"].items()
                if old["config"].get(k) != v
            }
            raise ValueError(
                f"{out} holds results of another configuration ({changed}); choose another --out"
            )
        for name in ("machine", "left_out"):
            if benchmark.alone and old.get(name, content[name]) != content[name]:
                raise ValueError(
                    f"{out} was measured elsewhere ({name.replace('_', ' ')}: {old[name]}, here "
                    f"{content[name]}); choose another --out"
                )
        content["rows"], content["samples"] = old["rows"], old.get("samples", {})
    done = {(row.get("run", row["method"]), row["seed"]) for row in content["rows"]}
    tasks = [(m, s) for s in seeds for m in chosen if (m, s) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    if tasks:
        benchmark.prepare(progress)
    order = {m: i for i, m in enumerate(benchmark.methods)}
    workers = 1 if benchmark.alone else workers or os.cpu_count() or 1
    workers = min(workers, max(len(tasks), 1))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_work, config, folder, m, s): (m, s) for m, s in tasks}
        bar = tqdm(total=len(tasks), desc=config.name, disable=not progress, dynamic_ncols=True)
        try:
            for future in as_completed(futures):
                rows, picture = future.result()
                method, seed = futures[future]
                content["rows"] += rows
                content["rows"].sort(
                    key=lambda r: (order.get(r.get("run", r["method"]), 0), r["seed"])
                )
                if picture is not None:
                    content["samples"].setdefault(method, picture)
                _write(out, content)
                bar.update(1)
                bar.set_postfix_str(f"{method}, seed {seed}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            bar.close()
    return content


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a results file.

    Raises:
        ValueError: If it is missing or not a results file.
    """
    try:
        content = read_json(path)
        for row in content["rows"]:
            if not {"method", "seed", "nfe"} <= set(row):
                raise ValueError(f"a row lacks its method, seed or nfe: {row!r:.120}")
            for name, value in row.items():
                if name not in ("method", "run") and not isinstance(value, int | float):
                    raise ValueError(f"{name} of a row is a number, got {value!r:.80}")
            if not isinstance(row["method"], str):
                raise ValueError(f"a method is text, got {row['method']!r:.80}")
        for name in ("config", "samples", "methods"):
            if not isinstance(content.get(name, {}), dict):
                raise ValueError(f"{name} is an object, got {content[name]!r:.80}")
        if not isinstance(content["rows"], list) or not isinstance(content["config"]["name"], str):
            raise ValueError("rows are a list and a benchmark's name text")
        str(content["version"])
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; write it with 'pdmd bench'") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a results file of 'pdmd bench' ({error})") from error
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=1) + "\n")
