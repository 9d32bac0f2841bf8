"""Plans of diffusers: networks on several ranks equal those in one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pdmd.distributed import check
from tests.distributed.families import FAMILIES, case
from tests.distributed.parity import errors
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

NORMS = {
    "wan_image": ["attn2.norm_added_k"],
    "wan": [f"attn{i}.norm_{p}" for i in (1, 2) for p in "qk"],
    "qwen": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "qwen_masked": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "qwen_edit": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "flux": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")],
    "sd3": [f"attn.norm_{p}" for p in ("q", "k", "added_q", "added_k")] + ["attn2.norm_q"],
}


def same(results, tolerance):
    """Asserts that every rank measured all tensors, each within the tolerance."""
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


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SD3Transformer2DModel", {"qk_norm": None}),
        ("FluxTransformer2DModel", {"num_single_layers": 0, "guidance_embeds": True}),
        ("FluxTransformer2DModel", {"num_layers": 0}),
        ("QwenImageTransformer2DModel", {"zero_cond_t": True}),
    ],
)
def test_other_configurations_have_plans(name, arguments):
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, name)(
            **{"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 128} | arguments
        )
    check(network, tensor=2, context=2)


def test_a_layer_that_a_plan_does_not_name_raises():
    """Otherwise the gradient of a renamed norm would not be summed over ranks."""
    network = case("qwen")[0].network
    check(network, tensor=2)
    network.transformer_blocks[0].attn.renamed = network.transformer_blocks[0].attn.norm_q
    network.transformer_blocks[0].attn.norm_q = None
    with pytest.raises(ValueError, match=r"a layer transformer_blocks\.0\.attn\.renamed"):
        check(network, tensor=2)


@pytest.mark.slow
def test_the_example_compares_two_ranks():
    program = Path(__file__).parents[2] / "examples" / "05_parallel_plan.py"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*words, "--nproc-per-node", "2", str(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "tp on 2 ranks" in done.stdout and "cp on 2 ranks" in done.stdout
