"""Accounting: network evaluations are counted exactly."""

import pytest

from pdmd import (
    PhasePlan,
)
from pdmd.distillation.experts import Truncation
from pdmd.planning import Workload, cycle_passes
from pdmd.training.monitoring.accounting import WAYS, Account
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer
from tests.helpers.small_runs import small
from tests.helpers.trainings import SMALL, Images, trainer_of


def test_nfe_is_counted_exactly():
    account = Account()
    plan, batch, updates, fakes = PhasePlan.uniform(3), 16, 6, 2
    small(plan=plan, account=account)
    rollouts = updates * (fakes + 1) * batch
    assert account.forward == {
        "teacher": 3 * updates * batch,
        "fake": 3 * rollouts,  # each fake update, and each of the generator's
        "generator": 3 * rollouts,
        "frozen": (0 + 1 + 2) * rollouts,
    }
    assert account.backward == {
        "teacher": 0,
        "fake": 3 * updates * fakes * batch,
        "generator": 3 * updates * batch,
        "frozen": 0,
    }


class FirstStep(Truncation):
    def __call__(self, phase, generator):
        return 0


@pytest.mark.parametrize("fake_updates_per_rollout", [1, 2, 5])
@pytest.mark.parametrize(
    "buffer", [None, (3, 1, 16), (4, 2, 16), (7, 1, 2), (100, 1, 16), (9, 3, 2)]
)
def test_nfe_with_buffers_and_reused_rollouts_is_the_closed_form(fake_updates_per_rollout, buffer):
    plan, batch, updates = PhasePlan.uniform(4), 4, (6, 2, 5, 3)
    phase_inputs = (
        PhaseInputBuffer(buffer[0], uses=buffer[1], window=buffer[2]) if buffer else None
    )
    teacher, source = Images(**SMALL), None
    for index, cycles in enumerate(updates):
        work = Workload(
            plan=plan,
            truncation=FirstStep(),
            batch_size=batch,
            fake_updates=5,
            fake_updates_per_rollout=fake_updates_per_rollout,
            phase_inputs=phase_inputs,
            updates=updates,
            evaluations=2,
        )
        source = phase_inputs if buffer else FreshPhaseInputs()
        trainer = trainer_of(teacher, work, index, guidance=3.0, phase_inputs=source)
        for _ in range(cycles):
            trainer.cycle()
        trainer.session.account.close()
        expected, counted = cycle_passes(work, index), trainer.session.account.state()
        for way in WAYS:
            planned = {k: n * cycles * batch for k, n in getattr(expected, way).items()}
            assert planned == pytest.approx(counted[way])
        assert sum(expected.frozen) == expected.forward["frozen"]
