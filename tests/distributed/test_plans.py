"""A network that is split over ranks is the network."""

import pytest

from tests.distributed.families import FAMILIES
from tests.distributed.parity import errors
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

NORMS = {
    "wan": [f"attn{i}.norm_{p}" for i in (1, 2) for p in "qk"],
    "qwen": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "qwen_masked": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "flux": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "sd3": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")] + ["attn2.norm_q"],
}


def same(results, tolerance):
    """Sees that every rank measured what it should, and nothing beyond the tolerance."""
    for rank, found in enumerate(results):
        for (kind, family), one in found.items():
            assert {"output", "loss", "input x"} <= one.keys()
            measured = [name for name in one if name.startswith("parameter ")]
            for norm in NORMS.get(family, []):
                assert any(f"{norm}.weight" in name for name in measured), (family, norm)
            wrong = {name: error for name, error in one.items() if not error <= tolerance}
            assert not wrong, (rank, kind, family, wrong)


def test_two_ranks_equal_one_process():
    kinds = [(1, 1, 2, False), (1, 1, 2, True), (1, 2, 1, False), (1, 2, 1, True)]
    results = run_ranks(errors, 2, FAMILIES, kinds)
    assert len(results[0]) == len(kinds) * len(FAMILIES)
    same(results, 1e-5)


@pytest.mark.slow
def test_four_ranks_equal_one_process():
    kinds = [(1, 2, 2, False), (1, 2, 2, True)]
    same(run_ranks(errors, 4, FAMILIES, kinds), 1e-5)


@pytest.mark.slow
def test_sharded_data_parallel_composes():
    kinds = [(2, 1, 2, False), (2, 2, 1, False), (2, 1, 2, True), (2, 2, 1, True)]
    same(run_ranks(errors, 4, FAMILIES, kinds, True), 2e-5)
