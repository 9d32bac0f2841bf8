import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd.evaluation.bench_report import summarise
from pdmd.evaluation.figures import png
from pdmd.evaluation.scheme_figures import (
    AXES,
    BADGE,
    colour_of,
    cost_figure,
    guidance_figure,
    numbers_apart,
    quality_figure,
)

points = st.lists(
    st.tuples(*[st.integers(0, 200).map(float)] * 2), min_size=1, max_size=20, unique=True
)


@given(points)
def test_numbers_do_not_cover_one_another(points):
    places = np.array(points) + numbers_apart(np.array(points))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert (gaps + 1e9 * np.eye(len(points))).min() > 0.7 * BADGE


def test_a_figure_has_a_number_and_a_name_per_scheme_and_the_teachers_values_as_lines():
    rows = [
        {"method": method, "seed": seed, "vendi": 2.0 + i + seed, "feature_distance": 10.0 + i}
        for i, method in enumerate(("teacher", "one_step", "phased_lora"))
        for seed in range(2)
    ]
    figure = quality_figure(summarise(rows), *AXES["glyphs"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["1  teacher", "2  one_step", "3  phased_lora"]
    assert axes.lines[1].get_xdata() == pytest.approx([2.5, 2.5])
    low, high = axes.get_ylim()
    assert low > high and axes.get_yscale() == "log"  # a smaller distance is higher
    assert colour_of("phased_lora") == colour_of("phased") != colour_of("sgts")
    assert png(figure).startswith(b"\x89PNG")


def test_metrics_are_drawn_over_the_cost_of_training_and_the_teacher_as_a_line():
    summaries = [
        summarise(
            [
                {
                    "method": method,
                    "seed": seed,
                    "forwards": 0 if method == "teacher" else cost,
                    "vendi": 2.0 + seed,
                    "feature_distance": 1000.0 / cost + seed,
                }
                for method in ("teacher", "sgts", "phased")
                for seed in range(2)
            ]
        )
        for cost in (2000, 1000)
    ]
    figure = cost_figure(summaries, AXES["fashion"][::-1])
    above, below = figure.axes
    teacher, *curves = above.lines[0], *(c.lines[0] for c in above.containers)
    assert list(teacher.get_ydata()) == [1.0, 1.0]
    assert [list(curve.get_xdata()) for curve in curves] == [[1000, 2000]] * 2  # by cost
    assert list(curves[0].get_ydata()) == pytest.approx([1.5, 1.0])
    low, high = above.get_ylim()
    assert low > high and below.get_ylim()[0] < below.get_ylim()[1]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["phased", "sgts", "teacher"]


def test_metrics_are_drawn_over_guidance_for_schemes_that_were_measured_at_every_scale():
    def row(method, scale):
        values = {"vendi": 2.0 / scale, "feature_distance": 10.0 * scale, "forwards": 0}
        return {"method": method, "seed": 0, **values}

    summaries = {
        scale: summarise([row(method, scale) for method in methods])
        for scale, methods in {
            5.0: ("teacher", "sgts", "phased"),
            1.5: ("teacher", "phased", "vanilla"),
        }.items()
    }
    figure = guidance_figure(summaries, AXES["glyphs"][::-1])
    above, below = figure.axes
    curves = [c.lines[0] for c in above.containers]
    assert [list(curve.get_xdata()) for curve in curves] == [[1.5, 5.0]] * 2
    assert list(curves[0].get_ydata()) == pytest.approx([15.0, 50.0])
    assert list(below.get_xticks()) == [1.5, 5.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["phased", "teacher"]
