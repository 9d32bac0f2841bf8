"""Optimizer recipes: the learning rate as a function of progress."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import AdamRecipe
from pdmd.training.optimizers import RateSchedule

recipes = st.builds(
    AdamRecipe,
    lr=st.floats(1e-8, 1),
    decay_from=st.floats(0, 1),
    decay_to=st.floats(0, 1),
)


@given(recipe=recipes, updates=st.integers(1, 50), data=st.data())
def test_a_schedule_sets_the_rate_of_the_recipe_and_loads(recipe, updates, data):
    optimizers = [recipe.build([torch.nn.Parameter(torch.zeros(1))]) for _ in range(2)]
    schedule = RateSchedule(optimizers, recipe, updates)

    def rates():
        return {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}

    for update in range(updates + 1):
        assert rates() == {recipe.rate(update / updates)}
        schedule.step()
    update = data.draw(st.integers(0, updates))
    schedule.load_state_dict({"last_epoch": update})
    assert rates() == {recipe.rate(update / updates)}
    schedule.step()
    assert rates() == {recipe.rate((update + 1) / updates)}


@given(recipe=recipes)
def test_the_rate_is_constant_and_then_decays(recipe):
    rates = [recipe.rate(i / 20) for i in range(21)]
    assert all(rate == recipe.lr for i, rate in enumerate(rates) if i / 20 <= recipe.decay_from)
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    end = 1.0 if recipe.decay_from == 1 else recipe.decay_to
    assert rates[-1] == pytest.approx(end * recipe.lr)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(lr=0), "lr must be positive and finite, got 0"),
        (dict(lr=float("inf")), "lr must be positive and finite, got inf"),
        (dict(betas=(0.9, 1.0)), r"betas must be in \[0, 1\)"),
        (dict(decay_from=1.5), r"decay_from must be in \[0, 1\], got 1.5"),
        (dict(decay_to=-0.1), r"decay_to must be in \[0, 1\], got -0.1"),
        (dict(weight_decay=-1), "weight_decay must not be negative, got -1"),
    ],
)
def test_settings_out_of_range_raise(settings, named):
    with pytest.raises(ValueError, match=named):
        AdamRecipe(**settings)
