"""Monitors on two ranks measure and draw what one process does."""

import json

import pytest

from pdmd import PhasePlan, Session, distill
from pdmd.distributed.runtime import OneProcess
from pdmd.evaluation.validation import ValidationSet, Validator
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.health_records import read_health
from pdmd.training.monitoring.probes import HealthProbe
from pdmd.training.monitoring.recorder import NullRecorder, RunRecorder
from pdmd.training.rollouts import Rollouts
from tests.distributed.ranks import run_ranks
from tests.helpers.trainings import SMALL, Images

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def run(folder, ranks):
    import torch

    torch.manual_seed(0)
    teacher = Images(**SMALL)  # before the runtime, which seeds each rank in its own way
    runtime = OneProcess()
    if ranks > 1:
        from pdmd.distributed.titan import TitanRuntime

        runtime = TitanRuntime(dp_shard=ranks)
    teacher.decode = lambda x: (x + 1) / 2
    chosen = ValidationSet(prompts=[1, 2, 3], condition=teacher.encode([1, 2, 3]), seeds=1)
    distill(
        teacher,
        PhasePlan.uniform(2),
        updates=4,
        fake_scores=FakeScoreTraining(updates=1),
        rollouts=Rollouts(batch_size=4),
        session=Session(
            runtime=runtime,
            recorder=RunRecorder(folder, progress=False) if runtime.main else NullRecorder(),
            monitors=[
                HealthProbe(2, samples=8, steps=4),
                Validator(folder / "validation", chosen, teacher.decode, every=4, steps=4),
            ],
        ),
    )
    runtime.ranks.close()


def measured(folder):
    lines = (folder / "validation" / "metrics.jsonl").read_text().splitlines()
    health = [
        {k: v for k, v in r.values.items() if k != "health/fake_error"}  # bins of a rank's rows
        for r in read_health(folder / "health.jsonl")[0]
    ]
    return health + [json.loads(line) for line in lines]


def test_two_ranks_measure_and_draw_what_one_process_does(tmp_path):
    run(tmp_path / "one", 1)
    run_ranks(run, 2, tmp_path / "two", 2)
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert len(one) == 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    names = sorted(path.name for path in (tmp_path / "one" / "validation").iterdir())
    assert "phase_1_update_000004.png" in names
    assert names == sorted(path.name for path in (tmp_path / "two" / "validation").iterdir())
