"""Buckets: one size of samples per batch, the same on all ranks."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import (
    DistributionMatching,
    FakeScoreTraining,
    PhasePlan,
    RectifiedFlow,
    Session,
    Student,
    distill,
    sample,
    trajectory,
)
from pdmd.distillation.buckets import Bucket, Buckets
from pdmd.distillation.experts import OdeExpert, RenoisingExpert
from pdmd.objectives import DiscriminatorLoss, SubintervalScoreMatching
from pdmd.objectives.base import Objective
from pdmd.objectives.critics import Critics
from pdmd.randomness import RankGenerator
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.monitors import Monitor
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputSource
from pdmd.training.rollouts import Rollouts
from tests.helpers.sizes import SIZES, AnySize

PLAN = PhasePlan.uniform(2, steps=2)


@given(shift=st.floats(0.2, 5), own=st.floats(0.2, 5))
def test_a_plan_at_a_size_is_the_plan_of_the_product_of_shifts(shift, own):
    plan = PhasePlan.uniform(2, steps=2, shift=own)
    found = Bucket(latent_shape=(1,), shift=shift).plan(plan)
    expected = PhasePlan.uniform(2, steps=2, shift=own * shift)
    assert found.timesteps == pytest.approx(expected.timesteps)
    for a, b in zip(found, expected, strict=True):
        assert a.score_range == pytest.approx(b.score_range)
    schedule = RectifiedFlow()
    for t, moved in zip(plan.timesteps[1:-1], found.timesteps[1:-1], strict=True):
        change = float(schedule.log_snr(moved)) - float(schedule.log_snr(t))
        assert change == pytest.approx(-2 * float(torch.tensor(shift).log()), abs=1e-5)


def test_sizes_are_drawn_by_their_weights_and_alike_on_all_ranks():
    one, other = (RankGenerator.make(3, rank, 4) for rank in (0, 3))
    drawn = [SIZES.draw(one) for _ in range(2000)]
    assert drawn == [SIZES.draw(other) for _ in range(2000)]
    counts = Counter(bucket.latent_shape for bucket in drawn)
    for bucket in SIZES:
        assert counts[bucket.latent_shape] / 2000 == pytest.approx(
            SIZES.probability(bucket), abs=0.04
        )


def test_a_single_size_draws_nothing():
    generator = RankGenerator.make(0)
    state = generator.get_state()
    assert Buckets.of_shape((2, 4)).draw(generator).latent_shape == (2, 4)
    assert torch.equal(generator.get_state(), state)


def source(rank=0, ranks=1, expert=OdeExpert):
    return PhaseInputSource(
        experts=[expert(AnySize().requires_grad_(False), PLAN[0])],
        conditions=ConditionStream(None),
        buckets=SIZES,
        sigma=1.0,
        batch=4 // ranks,
        device=torch.device("cpu"),
        generator=RankGenerator.make(5, rank, ranks),
        seed=5,
        account=Account(),
    )


def taken(phase_inputs, rank=0, ranks=1, number=8, **settings):
    phase_inputs.on_phase_start(source(rank, ranks, **settings))
    return [phase_inputs.take()[0] for _ in range(number)]


@pytest.mark.parametrize("expert", [OdeExpert, RenoisingExpert])
@pytest.mark.parametrize("inputs", [FreshPhaseInputs, lambda: PhaseInputBuffer(4, uses=2)])
def test_phase_inputs_of_ranks_are_those_of_one_process_in_every_size(inputs, expert):
    whole = taken(inputs(), expert=expert)
    assert len({x.shape for x in whole}) > 1
    for ranks in (2, 4):
        parts = [taken(inputs(), rank, ranks, expert=expert) for rank in range(ranks)]
        for x, *rows in zip(whole, *parts, strict=True):
            torch.testing.assert_close(torch.cat(rows), x)


def test_a_buffer_recomputes_the_same_sizes_after_a_resume():
    whole, first, second = PhaseInputBuffer(4), PhaseInputBuffer(4), PhaseInputBuffer(4)
    batches = taken(whole)
    taken(first, number=3)
    second.restore(first.state())
    again = taken(second, number=5)
    assert all(torch.equal(a, b) for a, b in zip(batches[3:], again, strict=True))


class Watched(Objective):
    """Notes the sizes and times of rollouts; a loss that pulls samples together."""

    name = "watched"

    def __init__(self):
        self.seen = []

    def losses(self, models, rollout, generator):
        self.seen.append((tuple(rollout.x_s.shape[1:]), rollout.phase))
        return {"square": rollout.x_s.square().mean()}


class StopAt(Monitor):
    def __init__(self, checkpointer, update):
        self.checkpointer, self.update = checkpointer, update

    def on_update(self, cycle):
        self.checkpointer.stop_requested = (cycle.phase.number, cycle.update) == (2, self.update)


def trained(folder=None, *, stop=0, resume=False, buckets=SIZES, teacher=None, **objectives):
    session = Session()
    if folder is not None:
        checkpointer = Checkpointer(folder, every=1)
        session = Session(
            checkpointer=checkpointer, resume=resume, monitors=[StopAt(checkpointer, stop)]
        )
    return distill(
        teacher or AnySize(),
        PLAN,
        updates=4,
        generator_objective=objectives.get("expert") or DistributionMatching(),
        fake_objective=objectives.get("fake") or SubintervalScoreMatching(),
        fake_scores=FakeScoreTraining(updates=1),
        rollouts=Rollouts(batch_size=4, buckets=buckets),
        session=session,
        check_score=False,
        progress=False,
    )


def same(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_rollouts_have_the_size_and_the_times_of_their_bucket():
    watched = Watched()
    trained(expert=watched)
    assert len({shape for shape, _ in watched.seen}) == len(SIZES)
    for shape, phase in watched.seen:
        bucket = SIZES.find(shape)
        assert bucket is not None and phase == bucket.phase(PLAN[phase.index])


def test_a_resumed_training_of_several_sizes_has_the_same_bits(tmp_path):
    whole = trained()
    with pytest.raises(Interrupted):
        trained(tmp_path, stop=2)
    assert same(trained(tmp_path, resume=True), whole)
    assert not same(trained(buckets=Buckets.of_shape((2, 4))), whole)


def test_one_bucket_of_the_teachers_size_changes_no_bit():
    assert same(trained(buckets=None), trained(buckets=Buckets.of_shape((2, 4))))


def test_a_student_remembers_its_sizes(tmp_path):
    student = trained()
    student.save(tmp_path / "student")
    here = Student.load(tmp_path / "student", template=AnySize())
    assert here.buckets.describe() == SIZES.describe()
    there = Student.load(tmp_path / "student", template=AnySize((2, 6)))
    other = SIZES.find((2, 6))
    assert other is not None and there.plan == other.plan(student.plan)
    shifts = {b.latent_shape: b.shift for b in there.buckets}
    assert shifts == {(2, 4): pytest.approx(2 / 3), (2, 6): 1.0, (2, 3): pytest.approx(1 / 3)}

    def drawn(of, **settings):
        return sample(of, batch=3, generator=torch.Generator().manual_seed(0), **settings)

    assert torch.equal(drawn(student, latent_shape=(2, 6)), drawn(there))
    assert [x.shape[1:] for x in trajectory(student, batch=1, latent_shape=(2, 3))] == [(2, 3)] * 3


def test_one_size_leaves_the_folder_as_it_was(tmp_path):
    trained(buckets=Buckets.of_shape((2, 4))).save(tmp_path / "student")
    assert "buckets" not in json.loads((tmp_path / "student" / "student.json").read_text())


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ([], "at least one bucket"),
        ([(2, 4), (2, 6), (2, 4)], "two buckets have latents of 2 x 4"),
    ],
)
def test_lists_that_are_no_buckets_are_errors(buckets, message):
    with pytest.raises(ValueError, match=message):
        Buckets([Bucket(latent_shape=shape) for shape in buckets])
    with pytest.raises(ValueError, match="weight of bucket 2 x 4 must be positive"):
        Bucket(latent_shape=(2, 4), weight=0.0)


def test_buckets_that_do_not_fit_are_named_before_any_training():
    def sizes(shape):
        return Buckets([Bucket(latent_shape=(2, 4)), Bucket(latent_shape=shape)])

    with pytest.raises(ValueError, match="bucket 3 x 4 does not fit the teacher"):
        trained(buckets=sizes((3, 4)))
    picky = AnySize(accepts=lambda shape: shape[-1] % 2 == 0)
    with pytest.raises(ValueError, match="cannot be evaluated in bucket 2 x 5 .*divisible by 2"):
        trained(buckets=sizes((2, 5)), teacher=picky)
    critic = DiscriminatorLoss(Critics(lambda models, phase, example: None))
    with pytest.raises(ValueError, match="real samples of one size, and there are 2 buckets"):
        trained(buckets=sizes((2, 6)), fake=critic)
