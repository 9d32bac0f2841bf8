"""`pdmd plan`: the objective and the loop that are planned."""

import pytest

from pdmd.cli.config_files import load_config
from pdmd.cli.plan import plan_run, timestep_samples
from pdmd.objectives import (
    DistributionMatching,
    FisherDivergence,
    NoiseSensitivity,
    Repulsion,
)


def test_timestep_samples_are_those_of_the_busiest_phase(caplog):
    first = DistributionMatching(timestep_samples=4, name="first").only(1)
    second = DistributionMatching(timestep_samples=2, name="second").only(2, 3)
    assert timestep_samples(first + second, 3) == 4
    assert timestep_samples(first + 0.1 * DistributionMatching() + second, 3) == 5
    assert timestep_samples(DistributionMatching() + Repulsion() + NoiseSensitivity(), 3) == 1
    assert not caplog.records
    assert timestep_samples(DistributionMatching() + FisherDivergence(), 3) == 1
    assert "the network evaluations of fisher_divergence are not planned" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"), [("curriculum", "joint"), ("fake_scores", "per_exit_step")]
)
def test_loops_that_cannot_be_planned_are_named(key, value):
    config = load_config("mixture")
    setattr(config.train, key, value)
    with pytest.raises(ValueError, match=f"train.{key} = '{value}' cannot be planned"):
        plan_run(config)
