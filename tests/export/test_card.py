"""Cards: what they say of the sizes that a student was trained on."""

from pdmd import PhasePlan, Student
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import OdeExpert
from pdmd.export.card import size_notes
from tests.helpers.sizes import SIZES, AnySize


def student(buckets):
    return Student([OdeExpert(AnySize(), p) for p in PhasePlan.uniform(2)], buckets=buckets)


def test_a_card_lists_the_times_of_every_size():
    _, note, table = size_notes(student(SIZES))
    assert "those of latents 2 x 4;" in note
    assert table.splitlines()[2:] == [
        "| 2 x 4 | 25% | 1, 0.5 |",
        "| 2 x 6 | 50% | 1, 0.6 |",  # 1.5 / 2 / (1 + 0.5 / 2)
        "| 2 x 3 | 25% | 1, 0.333333 |",
    ]


def test_one_size_needs_no_words():
    assert size_notes(student(Buckets.of_shape((2, 4)))) == size_notes(student(None)) == []
