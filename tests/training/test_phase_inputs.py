import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import FromDenoiser, MixtureTeacher, MlpDenoiser, PhasePlan
from pdmd.distillation.experts import OdeExpert, RenoisingExpert
from pdmd.planning import Work, calls
from pdmd.randomness import RankGenerator
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.accounting import WAYS, Account
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputSource
from pdmd.typing import labels_of
from tests.distillation.test_distill import StopAt, weights
from tests.helpers.distilling import distill
from tests.helpers.trainings import SMALL, Images, trainer_of

PLAN = PhasePlan.uniform(3, steps=2)


def network():
    torch.manual_seed(0)
    made = MlpDenoiser.rectified_flow(dim=2, classes=3, width=8)
    return made.requires_grad_(False).eval()


def experts(cls=OdeExpert):
    made = [cls(network(), phase) for phase in PLAN]
    for i, expert in enumerate(made):
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.1 * (i + 1))
    return made


def source_of(number, *, cls=OdeExpert, batch=4, rank=0, ranks=1, seed=0, account=None):
    teacher = MixtureTeacher.random(dim=2, classes=3, modes=2)
    return PhaseInputSource(
        experts=experts(cls)[:number],
        conditions=ConditionStream(teacher.encode(teacher.prompts)),
        latent_shape=(2,),
        sigma=1.0,
        batch=batch,
        device=torch.device("cpu"),
        generator=RankGenerator.make(seed, rank, ranks),
        seed=seed,
        account=account or Account(),
    )


def taken(buffer, number):
    out = [buffer.take() for _ in range(number)]
    if not out:
        return None
    return torch.stack([x for x, _ in out]), torch.stack([labels_of(c) for _, c in out])


def begun(number, *, buffer=None, **settings):
    buffer = buffer or PhaseInputBuffer(4, together=3)
    buffer.on_phase_start(source_of(number, **settings))
    return buffer


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_each_batch_is_handed_out_as_often_as_asked_in_every_fill(batches, uses, together, window):
    buffer = begun(
        1, buffer=PhaseInputBuffer(batches, uses=uses, together=together, window=window)
    )
    x, _ = taken(buffer, 2 * batches * uses)
    for fill in x.flatten(1).chunk(2):
        rows, counts = fill.unique(dim=0, return_counts=True)
        assert len(rows) == batches and bool((counts == uses).all())
    first, second = x.flatten(1).chunk(2)
    assert not bool(torch.isin(first, second).any())


@pytest.mark.parametrize("cls", [OdeExpert, RenoisingExpert])
def test_a_state_is_what_the_earlier_experts_make_of_its_noise(cls):
    buffer = begun(2, cls=cls)
    x, labels = taken(buffer, 4)
    assert x.std() > 0.1
    start, same = taken(begun(0), 4)
    if cls is OdeExpert:
        teacher = MixtureTeacher.random(dim=2, classes=3, modes=2)
        for i in range(4):
            rows = [j for j in range(4) if torch.equal(same[j], labels[i])]
            condition = teacher.encode(labels[i].tolist())
            made = [start[j] for j in rows]
            for expert in experts(cls)[:2]:
                made = [expert(y, condition) for y in made]
            assert any(torch.allclose(y, x[i], atol=1e-6) for y in made)


@pytest.mark.parametrize("cls", [OdeExpert, RenoisingExpert])
@pytest.mark.parametrize("served", [0, 1, 3, 4])
def test_what_is_carried_on_is_what_would_be_made_from_noise(cls, served):
    carried = begun(1, cls=cls)
    taken(carried, served)
    begun(2, buffer=carried, cls=cls)
    for a, b in zip(taken(carried, 4), taken(begun(2, cls=cls), 4), strict=True):
        assert torch.equal(a, b)


def test_a_batch_is_used_again_within_its_window_before_the_ring_goes_on():
    x, _ = taken(begun(0, buffer=PhaseInputBuffer(100, uses=3, window=4)), 24)
    for window in x.flatten(1).chunk(2):
        rows, counts = window.unique(dim=0, return_counts=True)
        assert len(rows) == 4 and bool((counts == 3).all())
    assert len(x.flatten(1).unique(dim=0)) == 8


def test_carrying_on_costs_the_newest_experts_steps_alone():
    account = Account()
    first = source_of(1, account=account)
    for expert in first.experts:
        account.watch("frozen", expert.denoiser)
    buffer = PhaseInputBuffer(8, together=2)
    buffer.on_phase_start(first)
    taken(buffer, 4)
    assert account.forward["frozen"] == 4 * 4 * 2
    account.close()
    second = source_of(2, account=account)
    for expert in second.experts:
        account.watch("frozen", expert.denoiser)
    buffer.on_phase_start(second)
    taken(buffer, 4)
    assert account.forward["frozen"] == 2 * (4 * 4 * 2)
    taken(buffer, 2)  # that the phase before did not make
    assert account.forward["frozen"] == 2 * (4 * 4 * 2) + 2 * 2 * 4 * 2


def test_ranks_together_hold_what_one_process_does():
    for cls in (OdeExpert, RenoisingExpert):
        whole = taken(begun(2, cls=cls, batch=4), 8)
        halves = [taken(begun(2, cls=cls, batch=2, rank=r, ranks=2), 8) for r in range(2)]
        for one, parts in zip(whole, zip(*halves, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(parts, 1), one, rtol=0, atol=1e-6)


def test_files_hold_the_same_states_as_memory(tmp_path):
    inside = taken(begun(2), 9)
    buffer = begun(2, buffer=PhaseInputBuffer(4, together=3, folder=tmp_path / "buffer"))
    for a, b in zip(inside, taken(buffer, 9), strict=True):
        assert torch.equal(a, b)
    assert any((tmp_path / "buffer").rglob("*.memmap"))
    del buffer
    assert not any((tmp_path / "buffer").iterdir())


def small(**changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    start = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    phase_inputs = changes.pop("buffer", None) or PhaseInputBuffer(5, uses=2)
    settings = dict(init=FromDenoiser(start), updates=6, fake_updates=2, batch_size=8)
    return distill(teacher, PLAN, phase_inputs=phase_inputs, **{**settings, **changes})


@pytest.mark.parametrize("after", [1, 4, 6, 9, 12, 15])
@pytest.mark.parametrize("expert", [OdeExpert, RenoisingExpert])
def test_a_resumed_run_is_bit_identical_and_counts_the_same(tmp_path, after, expert):
    accounts = [Account(), Account()]
    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        small(checkpointer=checkpointer, recorder=StopAt(checkpointer, after), expert=expert)
    again = Checkpointer(tmp_path / "c", every=100)
    resumed = small(checkpointer=again, resume=True, account=accounts[0], expert=expert)
    assert torch.equal(weights(resumed), weights(small(account=accounts[1], expert=expert)))
    assert accounts[0].state() == accounts[1].state()


def test_every_update_has_a_state_of_its_own_unless_asked_otherwise():
    assert not torch.equal(weights(small()), weights(small(buffer=PhaseInputBuffer(5))))
    assert not torch.equal(weights(small()), weights(small(buffer=FreshPhaseInputs())))
    assert torch.equal(weights(small()), weights(small()))


@pytest.mark.parametrize("setting", ["batches", "uses", "window", "together"])
def test_a_ring_of_nothing_is_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        PhaseInputBuffer(**{setting: 0})


@pytest.mark.parametrize("fake_updates_per_rollout", [1, 2, 5])
@pytest.mark.parametrize(
    "buffer", [None, (3, 1, 16), (4, 2, 16), (7, 1, 2), (100, 1, 16), (9, 3, 2)]
)
def test_evaluations_with_buffers_and_reused_rollouts_are_the_closed_form(
    fake_updates_per_rollout, buffer
):
    plan, batch, updates = PhasePlan.uniform(4), 4, (6, 2, 5, 3)
    phase_inputs = (
        PhaseInputBuffer(buffer[0], uses=buffer[1], window=buffer[2]) if buffer else None
    )
    teacher, carried = Images(**SMALL), None
    for index, cycles in enumerate(updates):
        work = Work(
            plan=plan,
            truncation=lambda phase, generator: 0,
            batch_size=batch,
            fake_updates=5,
            fake_updates_per_rollout=fake_updates_per_rollout,
            phase_inputs=phase_inputs,
            updates=updates,
            evaluations=2,
        )
        carried = phase_inputs if buffer else FreshPhaseInputs()
        trainer = trainer_of(teacher, work, index, guidance=3.0, phase_inputs=carried)
        for _ in range(cycles):
            trainer.cycle()
        trainer.session.account.close()
        expected, counted = calls(work, index), trainer.session.account.state()
        for way in WAYS:
            planned = {k: n * cycles * batch for k, n in getattr(expected, way).items()}
            assert planned == pytest.approx(counted[way])
        assert sum(expected.frozen) == expected.forward["frozen"]
