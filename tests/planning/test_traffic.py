"""Traffic of ring collectives, in closed form."""

import dataclasses

import pytest
from hypothesis import given

from pdmd.planning import Degrees, Precision, traffic_of
from tests.helpers.plans import DEGREES, PHASES, WORK
from tests.helpers.trainings import SMALL


@given(degrees=DEGREES)
def test_traffic_equals_the_closed_form(degrees):
    sent = traffic_of(PHASES[1], WORK, 1, degrees, Precision())
    network, s, tp = PHASES[1].generator, degrees.shards, degrees.tp
    local, root = network.local(tp), network.root.local(tp)
    # teacher 1, fake score 2 + 1, generator 3, frozen expert 3
    forward, backward = 1 + 3 + 3 + 3, 2 + 1
    gathered = forward * local + backward * (local - root)
    assert sent.all_gather == pytest.approx(4 * gathered * (s - 1) / s)
    assert sent.reduce_scatter == pytest.approx(4 * backward * local * (s - 1) / s)
    r = degrees.dp_replicate
    assert sent.all_reduce == pytest.approx(4 * backward * local / s * 2 * (r - 1) / r)
    tokens, width, depth = 16, SMALL["width"], SMALL["depth"]
    stream = 4 * tokens * width * depth * WORK.batch_size / degrees.batches / degrees.cp
    assert sent.cp_all_to_all == pytest.approx(
        (forward + backward) * 4 * stream / tp * (degrees.cp - 1) / degrees.cp
    )
    assert sent.tp_all_reduce == pytest.approx(
        (forward + backward) * 2 * stream * 2 * (tp - 1) / tp
    )


def test_guidance_gathers_a_masked_teacher_twice():
    degrees, network = Degrees(dp_shard=2), PHASES[0].teacher

    def gathered(**changes):
        work = dataclasses.replace(WORK, evaluations=2, **changes)
        return traffic_of(PHASES[0], work, 0, degrees, Precision()).all_gather

    once = 4 * network.local(1) / 2
    assert gathered(masked=True) - gathered() == pytest.approx(once)
