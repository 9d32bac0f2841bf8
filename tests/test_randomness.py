"""Random numbers of batches that are sharded over ranks."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import philox
from pdmd.randomness import RankGenerator, rand, randint, randn, randn_like

SAMPLERS = {
    "randn": lambda n, more, generator: randn((n, *more), generator),
    "randn in float64": lambda n, more, generator: randn(
        (n, *more), generator, dtype=torch.double
    ),
    "randn_like": lambda n, more, generator: randn_like(torch.empty(n, *more), generator),
    "rand": lambda n, more, generator: rand(n, generator),
    "rand in float64": lambda n, more, generator: rand(n, generator, dtype=torch.double),
    "randint": lambda n, more, generator: randint(1000, n, generator),
}

seeds = st.integers(0, 2**63 - 1)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
calls = st.lists(
    st.tuples(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 5), shapes), min_size=1
)


@contextmanager
def recorded_words():
    """Records the indices of the words that are computed, as they are."""
    computed, words = [], philox.words

    def record(seed, draw, first, count):
        computed.extend(range(first, first + count))
        return words(seed, draw, first, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(philox, "words", record)
        yield computed


def words_per_row(name, more):
    numbers = torch.Size(more).numel()
    return (numbers + 1) // 2 if name.startswith("randn") else 1


@given(seed=seeds, ranks=st.integers(1, 6), calls=calls)
def test_ranks_together_sample_what_one_process_samples(seed, ranks, calls):
    one = RankGenerator.make(seed)
    many = [RankGenerator.make(seed, rank, ranks) for rank in range(ranks)]
    for name, n, more in calls:
        parts = [SAMPLERS[name](n, more, generator) for generator in many]
        assert all(part.shape == parts[0].shape and len(part) == n for part in parts)
        assert torch.equal(torch.cat(parts), SAMPLERS[name](n * ranks, more, one))
    states = [generator.get_state() for generator in (one, *many)]
    assert all(torch.equal(state, states[0]) for state in states)  # all generators advance alike


@given(seed=seeds, ranks=st.integers(1, 6), calls=calls)
def test_no_rank_computes_the_numbers_of_another(seed, ranks, calls):
    for rank in range(ranks):
        generator = RankGenerator.make(seed, rank, ranks)
        for name, n, more in calls:
            with recorded_words() as computed:
                SAMPLERS[name](n, more, generator)
            size = words_per_row(name, more)
            assert computed == list(range(rank * n * size, (rank + 1) * n * size))


@given(seed=seeds, more=shapes, n=st.integers(1, 5), rows=st.integers(1, 5))
def test_a_row_does_not_depend_on_the_size_of_the_batch(seed, more, n, rows):
    for sampler in SAMPLERS.values():
        few = sampler(n, more, RankGenerator.make(seed))
        many = sampler(n + rows, more, RankGenerator.make(seed))
        assert torch.equal(few, many[:n])


def test_every_draw_and_every_seed_is_another():
    generators = [RankGenerator.make(seed) for seed in (0, 0, 1)]
    draws = [[randn((4, 3), generator) for _ in range(3)] for generator in generators]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert len({x.sum().item() for x in (*draws[0], *draws[2])}) == 6
    assert generators[0].draws == 3


@given(seed=seeds, dtype=st.sampled_from([torch.half, torch.bfloat16, torch.float64]))
def test_noise_is_the_same_in_every_dtype(seed, dtype):
    x = randn((3, 5), RankGenerator.make(seed))
    assert torch.equal(randn((3, 5), RankGenerator.make(seed), dtype=dtype), x.to(dtype))
    assert torch.equal(randn_like(x.to(dtype), RankGenerator.make(seed)), x.to(dtype))


@given(high=st.integers(1, 2**53), seed=seeds)
def test_integers_are_below_their_bound(high, seed):
    x = randint(high, 50, RankGenerator.make(seed))
    assert x.dtype == torch.int64 and 0 <= x.min() and x.max() < high


def test_integers_are_uniform_and_reach_the_last_but_not_the_bound(monkeypatch):
    x = randint(7, 70_000, RankGenerator.make(0))
    assert (x.bincount(minlength=7) - 10_000).abs().max() < 4 * 10_000**0.5
    largest = np.array([2**64 - 1], np.uint64)
    monkeypatch.setattr(philox, "words", lambda *_: largest)
    for high in (1, 3, 1000, 2**40 - 1, 2**53 - 1, 2**53):
        assert randint(high, 1, RankGenerator.make(0)).tolist() == [high - 1]


@pytest.mark.parametrize("high", [0, -3, 2**53 + 1])
def test_a_bound_out_of_range_raises(high):
    with pytest.raises(ValueError, match=rf"bound in \[1, 2\^53\], got {high}"):
        randint(high, 2, RankGenerator.make(0))


@given(seed=seeds, n=st.integers(1, 9), more=shapes)
def test_a_plain_generator_samples_as_torch_does(seed, n, more):
    def generator():
        return torch.Generator().manual_seed(seed)

    assert torch.equal(
        randn((n, *more), generator()), torch.randn(n, *more, generator=generator())
    )
    assert torch.equal(rand(n, generator()), torch.rand(n, generator=generator()))
    expected = torch.randint(7, (n,), generator=generator())
    assert torch.equal(randint(7, n, generator()), expected)
    x = torch.zeros(n, *more, dtype=torch.double)
    expected = torch.randn(n, *more, generator=generator(), dtype=torch.double)
    assert torch.equal(randn_like(x, generator()), expected)


@given(seed=seeds)
def test_without_a_generator_the_global_one_is_used(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        got = [randn((2, 3), None), rand(2, None), randint(9, 2, None)]
        torch.manual_seed(seed)
        expected = [torch.randn(2, 3), torch.rand(2), torch.randint(9, (2,))]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@given(seed=seeds, rows=st.integers(0, 3))
def test_numbers_drawn_with_torch_are_those_of_the_seed_on_every_rank(seed, rows):
    """Whatever was drawn by row before."""
    expected = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    for rank in range(2):
        generator = RankGenerator.make(seed, rank, 2)
        for _ in range(rows):
            randn((2, 2), generator)
        assert torch.equal(torch.randn(3, generator=generator), expected)


@given(seed=seeds, ranks=st.integers(1, 4), n=st.integers(1, 4))
def test_a_saved_state_resumes_on_another_number_of_ranks(seed, ranks, n):
    """The number of ranks may change between a checkpoint and the run that resumes it."""
    before = RankGenerator.make(seed, ranks - 1, ranks)
    randn((n, 3), before)
    torch.rand(3, generator=before)
    state, after = before.get_state(), []
    resumed = [RankGenerator.make(0, rank, n) for rank in range(n)]
    for rank, generator in enumerate(resumed):
        generator.set_state(state)
        assert (generator.rank, generator.ranks) == (rank, n)
        after.append(randn((ranks, 2), generator))
    parts = torch.cat(after).split(n)
    assert torch.equal(parts[ranks - 1], randn((n, 2), before))
    expected = torch.rand(2, generator=before)
    assert all(torch.equal(torch.rand(2, generator=g), expected) for g in resumed)


def test_the_state_of_another_generator_raises():
    with pytest.raises(ValueError, match=r"state has \d+ bytes, got \d+; pass what its get_state"):
        RankGenerator.make(0).set_state(torch.Generator().get_state())


@pytest.mark.parametrize("copied", [copy.deepcopy, RankGenerator.clone_state])
def test_a_copy_continues_alone(copied):
    generator = RankGenerator.make(3, 1, 2)
    randn((2, 2), generator)
    other = copied(generator)
    assert (other.rank, other.ranks, other.draws) == (1, 2, 1)
    expected = randn((2, 2), other)
    assert generator.draws == 1 and torch.equal(randn((2, 2), generator), expected)


def test_a_new_seed_begins_with_the_first_draw():
    generator = RankGenerator.make(3)
    randn((2, 2), generator)
    expected = randn((2, 2), RankGenerator.make(8))
    assert torch.equal(randn((2, 2), generator.manual_seed(8)), expected)


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 2), (0, 0), (5, 1)])
def test_a_rank_out_of_range_raises(rank, ranks):
    with pytest.raises(ValueError, match=rf"rank must be in \[0, {ranks}\), got {rank}"):
        RankGenerator.make(0, rank, ranks)
