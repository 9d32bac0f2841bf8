"""Counted network evaluations of a cycle: the numbers in the documentation, in closed form."""

import functools
import re
from pathlib import Path

import pytest

from pdmd.benchmarks import BenchConfig
from pdmd.benchmarks.cost import CYCLES, CostBenchmark
from pdmd.benchmarks.efficiency import EFFICIENCY_SETTINGS
from pdmd.benchmarks.schemes import SCHEMES
from pdmd.planning import Workload, cycle_passes

COST = Path(__file__).parents[2] / "docs" / "cost.md"


@pytest.fixture(scope="module")
def count(tmp_path_factory):
    config = BenchConfig(name="cost", batch_size=4, dim=2, modes=2, classes=2)
    benchmark = CostBenchmark(config, tmp_path_factory.mktemp("cost") / "shared")
    benchmark.prepare(False, benchmark.default_methods)
    assert not benchmark.folder.exists()  # counting pretrains no network
    return functools.cache(lambda method: benchmark.run(method, 0)[0])


TABLE = COST.read_text().split("## By setting")[1].split("```")[0]
DOCUMENTED = re.findall(r"\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TABLE, re.MULTILINE)
SETTINGS = "full_rollout boundary buffer buffer_4 reuse_2 reuse buffer_reuse".split()


@pytest.mark.parametrize(
    ("method", "documented"), [*zip(SETTINGS, DOCUMENTED, strict=True)], ids=SETTINGS
)
def test_the_documented_costs_are_those_that_the_command_counts(count, method, documented):
    assert method in CostBenchmark.default_methods and len(CostBenchmark.default_methods) == 7
    row = count(method)
    assert [float(n) for n in documented] == [row["a_cycle"], row["least"], row["most"]]


@pytest.mark.parametrize(
    ("method", "least", "most", "mean"),
    [
        ("full_rollout_2x2", 41.5, 43.5, 42.5),
        ("boundary", 26, 44, 35),
        ("reuse", 21, 24, 22.5),
        ("reuse_2", 23, 32, 27.5),
        ("buffer", 26, 32, 30.5),
        ("buffer_4", 26, 27.5, 27.125),
        ("buffer_reuse", 21, 22, 21.75),
        ("phased_fast_fake", 10, 11.5, 11.125),
        ("vanilla", 50, 50, 50),
        ("sgts", 35, 35, 35),
        ("one_step", 26, 26, 26),
    ],
)
def test_counted_evaluations_equal_the_closed_form(count, method, least, most, mean):
    row = count(method)
    assert (row["least"], row["most"], row["a_cycle"]) == (least, most, mean)
    if "full_rollout" in method:
        return
    scheme = SCHEMES[method if method in SCHEMES else "phased"]
    efficiency = EFFICIENCY_SETTINGS.get(method, scheme.efficiency)
    plan = scheme.plan()
    work = Workload(
        plan=plan,
        truncation=scheme.truncation,
        batch_size=1,
        fake_updates=efficiency.fake_updates(5).number,
        fake_updates_per_rollout=efficiency.fake_updates_per_rollout,
        phase_inputs=efficiency.phase_inputs(CYCLES * 6),
        updates=CYCLES,
        evaluations=2,
    )
    phases = [cycle_passes(work, index) for index in range(len(plan))]
    totals = [sum(p.forward.values()) + 2 * sum(p.backward.values()) for p in phases]
    assert (min(totals), max(totals)) == pytest.approx((least, most))
    assert sum(totals) / len(totals) == pytest.approx(mean)
    assert row["a_cycle"] == sum(row[role] for role in ("teacher", "fake", "generator", "frozen"))


def test_a_buffer_costs_only_its_filling_beyond_a_first_phase(count):
    for method, own in (("buffer", 26), ("buffer_4", 26), ("buffer_reuse", 21)):
        row = count(method)
        assert row["a_cycle"] - row["frozen"] == own
