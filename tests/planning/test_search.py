"""The search over degrees: divisibility, sorting, and what fits."""

from hypothesis import given
from hypothesis import strategies as st

from pdmd.planning import Cluster, Degrees, Precision, format_plan, plan_roles
from pdmd.planning.search import degrees_for
from tests.helpers.plans import small_run


@given(gpus=st.integers(1, 48), batch=st.integers(1, 64), heads=st.integers(0, 12))
def test_degrees_divide_batch_heads_and_tokens(gpus, batch, heads):
    found = list(degrees_for(gpus, batch_size=batch, heads=heads, tokens=24))
    for d in found:
        assert d.ranks == gpus and batch % d.batches == 0 and 24 % d.cp == 0
        assert d.tp * d.cp == 1 or heads % (d.tp * d.cp) == 0
    assert len(set(found)) == len(found)
    if batch % gpus == 0:
        assert Degrees(dp_replicate=gpus) in found and Degrees(dp_shard=gpus) in found


def test_choices_that_fit_come_first_sorted_by_seconds():
    roles, work = small_run()
    settings = {"precision": Precision()}
    everything = plan_roles(roles, work, cluster=Cluster(gpus=8, memory=1.0), **settings)
    sizes = sorted(c.memory.total for c in everything.choices)
    middle = sizes[len(sizes) // 2]
    plan = plan_roles(roles, work, cluster=Cluster(gpus=8, memory=middle / 2**30), **settings)
    fits = [c.fits for c in plan.choices]
    assert fits == sorted(fits, reverse=True) and 0 < sum(fits) < len(fits)
    assert all(c.fits == (c.memory.total <= middle) for c in plan.choices)
    sent = [c.slowest.total for c in plan.fitting]
    assert sent == sorted(sent)
    none = plan_roles(roles, work, cluster=Cluster(gpus=8, memory=sizes[0] / 2**31), **settings)
    assert not none.fitting and none.smallest.memory.total == sizes[0]
    assert "nothing fits: the smallest memory of any choice is" in format_plan(none)
