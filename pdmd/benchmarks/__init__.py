"""Benchmarks: few-step methods compared at equal budgets."""

from pdmd.benchmarks.base import BenchConfig, Benchmark, read_results, run_benchmark
from pdmd.benchmarks.schemes import SCHEMES, Scheme

__all__ = [
    "SCHEMES",
    "BenchConfig",
    "Benchmark",
    "Scheme",
    "read_results",
    "run_benchmark",
]
