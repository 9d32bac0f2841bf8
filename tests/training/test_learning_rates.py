"""Learning rates: their closed forms, and the same course with every optimizer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdmd.training.learning_rates import (
    Constant,
    CosineDecay,
    LinearDecay,
    rate_decays,
    warmup_factor,
)

starts = st.floats(0, 0.95)
finals = st.floats(0, 1)


@pytest.mark.parametrize("kind", [LinearDecay, CosineDecay])
@given(start=starts, final=finals, a=st.floats(0, 1), b=st.floats(0, 1))
def test_a_decay_is_one_until_its_start_and_falls_to_its_final_fraction(kind, start, final, a, b):
    decay = kind(start=start, final=final)
    assert decay(0.0) == decay(start) == 1.0
    assert decay(1.0) == pytest.approx(final, abs=1e-12)
    assert decay(min(a, b)) >= decay(max(a, b)) - 1e-12
    assert decay((1 + start) / 2) == pytest.approx((1 + final) / 2)  # symmetric about the middle


def test_the_cosine_has_its_closed_form():
    decay = CosineDecay()
    for i in range(11):
        assert decay(i / 10) == pytest.approx(math.cos(math.pi * i / 20) ** 2, abs=1e-12)


@given(warmup=st.integers(0, 20))
def test_a_warm_up_rises_by_equal_amounts_to_one_and_stays(warmup):
    factors = [warmup_factor(u, warmup) for u in range(30)]
    assert factors[max(warmup - 1, 0) :] == [1.0] * (30 - max(warmup - 1, 0))
    rising = factors[: warmup or 1]
    assert rising == pytest.approx([(u + 1) / (warmup or 1) for u in range(len(rising))])
    assert factors[0] > 0


@pytest.mark.parametrize("kind", [LinearDecay, CosineDecay])
def test_fractions_out_of_range_raise(kind):
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\), got 1"):
        kind(start=1.0)
    with pytest.raises(ValueError, match=r"final fraction must be in \[0, 1\], got -0.1"):
        kind(final=-0.1)


def test_decays_have_names():
    built = [rate_decays[name]() for name in rate_decays]
    assert built == [Constant(), LinearDecay(), CosineDecay()]
