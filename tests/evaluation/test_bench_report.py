"""Reports of benchmarks: summaries, and the numbers on the page."""

import json

import pytest

from pdmd.evaluation.bench_report import summarise, tradeoff_figures, write_bench_report

ROWS = [
    {
        "method": method,
        "seed": seed,
        "sw2": value,
        "klh": 2 * value,
        "nfe": 4,
        "forwards": 1200,
        "cpu_seconds": 2.5,
    }
    for method, values in {"phased": (0.1, 0.3), "vanilla": (0.5, 0.5)}.items()
    for seed, value in enumerate(values)
]


def test_summaries_are_means_and_sample_deviations():
    phased, vanilla = summarise(ROWS)
    assert (phased["method"], phased["n"]) == ("phased", 2)
    assert phased["sw2"] == (pytest.approx(0.2), pytest.approx(0.2 / 2**0.5))
    assert vanilla["sw2"] == (0.5, 0) and vanilla["nfe"] == (4, 0)
    assert summarise(ROWS[:1])[0]["sw2"] == (0.1, 0)


def test_tradeoffs_plot_means_against_both_costs():
    nfe, forwards = tradeoff_figures(summarise(ROWS), ["sw2"]).axes
    assert nfe.containers[0].lines[0].get_xydata().tolist() == [[4, pytest.approx(0.2)]]
    assert forwards.containers[1].lines[0].get_xydata().tolist() == [[1200, 0.5]]


def test_the_page_states_means_deviations_cost_and_options(tmp_path):
    results = {
        "rows": ROWS,
        "config": {"name": "mixture", "dim": 16},
        "version": "1.2.3",
        "methods": {"phased": "Four phases <of> one step."},
    }
    page = write_bench_report(json.loads(json.dumps(results)), tmp_path / "out" / "page.html")
    text = page.read_text()
    assert "<h1>mixture</h1>" in text and "pdmd 1.2.3" in text and "dim = 16" in text
    assert "0.200 <span" in text and "± 0.141" in text and "<td>1,200</td>" in text
    assert "Four phases &lt;of&gt; one step." in text
    assert 'src="http' not in text and 'src="data:image/png;base64,' in text
