"""Tables of a plan: units of numbers, aligned columns."""

import pytest

from pdmd.planning import Cluster, Precision, format_plan, plan_roles
from pdmd.planning.tables import format_bytes, format_count
from tests.helpers.plans import small_run


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 * 2**30, "200 GiB")]
)
def test_bytes_have_binary_units(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (1500, "1.5 k"), (2.5e12, "2.5 T"), (4e21, "4000 E")]
)
def test_counts_have_decimal_units(value, text):
    assert format_count(value) == text


def test_a_plan_has_a_row_per_phase_choice_and_item():
    roles, work = small_run()
    plan = plan_roles(
        roles, work, name="small", cluster=Cluster(gpus=2, memory=1.0), precision=Precision()
    )
    head, cycles, choices, rank, totals = format_plan(plan).split("\n\n")
    assert head.startswith("small: teacher of ") and "batch 16, 2 fake updates" in head
    assert [line.split()[0] for line in cycles.splitlines()[2:]] == ["1", "2"]
    assert f"{len(plan.choices)} of {len(plan.choices)} choices of degrees fit" in choices
    assert len(choices.splitlines()) == 3 + len(plan.choices)
    items = {line.split("  ")[1]: line.split()[-2:] for line in rank.splitlines()[2:]}
    total = " ".join(items["total"])
    assert total == format_bytes(plan.choices[0].memory.total)
