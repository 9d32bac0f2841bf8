from pdmd import DistributionMatching
from pdmd.objectives import Repulsion
from pdmd.objectives.terms import terms_of


def test_the_terms_of_nested_sums_and_limited_ones_are_found():
    matching, repulsion = DistributionMatching(), Repulsion()
    assert terms_of(matching) == [matching]
    assert terms_of((matching + 0.5 * repulsion).only(1)) == [matching, repulsion]
    assert terms_of(matching + 0.5 * repulsion.only(2)) == [matching, repulsion]
