"""Random numbers of batches that are sharded over ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
calls = st.lists(
    st.tuples(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 5), shapes), min_size=1
)


@given(seed=seeds, ranks=st.integers(1, 6), calls=calls)
def test_ranks_together_sample_what_one_process_samples(seed, ranks, calls):
    one = torch.Generator().manual_seed(seed)
    many = [RankGenerator.make(seed, rank, ranks) for rank in range(ranks)]
    for name, n, more in calls:
        parts = [SAMPLERS[name](n, more, generator) for generator in many]
        assert all(part.shape == parts[0].shape and len(part) == n for part in parts)
        assert torch.equal(torch.cat(parts), SAMPLERS[name](n * ranks, more, one))
    states = [generator.get_state() for generator in (one, *many)]
    assert all(torch.equal(state, states[0]) for state in states)  # all generators advance alike


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


@given(seed=seeds, ranks=st.integers(1, 4), n=st.integers(1, 4))
def test_a_saved_state_resumes_on_another_number_of_ranks(seed, ranks, n):
    """The number of ranks may change between a checkpoint and the run that resumes it."""
    before = RankGenerator.make(seed, ranks - 1, ranks)
    randn((n, 3), before)
    state, after = before.get_state(), []
    for rank in range(n):
        generator = RankGenerator.make(0, rank, n)
        generator.set_state(state)
        assert (generator.rank, generator.ranks) == (rank, n)
        after.append(randn((ranks, 2), generator))
    parts = torch.cat(after).split(n)
    assert torch.equal(parts[ranks - 1], randn((n, 2), before))


@pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 2), (0, 0), (5, 1)])
def test_a_rank_out_of_range_raises(rank, ranks):
    with pytest.raises(ValueError, match=rf"rank must be in \[0, {ranks}\), got {rank}"):
        RankGenerator.make(0, rank, ranks)
