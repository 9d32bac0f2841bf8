r"""The memory benchmark: private memory of each rank, from loading a teacher to its export.

A teacher of the configured size is written to a folder, tensor by tensor. Then gloo ranks load it,
train phase 1 with a checkpoint, train phase 2, stop, resume from the checkpoint, finish, and save,
evaluate and export the student. In each stage the private memory of a rank, above that after its
imports, is bounded by

.. math:: \frac{K}{R} + 2 U + 300\,\text{MiB},

where :math:`K` is all that is kept (weights, gradients, moments and averages of every role, and
the finished experts), :math:`R` the number of ranks and :math:`U` one unit in float32: the largest
block of the network, or what is outside of the blocks.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pdmd.benchmarks.base import Benchmark
from pdmd.benchmarks.rank_walk import ADAPTER, Walk, load_teacher, walk_rank, write_teacher
from pdmd.distillation.low_rank import layers_of
from pdmd.distributed.plans import units_of

__all__ = ["MemoryBenchmark", "measure_ranks"]

MILLIONS = 500
SLACK = 300 << 20
STAGES = (
    ("load", "the teacher and the networks of phase 1"),
    ("phase 1", "training, and a checkpoint"),
    ("phase 2", "building its networks, training, and a checkpoint"),
    ("resume", "loading the checkpoint in phase 2, and training to the end"),
    ("save", "the student's folder"),
    ("evaluate", "samples of teacher and student"),
    ("export", "the student's pipeline"),
)


class MemoryBenchmark(Benchmark):
    """Measures the private memory of ranks against the bound; methods are modes and ranks."""

    methods = ("full_2", "lora_2", "full_4", "lora_4")
    exclusive = True

    def descriptions(self) -> dict[str, str]:
        return {
            name: f"{'Adapters' if 'lora' in name else 'Full weights'} on {name[-1]} gloo ranks."
            for name in self.methods
        }

    def prepare(self, progress: bool, methods: Sequence[str] = ()) -> None:
        write_teacher(self.folder / "teacher", self.config.millions or MILLIONS)

    def run(self, method: str, seed: int) -> tuple[list[dict[str, Any]], str | None]:
        mode, ranks = method.split("_")
        peaks, bounds = measure_ranks(
            self.folder / "teacher", int(ranks), adapted=mode == "lora", seed=seed
        )
        return [
            {
                "method": f"{method} {stage.replace(' ', '_')}",
                "nfe": 0,
                "peak_mib": round(max(one[stage] for one in peaks) / 2**20, 1),
                **{f"{key}_mib": round(value / 2**20, 1) for key, value in bounds[stage].items()},
            }
            for stage, _ in STAGES
        ], None


def measure_ranks(
    folder: Path, ranks: int, *, adapted: bool, seed: int = 0, slack: int = SLACK
) -> tuple[list[dict[str, int]], dict[str, dict[str, float]]]:
    """Walks through a distillation on gloo ranks, and measures each stage.

    Args:
        folder: The teacher's folder, written by :func:`~pdmd.benchmarks.rank_walk.write_teacher`.
        ranks: The number of ranks.
        adapted: Whether experts and fake scores are adapters.
        seed: The seed.
        slack: Bytes that the bound allows besides what is kept and two units.

    Returns:
        The peak of each stage in bytes, by its name, of every rank; and of every stage
        what is ``kept`` by all ranks, the ``unit`` and the ``bound``, in bytes.

    Raises:
        RuntimeError: If a rank fails.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        walk = Walk(str(folder), work, adapted, seed)
        context = multiprocessing.get_context("spawn")
        with _environment():
            processes = [
                context.Process(target=walk_rank, args=(walk, rank, ranks))
                for rank in range(ranks)
            ]
            for process in processes:
                process.start()
        _join(processes)
        peaks = [
            json.loads((Path(work) / f"peaks_{rank}.json").read_text()) for rank in range(ranks)
        ]
    return peaks, _bounds(folder, ranks, adapted, slack)


def _join(processes: Sequence[Any]) -> None:
    """Waits for ranks; ends the others if one fails."""
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        for sentinel in multiprocessing.connection.wait(list(waiting)):
            process = waiting.pop(sentinel)  # type: ignore[arg-type]
            process.join()
            if process.exitcode:
                for other in processes:
                    other.kill()
                raise RuntimeError(
                    f"rank {processes.index(process)} of the memory benchmark failed; see its "
                    "output"
                )


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Makes glibc return freed memory at once, so that its caches are not taken for ours."""
    values = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    values |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _bounds(folder: Path, ranks: int, adapted: bool, slack: int) -> dict[str, dict[str, float]]:
    network = load_teacher(str(folder))
    whole = sum(p.numel() for p in network.parameters())
    blocks = [sum(p.numel() for p in unit.parameters()) for _, unit in units_of(network)]
    unit = 4 * max(*blocks, whole - sum(blocks))
    trained = whole
    if adapted:
        linear = layers_of(network).values()
        trained = sum(ADAPTER.rank * (layer.in_features + layer.out_features) for layer in linear)
    teacher, built, busy = 2 * whole, 12 * trained, 36 * trained
    # Built: expert, average and fake score. Busy: their gradients and moments too.
    kept = {
        "load": teacher + built,
        "phase 1": teacher + busy,
        "phase 2": teacher + busy + 4 * trained,
        "resume": teacher + busy + 4 * trained,
        "save": teacher + 8 * trained,
        "evaluate": teacher + 8 * trained,
        "export": teacher + 8 * trained,
    }
    return {
        stage: {
            "kept": float(size),
            "unit": float(unit),
            "bound": size / ranks + 2 * unit + slack,
        }
        for stage, size in kept.items()
    }
