"""Batches of samples: the rows of a set, whatever the batches and ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import Expert, MixtureTeacher, OdeExpert, PhasePlan, Student
from pdmd.distributed.communicator import SingleRank
from pdmd.evaluation.batches import batch_size_of, row_batches, sampled_rows
from pdmd.evaluation.evaluate import draw_samples
from pdmd.randomness import randn


class Rank(SingleRank):
    """One of several ranks, whose rows are gathered by the test."""

    def __init__(self, rank, ranks):
        self.data_rank, self.data_ranks = rank, ranks


@given(
    units=st.integers(1, 40),
    unit=st.integers(1, 5),
    batch=st.integers(1, 30),
    ranks=st.integers(1, 5),
    data=st.data(),
)
def test_batches_hold_every_row_once_and_are_equally_many(units, unit, batch, ranks, data):
    total = units * unit
    first = unit * data.draw(st.integers(0, units - 1))
    parts = [
        list(row_batches(total, batch, Rank(r, ranks), first=first, unit=unit))
        for r in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    found = []
    for together in zip(*parts, strict=True):
        assert len({len(part.rows) for part in together}) == 1
        assert len(together[0].rows) <= max(batch, unit)
        assert all(part.rows.start % unit == 0 for part in together)
        rows = [row for part in together for row in part.rows]
        assert rows[0] == together[0].first
        found += rows[: together[0].kept]
    assert found == list(range(first, total))


def test_samples_depend_neither_on_batches_nor_on_ranks():
    def draw(rows, generator):
        return randn((len(rows), 3), generator) + torch.tensor(rows)[:, None]

    one = sampled_rows(draw, 10, batch=3, seed=5)
    assert torch.equal(one, sampled_rows(draw, 10, batch=4, seed=5))
    parts = [[], []]
    for rank in range(2):

        class Recorder(Rank):
            def gather_rows(self, value, rank=rank):
                parts[rank].append(value)
                return value

        sampled_rows(draw, 10, batch=3, seed=5, ranks=Recorder(rank, 2))
    assert torch.equal(torch.cat([x for pair in zip(*parts, strict=True) for x in pair]), one)


def test_a_set_of_one_batch_has_the_noise_of_a_plain_generator():
    plain = torch.Generator().manual_seed(5)
    found = sampled_rows(lambda rows, g: randn((len(rows), 3), g), 10, batch=10, seed=5)
    assert torch.equal(found, randn((10, 3), plain))


def test_no_batch_is_larger_than_chosen_and_the_samples_are_the_same():
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=1)
    sizes = []

    class Noted(OdeExpert):
        def __call__(self, x, condition=None, **options):
            sizes.append(len(x))
            return super().__call__(x, condition, **options)

    experts: list[Expert] = [Noted(teacher, phase) for phase in PhasePlan.uniform(2)]
    student = Student(experts, encode=teacher.encode, prompts=teacher.prompts)

    def drawn(batch):
        sizes.clear()
        settings = {"samples": 50, "seed": 1, "teacher_steps": 2, "progress": False}
        return draw_samples(student, teacher, batch=batch, **settings)

    seven, nine = drawn(7), drawn(9)
    assert max(sizes) == 9 and sum(sizes) == 2 * 50
    for name, x in seven.items():
        assert len(x) == 50
        assert torch.allclose(x, nine[name], atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), 2**14), ((16, 21, 60, 104), 1)])
def test_large_latents_have_small_batches(shape, size):
    assert batch_size_of(shape) == size
    assert batch_size_of(shape, 5) == 5
