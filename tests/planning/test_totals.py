"""Totals of a run: cycles, prompts, hours, and what it writes."""

import pytest

from pdmd.planning import Cluster, Precision, checkpoint_bytes, plan_roles
from pdmd.planning.memory import EIGHT_BIT
from pdmd.training.checkpoints.sizes import CheckpointSize, TrainedSize
from pdmd.training.phase_inputs import PhaseInputBuffer
from tests.helpers.plans import small_run


def test_totals_are_sums_over_the_cycles_of_every_phase():
    roles, work = small_run(updates=(100, 300))
    plan = plan_roles(roles, work, cluster=Cluster(gpus=2), precision=Precision())
    totals, seconds = plan.totals(), plan.best.seconds
    assert totals.cycles == 400
    assert totals.prompts == 400 * work.rollouts(0) * work.batch_size
    flops = [sum(f.values()) for f in plan.flops]
    assert totals.flops == pytest.approx(100 * flops[0] + 300 * flops[1])
    assert totals.seconds == pytest.approx(100 * seconds[0].total + 300 * seconds[1].total)
    assert totals.gpu_hours == pytest.approx(2 * totals.seconds / 3600)


def test_a_checkpoint_has_weights_averages_and_moments_once():
    roles, work = small_run()
    n = roles[1].generator.parameters
    full = checkpoint_bytes(roles[1], work, Precision())
    assert full == (16 + 12) * n  # expert 4 + 4 + 8, fake score 4 + 8
    size = CheckpointSize(
        generator=TrainedSize(parameters=n, average=True),
        fake=TrainedSize(parameters=n),
        finished=(roles[0].generator.parameters,),
    )
    totals = plan_roles(roles, work, cluster=Cluster(), precision=Precision()).totals()
    assert full == size.checkpoint
    assert totals.disk == size.store + totals.student
    small = checkpoint_bytes(roles[1], work, Precision(moment_bytes=EIGHT_BIT))
    assert small == pytest.approx((16 + 12 - 4 * (4 - EIGHT_BIT)) * n)


def test_a_buffer_in_files_is_on_the_disk(tmp_path):
    settings = {"cluster": Cluster(), "precision": Precision()}
    disks = []
    for folder in (None, tmp_path):
        roles, work = small_run(updates=8, phase_inputs=PhaseInputBuffer(24, folder=folder))
        disks.append(plan_roles(roles, work, **settings).totals().disk)
    assert disks[1] - disks[0] == 24 * work.batch_size * roles[0].generator.latents
