"""The planned memory of one of two ranks equals what the runtime's trainer allocates."""

import pytest

from pdmd import LowRank, LowRankRoles, PhasePlan, StochasticTruncation
from pdmd.distillation.initializers import FromTeacher
from pdmd.planning import Degrees, Precision, Workload, measure_roles, memory_of
from tests.distributed.ranks import run_ranks
from tests.helpers.peaks import peak_of_last
from tests.helpers.trainings import Images, trainer_of

pytestmark = pytest.mark.distributed

NETWORK = {"image_size": 16, "patch_size": 2, "width": 128, "depth": 3, "heads": 4}
INITS = {
    "full": FromTeacher(),
    "adapters": LowRankRoles(LowRank(rank=4), LowRank(rank=4)),
    "full fake score": LowRankRoles(LowRank(rank=4)),
}
SHARDED = Degrees(dp_shard=2)
MODES = {
    "full": ("full", SHARDED, "none"),
    "adapters": ("adapters", SHARDED, "none"),
    "full fake score": ("full fake score", SHARDED, "none"),
    "full, activation checkpointing": ("full", SHARDED, "full"),
    "adapters, activation checkpointing": ("adapters", SHARDED, "full"),
    "tp": ("full", Degrees(tp=2), "none"),
    "cp": ("full", Degrees(cp=2), "none"),
}
FAST = ("full fake score", "tp", "cp")


def work_of(again):
    return Workload(
        plan=PhasePlan.uniform(2),
        truncation=StochasticTruncation(),
        batch_size=16,
        fake_updates=1,
        evaluations=2,
        activation_checkpointing=again == "full",
    )


def peaks(modes):
    """Returns the peak bytes of this rank in its second cycle, by mode."""
    return {name: _peak(*MODES[name]) for name in modes}


def _peak(init, degrees, again):
    from pdmd.distributed.titan import TitanRuntime

    def first():
        runtime = TitanRuntime(
            dp_replicate=degrees.dp_replicate,
            dp_shard=degrees.dp_shard,
            cp=degrees.cp,
            tp=degrees.tp,
            activation_checkpointing=again,
        )
        settings = {"guidance": 2.0, "init": INITS[init], "runtime": runtime}
        trainer = trainer_of(Images(**NETWORK), work_of(again), 1, **settings)
        trainer.cycle()
        return trainer

    def last(trainer):
        trainer.cycle()
        trainer.session.account.close()
        trainer.session.runtime.ranks.watchdog.stop("")

    return peak_of_last(first, last)


def check(modes):
    measured = run_ranks(peaks, 2, modes, timeout=500)
    for name in modes:
        init, degrees, again = MODES[name]
        teacher, work = Images(**NETWORK), work_of(again)
        condition = teacher.encode([1])
        roles = measure_roles(teacher, INITS[init], condition, work, precision=Precision())[1]
        planned = memory_of(roles, work, degrees, Precision()).total
        for rank in measured:
            assert planned == pytest.approx(rank[name], rel=0.1), name


def test_a_rank_allocates_the_planned_memory():
    check(list(FAST))


@pytest.mark.slow
def test_a_rank_allocates_the_planned_memory_in_the_other_modes():
    check([name for name in MODES if name not in FAST])
