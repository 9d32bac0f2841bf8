import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd import FromDenoiser, MixtureTeacher, MlpDenoiser, PhasePlan
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import OdeExpert, RenoisingExpert
from pdmd.randomness import RankGenerator
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.conditions import ConditionStream
from pdmd.training.monitoring.accounting import Account
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputBuffer, PhaseInputSource
from pdmd.typing import labels_of
from tests.helpers.distilling import distill
from tests.helpers.small_runs import StopAt, weights

PLAN = PhasePlan.uniform(3, steps=2)


def network():
    torch.manual_seed(0)
    created = MlpDenoiser.rectified_flow(dim=2, classes=3, width=8)
    return created.requires_grad_(False).eval()


def experts(cls=OdeExpert):
    trained = [cls(network(), phase) for phase in PLAN]
    for i, expert in enumerate(trained):
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter.add_(0.1 * (i + 1))
    return trained


def source_of(number, *, cls=OdeExpert, batch=4, rank=0, ranks=1, seed=0, account=None):
    teacher = MixtureTeacher.random(dim=2, classes=3, modes=2)
    return PhaseInputSource(
        experts=experts(cls)[:number],
        conditions=ConditionStream(teacher.encode(teacher.prompts)),
        buckets=Buckets.of_shape((2,)),
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


def started(number, *, buffer=None, **settings):
    buffer = buffer or PhaseInputBuffer(4, together=3)
    buffer.on_phase_start(source_of(number, **settings))
    return buffer


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_every_fill_returns_each_batch_the_same_number_of_times(batches, uses, together, window):
    buffer = started(
        1, buffer=PhaseInputBuffer(batches, uses=uses, together=together, window=window)
    )
    x, _ = taken(buffer, 2 * batches * uses)
    for fill in x.flatten(1).chunk(2):
        rows, counts = fill.unique(dim=0, return_counts=True)
        assert len(rows) == batches and bool((counts == uses).all())
    first, second = x.flatten(1).chunk(2)
    assert not bool(torch.isin(first, second).any())


@pytest.mark.parametrize("cls", [OdeExpert, RenoisingExpert])
def test_phase_inputs_are_the_earlier_experts_samples(cls):
    buffer = started(2, cls=cls)
    x, labels = taken(buffer, 4)
    assert x.std() > 0.1
    start, same = taken(started(0), 4)
    if cls is OdeExpert:
        teacher = MixtureTeacher.random(dim=2, classes=3, modes=2)
        for i in range(4):
            rows = [j for j in range(4) if torch.equal(same[j], labels[i])]
            condition = teacher.encode(labels[i].tolist())
            samples = [start[j] for j in rows]
            for expert in experts(cls)[:2]:
                samples = [expert(y, condition) for y in samples]
            assert any(torch.allclose(y, x[i], atol=1e-6) for y in samples)


@pytest.mark.parametrize("cls", [OdeExpert, RenoisingExpert])
@pytest.mark.parametrize("served", [0, 1, 3, 4])
def test_advanced_batches_equal_those_sampled_from_noise(cls, served):
    advanced = started(1, cls=cls)
    taken(advanced, served)
    started(2, buffer=advanced, cls=cls)
    for a, b in zip(taken(advanced, 4), taken(started(2, cls=cls), 4), strict=True):
        assert torch.equal(a, b)


def test_a_window_is_reused_before_the_next_one_starts():
    x, _ = taken(started(0, buffer=PhaseInputBuffer(100, uses=3, window=4)), 24)
    for window in x.flatten(1).chunk(2):
        rows, counts = window.unique(dim=0, return_counts=True)
        assert len(rows) == 4 and bool((counts == 3).all())
    assert len(x.flatten(1).unique(dim=0)) == 8


def test_advancing_costs_only_the_newest_experts_steps():
    account = Account()
    first = source_of(1, account=account)
    for expert in first.experts:
        account.count("frozen", expert.denoiser)
    buffer = PhaseInputBuffer(8, together=2)
    buffer.on_phase_start(first)
    taken(buffer, 4)
    assert account.forward["frozen"] == 4 * 4 * 2
    account.close()
    second = source_of(2, account=account)
    for expert in second.experts:
        account.count("frozen", expert.denoiser)
    buffer.on_phase_start(second)
    taken(buffer, 4)
    assert account.forward["frozen"] == 2 * (4 * 4 * 2)
    taken(buffer, 2)  # batches that the previous phase did not compute
    assert account.forward["frozen"] == 2 * (4 * 4 * 2) + 2 * 2 * 4 * 2


def test_ranks_together_have_the_batches_of_one_process():
    for cls in (OdeExpert, RenoisingExpert):
        whole = taken(started(2, cls=cls, batch=4), 8)
        halves = [taken(started(2, cls=cls, batch=2, rank=r, ranks=2), 8) for r in range(2)]
        for one, parts in zip(whole, zip(*halves, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(parts, 1), one, rtol=0, atol=1e-6)


def test_memory_mapped_batches_equal_those_in_memory(tmp_path):
    inside = taken(started(2), 9)
    buffer = started(2, buffer=PhaseInputBuffer(4, together=3, folder=tmp_path / "buffer"))
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


def test_a_reused_buffer_keeps_nothing_of_an_earlier_distillation():
    buffer = PhaseInputBuffer(5, uses=2)
    small(buffer=buffer, seed=7)
    assert torch.equal(weights(small(buffer=buffer, seed=3)), weights(small(seed=3)))


def test_every_update_has_new_phase_inputs_unless_they_are_reused():
    assert not torch.equal(weights(small()), weights(small(buffer=PhaseInputBuffer(5))))
    assert not torch.equal(weights(small()), weights(small(buffer=FreshPhaseInputs())))
    assert torch.equal(weights(small()), weights(small()))


@pytest.mark.parametrize("setting", ["batches", "uses", "window", "together"])
def test_buffer_settings_below_one_raise(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        PhaseInputBuffer(**{setting: 0})
