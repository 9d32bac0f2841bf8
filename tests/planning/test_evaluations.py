"""The passes of a cycle in closed form equal those that a run counts."""

import pytest

from pdmd import FullGradient, PhasePlan
from pdmd.distillation.experts import Truncation
from pdmd.planning import Workload, cycle_passes
from pdmd.training.monitoring.accounting import WAYS
from tests.helpers.trainings import SMALL, Images, trainer_of


class CyclingExit(Truncation):
    """Cycles through the exit steps, so that averages over them are exact."""

    def __init__(self):
        self.calls = -1  # the closed form calls it once

    def __call__(self, phase, generator):
        self.calls += 1
        return self.calls % phase.steps


@pytest.mark.parametrize(
    ("plan", "truncation", "fake_updates", "accumulate", "guidance", "timestep_samples"),
    [
        (PhasePlan.uniform(4), CyclingExit, 5, 1, 3.0, 1),
        (PhasePlan.uniform(4), CyclingExit, 1, 2, 1.0, 1),
        (PhasePlan.uniform(2, steps=2), CyclingExit, 5, 1, 3.0, 1),
        (PhasePlan.uniform(2, steps=2), CyclingExit, 1, 2, 1.0, 2),
        (PhasePlan.uniform(2, steps=(3, 1)), CyclingExit, 1, 1, 1.0, 1),
        (PhasePlan.uniform(2, steps=2), CyclingExit, (1, 3), 1, 1.0, 1),
        (PhasePlan.uniform(1), CyclingExit, 5, 2, 3.0, 1),
        (PhasePlan.uniform(1, steps=4), FullGradient, 1, 2, 3.0, 1),
        (PhasePlan.uniform(1, steps=4), CyclingExit, 0, 1, 1.0, 1),
    ],
)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_passes_equal_those_that_a_run_counts(
    plan,
    truncation,
    fake_updates,
    accumulate,
    guidance,
    timestep_samples,
    activation_checkpointing,
    monkeypatch,
):
    teacher, cycles, batch = Images(**SMALL), 12, 4
    rows, block = [], type(teacher.net.blocks[0])
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest)
    )
    for index in range(len(plan)):
        rows.clear()
        work = Workload(
            plan=plan,
            truncation=truncation(),
            batch_size=batch,
            fake_updates=fake_updates,
            accumulate=accumulate,
            fake_accumulate=accumulate,
            timestep_samples=timestep_samples,
            evaluations=1 if guidance == 1 else 2,
            activation_checkpointing=activation_checkpointing,
        )
        expected = cycle_passes(work, index)
        trainer = trainer_of(teacher, work, index, guidance=guidance)
        for _ in range(cycles):
            trainer.cycle()
        trainer.session.account.close()
        counted = trainer.session.account.state()
        for way in WAYS:
            planned = {k: n * cycles * batch for k, n in getattr(expected, way).items()}
            assert planned == counted[way]
        ran = [sum(counted[way].values()) for way in ("forward", "recomputed")]
        assert sum(rows) == SMALL["depth"] * sum(ran)
