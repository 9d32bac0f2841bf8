"""Low-rank factors: their ranges, target layers and initial values."""

import pytest
import torch

from pdmd import AdaptedDenoiser, LowRank
from pdmd.distillation.adapters import layers_of
from tests.helpers.adapters import (
    FOUR,
    digits,
    teacher_of,
)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(rank=0), "rank.*got 0"),
        (dict(rank=1.5), "rank.*got 1.5"),
        (dict(rank=True), "rank.*got True"),
        (dict(alpha=0), "alpha.*got 0"),
        (dict(alpha=float("nan")), "alpha.*nan"),
        (dict(targets="to_q"), "'to_q'"),
        (dict(targets=("",)), "targets"),
    ],
)
def test_settings_out_of_range_raise(arguments, named):
    with pytest.raises((TypeError, ValueError), match=named):
        LowRank(**arguments)


def test_targets_match_paths_or_their_last_components():
    teacher = teacher_of("wan_2.1")
    every = set(layers_of(teacher))
    assert every == {
        p for p, m in teacher.named_modules() if isinstance(m, torch.nn.Linear) and ".blocks." in p
    }
    ends = layers_of(teacher, ("to_q", "attn1.to_out.0"))
    assert {p.split("blocks.")[1][2:] for p in ends} == {
        "attn1.to_q",
        "attn2.to_q",
        "attn1.to_out.0",
    }
    first = layers_of(teacher, ("backbone.blocks.0.*",))
    assert first.keys() == {p for p in every if p.startswith("backbone.blocks.0.")}
    assert list(layers_of(teacher, ("proj_out",))) == ["backbone.proj_out"]
    with pytest.raises(ValueError, match="'q_proj' matches no linear layer.*to_q"):
        AdaptedDenoiser(teacher, LowRank(targets=("to_q", "q_proj")), seed=0)


def test_factors_depend_on_the_seed_only():
    teacher = digits()
    state = [AdaptedDenoiser(teacher, FOUR, seed=s).state_dict() for s in (0, 0, 1)]
    torch.rand(3)
    for key, value in state[0].items():
        assert torch.equal(value, state[1][key])
        if key.endswith("lora_A.weight"):
            assert not torch.equal(value, state[2][key])
            bound = value.shape[1] ** -0.5
            assert 0.8 * bound < float(value.abs().max()) <= bound
        else:
            assert not value.any()
