"""Optimizer recipes: the learning rate as a function of the update."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import AdamRecipe
from pdmd.training.learning_rates import Constant, CosineDecay, LinearDecay
from pdmd.training.optimizers import RateSchedule

fractions = {"start": st.floats(0, 0.95), "final": st.floats(0, 1)}
recipes = st.builds(
    AdamRecipe,
    lr=st.floats(1e-8, 1),
    warmup=st.integers(0, 60),
    decay=st.one_of(
        st.builds(Constant),
        st.builds(LinearDecay, **fractions),
        st.builds(CosineDecay, **fractions),
    ),
)


@given(recipe=recipes, updates=st.integers(1, 50), data=st.data())
def test_a_schedule_sets_the_rate_of_the_recipe_and_loads(recipe, updates, data):
    optimizers = [recipe.build([torch.nn.Parameter(torch.zeros(1))]) for _ in range(2)]
    schedule = RateSchedule(optimizers, recipe, updates)

    def rates():
        return {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}

    for update in range(updates + 1):
        assert rates() == {recipe.rate(update, updates)}
        schedule.step()
    update = data.draw(st.integers(0, updates))
    schedule.load_state_dict({"last_epoch": update})
    assert rates() == {recipe.rate(update, updates)}
    schedule.step()
    assert rates() == {recipe.rate(update + 1, updates)}


@pytest.mark.parametrize("offload", [False, True], ids=["torch", "streamed"])
def test_warm_up_betas_and_weight_decay_are_those_of_the_recipe(offload):
    """Two updates against the closed form of AdamW, by hand in float64."""
    recipe = AdamRecipe(
        lr=0.1, betas=(0.0, 0.9), weight_decay=0.5, warmup=2, decay=LinearDecay(start=0.0)
    )
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = recipe.build([parameter], offload=offload)
    schedule = RateSchedule([optimizer], recipe, 10)
    value, second = 2.0, 0.0
    for update, gradient in enumerate((3.0, -1.0)):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        schedule.step()
        rate = 0.1 * (0.5, 1.0)[update] * (1 - 0.98 * update / 10)
        second = 0.9 * second + 0.1 * gradient**2
        corrected = (second / (1 - 0.9 ** (update + 1))) ** 0.5
        value = value * (1 - rate * 0.5) - rate * gradient / (corrected + 1e-8)
        assert float(parameter.detach()) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(lr=0), "lr must be positive and finite, got 0"),
        (dict(lr=float("inf")), "lr must be positive and finite, got inf"),
        (dict(betas=(0.9, 1.0)), r"betas must be in \[0, 1\)"),
        (dict(warmup=-1), "warmup must not be negative, got -1"),
        (dict(weight_decay=-1), "weight_decay must not be negative, got -1"),
    ],
)
def test_settings_out_of_range_raise(settings, named):
    with pytest.raises(ValueError, match=named):
        AdamRecipe(**settings)
