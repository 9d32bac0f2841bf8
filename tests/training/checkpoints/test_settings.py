"""Settings: what may differ between a checkpoint and the run that resumes it."""

from hypothesis import given
from hypothesis import strategies as st

from pdmd.training.checkpoints.settings import UNSET, differences, may_change

NAMES = st.text("abc", min_size=1, max_size=3)
SETTINGS = st.recursive(
    st.dictionaries(NAMES, st.integers() | st.none(), max_size=3),
    lambda inner: st.dictionaries(NAMES, inner | st.integers(), max_size=3),
    max_leaves=8,
)


@given(SETTINGS)
def test_settings_do_not_differ_from_themselves(settings):
    assert differences(settings, settings) == {}


@given(SETTINGS, SETTINGS)
def test_differences_swap_with_their_arguments(old, new):
    there, back = differences(old, new), differences(new, old)
    assert there == {key: (then, now) for key, (now, then) in back.items()}
    assert all(then != now for then, now in there.values())


def test_a_difference_is_named_by_its_keys():
    old = {"train": {"lr": 1.0, "ema": 0.9}, "arguments": {}}
    new = {"train": {"lr": 2.0, "ema": 0.9}, "arguments": {"width": 8}}
    found = differences(old, new)
    assert found == {"train.lr": (1.0, 2.0), "arguments.width": (UNSET, 8)}
    assert may_change("train.lr", ["train.l*"]) and not may_change("train.ema", ["train.lr"])


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default():
    old, new = {"train": {"lr": 1.0}}, {"train": {"lr": 1.0, "adam_bits": 32}}
    defaults = {"train": {"lr": 3.0, "adam_bits": 32}, "unused": 1}
    assert differences(old, new) == {"train.adam_bits": (UNSET, 32)}
    assert differences(old, new, defaults) == {}
    new["train"]["adam_bits"] = 8
    assert differences(old, new, defaults) == {"train.adam_bits": (32, 8)}
