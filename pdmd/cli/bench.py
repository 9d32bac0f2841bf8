"""The command `pdmd bench`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from pdmd.benchmarks import BenchConfig, run_benchmark
from pdmd.cli.arguments import parse, take_name
from pdmd.extras import require
from pdmd.files import local_path

__all__ = ["bench_command"]


@dataclass(kw_only=True)
class BenchOptions:
    """Compares few-step methods on equal terms and writes a results file.

    toy1d, mixture, digits, glyphs and fashion measure quality, fashion with the pictures of
    Fashion-MNIST, in the folder --data; cost counts network evaluations, of every
    scheme with --methods all; overhead and speed measure time, and need an idle machine; memory
    measures what each of 2 and 4 ranks holds, in a network of --millions parameters. The methods
    of speed are network sizes (mlp, transformer_small, transformer_medium), its updates are those
    timed per library, and other libraries are compared if they are installed: pip install
    'pdmd[bench]'.
    """

    config: BenchConfig = field(default_factory=lambda: BenchConfig(name="toy1d"))
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, for every method."""
    methods: tuple[str, ...] = ()
    """Methods, or all; all by default, but for cost."""
    out: str = ""
    """The results file; runs/bench_NAME.json by default. An unfinished one is resumed."""
    workers: int = 0
    """Parallel runs, each on one thread; 0 for one per core."""
    progress: bool = True
    """Show a progress bar."""


def bench_command(words: list[str]) -> int:
    """Compares methods on equal terms and writes a results file.

    Args:
        words: The words after the command's name.

    Returns:
        The exit code.
    """
    from pdmd.benchmarks.base import benchmarks
    from pdmd.evaluation.bench_report import summarise, write_bench_report
    from pdmd.evaluation.evaluate import format_table

    name, rest = take_name(
        words,
        "the benchmark: toy1d, mixture, digits, glyphs, fashion, cost, overhead, memory or speed",
    )
    default = BenchOptions(config=BenchConfig(name=name))
    options = parse(BenchOptions, rest, "pdmd bench NAME", default, flat=True)
    require("report", "jinja2", "matplotlib")
    config = options.config
    out = local_path(options.out or f"runs/bench_{name}.json", "a results file")
    if out.suffix != ".json":
        raise ValueError(f"--out ends in .json, got {options.out!r}")
    for reason in benchmarks[name](config, out.parent).left_out().values():
        print(f"pdmd: warning: {reason}", file=sys.stderr)
    try:
        results = run_benchmark(
            config,
            out=out,
            seeds=options.seeds,
            methods=options.methods,
            workers=options.workers,
            progress=options.progress,
        )
    except KeyboardInterrupt:
        print(f"pdmd: stopped; finished runs are in {out}; run again to resume", file=sys.stderr)
        return 130
    summary = summarise(results["rows"])
    names = dict.fromkeys(k for entry in summary for k in entry if not k.startswith("held_out_"))
    rows = [{k: _mean(entry.get(k)) for k in names} for entry in summary]
    print(format_table(rows))
    print(f"results  {out}")
    print(f"report   {write_bench_report(results, out.with_suffix('.html'))}")
    return 0


def _mean(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
