"""The base of benchmarks: configuration, results file, parallel runs.

A results file is JSON: ``{"rows": [{"method", "seed", metrics..., "nfe", "forwards",
"cpu_seconds", "saved_mib"}], "config", "version"}``. ``nfe`` is the network evaluations per
sample; ``forwards`` the cost of training in forward passes of one batch (a backward counts two);
``cpu_seconds`` the processor time of training on one thread; ``saved_mib`` the activations that a
generator update saves for its backward pass. ``machine`` describes the hardware, ``left_out`` maps
methods that could not run on it to the reason. A run that compares several methods has one row per
method, and ``run`` is its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import platform
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import tyro

from pdmd.documents import read_json
from pdmd.files import local_path, write_file
from pdmd.locks import Lock
from pdmd.registry import Registry

__all__ = ["BenchConfig", "Benchmark", "benchmarks", "machine", "read_results", "run_benchmark"]


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("updates", "fake_updates", "batch_size", "samples"), (0, 10**7)),
    **dict.fromkeys(("dim", "modes", "classes"), (1, 10**5)),
    **dict.fromkeys(("lr", "fake_lr"), (0, 10)),
    "guidance": (0, 100),
    "forwards": (0, 10**9),
    "data_seed": (0, 2**62),
    "millions": (0, 10**6),
}
"""The valid ranges of a configuration's numbers."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Options of a benchmark; 0 selects the benchmark's default."""

    name: tyro.conf.SuppressFixed[tyro.conf.Fixed[str]]
    """The benchmark."""
    updates: int = 0
    """Generator updates over all phases; 0 selects the benchmark's default."""
    fake_updates: int = 0
    """Fake updates per generator update, unless the method sets them; 0 selects the default."""
    batch_size: int = 0
    """Batch size of a rollout; 0 selects the benchmark's default."""
    lr: float = 0.0
    """Learning rate of the generator; 0 selects the benchmark's default."""
    fake_lr: float = 0.0
    """Learning rate of the fake score; 0 selects the benchmark's default."""
    samples: int = 0
    """Samples to evaluate; 0 selects the benchmark's default."""
    data_seed: int = 7
    """Seed of the data: the mixture's means, the split of the digits."""
    dim: int = 16
    """Dimension of the mixture."""
    modes: int = 8
    """Modes in each of the mixture's classes."""
    classes: int = 8
    """Classes of the mixture."""
    guidance: float = 0.0
    """Guidance scale of the teacher of glyphs, fashion or clips; 0 selects the benchmark's."""
    forwards: int = 0
    """Training cost of every method in forward passes of one batch, instead of --updates."""
    millions: int = 0
    """Parameters of the network of the memory benchmark, in millions; 0 selects 500."""
    data: str = ""
    """Folder of the original files of Fashion-MNIST, for the fashion benchmark."""
    device: str = "cpu"
    """Device of the speed benchmark: cpu or cuda."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low:,} to {high:,}, got {value}")


class Benchmark(ABC):
    """Runs methods with seeds and measures their results.

    Args:
        config: The options.
        folder: The folder of files that all runs share, written by :meth:`prepare`.
    """

    methods: Sequence[str]
    default_methods: Sequence[str] = ()  # those that run if none are chosen; all by default
    exclusive: bool = False  # whether parallel runs would distort its timings
    devices: Sequence[str] = ("cpu",)  # the supported device types

    def __init__(self, config: BenchConfig, folder: Path) -> None:
        if config.device.split(":")[0] not in self.devices:
            raise ValueError(
                f"the benchmark {config.name} runs on {' or '.join(self.devices)}, "
                f"got device {config.device!r}"
            )
        self.config, self.folder = config, folder

    @classmethod
    def settings(cls, config: BenchConfig) -> dict[str, Any]:
        """Returns the options as a results file states them: the same for the same results.

        Args:
            config: The options.
        """
        return dataclasses.asdict(config)

    @abstractmethod
    def run(
        self, method: str, seed: int
    ) -> tuple[dict[str, Any] | list[dict[str, Any]], str | None]:
        """Returns a row without method and seed, and a picture as a data URI or ``None``.

        A run that compares several methods returns a list of rows, each with its ``method``.
        """

    def descriptions(self) -> dict[str, str]:
        """Returns a one-sentence description of each method."""
        return {}

    def left_out(self) -> dict[str, str]:
        """Returns the parts of runs that cannot be measured on this machine, with the reason."""
        return {}

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        """Writes the files that the runs of some methods share, or of all, before they start."""
        return


benchmarks: Registry[type[Benchmark]] = Registry(
    "benchmark",
    {
        "toy1d": "pdmd.benchmarks.toy1d:Toy1d",
        "mixture": "pdmd.benchmarks.distillation:MixtureBenchmark",
        "digits": "pdmd.benchmarks.distillation:DigitsBenchmark",
        "glyphs": "pdmd.benchmarks.glyphs:GlyphsBenchmark",
        "fashion": "pdmd.benchmarks.fashion:FashionBenchmark",
        "clips": "pdmd.benchmarks.clips:ClipsBenchmark",
        "cost": "pdmd.benchmarks.cost:CostBenchmark",
        "overhead": "pdmd.benchmarks.overhead:OverheadBenchmark",
        "memory": "pdmd.benchmarks.rank_memory:MemoryBenchmark",
        "speed": "pdmd.benchmarks.speed:SpeedBenchmark",
    },
)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describes the hardware: processor, threads per run, device and torch version."""
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


def _end_with_parent() -> None:
    """Ends a worker when its parent ends, by a signal as well, rather than after its run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_task(
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
        config: The benchmark and its options.
        out: The results file. Its rows with the same configuration are kept, so an interrupted
            run resumes.
        seeds: The seeds.
        methods: The methods; by default the benchmark's own choice, mostly all. ``all`` stands for
            all of them.
        workers: Parallel runs, each on one thread; by default one per core. Benchmarks of speed
            run one at a time.
        progress: Whether to show a progress bar.

    Returns:
        The content of the results file.

    Raises:
        ValueError: If a method or the benchmark is unknown, or the file has another configuration
            or, for a benchmark of speed, is from another machine; or another process writes to it.
    """
    from pdmd import __version__

    out = local_path(out, "a results file")
    kind = benchmarks[config.name]
    settings = kind.settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    benchmark = kind(config, out.with_name(out.name + ".shared") / digest)
    chosen = list(methods) or list(benchmark.default_methods or benchmark.methods)
    chosen = list(benchmark.methods) if "all" in chosen else chosen
    for method in chosen:
        if method not in benchmark.methods:
            raise ValueError(
                f"unknown method {method!r} of {config.name}; choose among "
                f"{', '.join(benchmark.methods)}, or all"
            )
    if not seeds or min(seeds) < 0:
        raise ValueError(f"expected at least one seed, none negative, got {list(seeds)}")
    content: dict[str, Any] = {
        "rows": [],
        "config": settings,
        "version": __version__,
        "methods": benchmark.descriptions(),
        "machine": machine(config.device),
        "left_out": benchmark.left_out(),
        "samples": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(out, out.with_name(f".{out.name}.lock")):
        if out.exists():
            _continue(content, out, benchmark)
        done = {(row.get("run", row["method"]), row["seed"]) for row in content["rows"]}
        tasks = [(m, s) for s in seeds for m in chosen if (m, s) not in done]
        if tasks:
            benchmark.prepare(progress, [m for m in chosen if any(m == task for task, _ in tasks)])
        _run_tasks(tasks, content, out, benchmark, workers=workers, progress=progress)
    return content


def _continue(content: dict[str, Any], out: Path, benchmark: Benchmark) -> None:
    """Adds the rows of a results file to those of a run.

    Raises:
        ValueError: If the file has another configuration, or is from another machine.
    """
    old = read_results(out)
    defaults = dataclasses.asdict(BenchConfig(name=benchmark.config.name))
    old["config"] = {**defaults, **old["config"]}  # older versions have fewer options
    if old["config"] != content["config"]:
        changed = {
            k: (old["config"].get(k), v)
            for k, v in content["config"].items()
            if old["config"].get(k) != v
        }
        raise ValueError(
            f"{out} has results of another configuration ({changed}); choose another --out"
        )
    for name in ("machine", "left_out"):
        if benchmark.exclusive and old.get(name, content[name]) != content[name]:
            raise ValueError(
                f"{out} was measured elsewhere ({name.replace('_', ' ')}: {old[name]}, here "
                f"{content[name]}); choose another --out"
            )
    content["rows"], content["samples"] = old["rows"], old.get("samples", {})


def _run_tasks(
    tasks: Sequence[tuple[str, int]],
    content: dict[str, Any],
    out: Path,
    benchmark: Benchmark,
    *,
    workers: int,
    progress: bool,
) -> None:
    """Runs methods and seeds in parallel, and writes the results file after each."""
    from tqdm import tqdm

    config = benchmark.config
    order = {m: i for i, m in enumerate(benchmark.methods)}
    workers = 1 if benchmark.exclusive else workers or os.cpu_count() or 1
    workers = min(workers, max(len(tasks), 1))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        futures = {
            pool.submit(_run_task, config, benchmark.folder, m, s): (m, s) for m, s in tasks
        }
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
