"""A small run to plan, and the degrees of 16 ranks."""

from hypothesis import strategies as st

from pdmd import PhasePlan, StochasticTruncation
from pdmd.planning import Workload
from pdmd.planning.search import degrees_for
from tests.helpers.trainings import SMALL, Images, roles_of


def small_run(side=8, **changes):
    """Returns the footprints of two phases of images of a side, and their workload."""
    network = Images(**{**SMALL, "image_size": side})
    settings = {"plan": PhasePlan.uniform(2), "truncation": StochasticTruncation()}
    work = Workload(**{**settings, "batch_size": 16, "fake_updates": 2, **changes})
    return [roles_of(network, work, k) for k in range(2)], work


PHASES, WORK = small_run()
DEGREES = st.sampled_from(list(degrees_for(16, batch_size=16, heads=4, tokens=16)))
