"""Tokens that do not divide by the ranks: the results of one process, and no longer messages."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from pdmd.distributed import Ranks, context_parallelize
from pdmd.distributed.activation_checkpointing import checkpoint_units
from pdmd.distributed.context_parallel import HeadExchange
from tests.distributed.families import case
from tests.distributed.parity import make_mesh, relative
from tests.distributed.ranks import run_ranks

FAMILIES = ("qwen_masked", "flux", "sd3", "wan")


def with_text(family, length, generator):
    """A family's network and inputs, with texts of another length."""
    network, x = case(family)
    text = torch.randn(2, length, 16, generator=generator)
    network.arguments["encoder_hidden_states"] = text.requires_grad_()
    if family == "flux":
        network.arguments["txt_ids"] = torch.zeros(length, 3)
    if family == "qwen_masked":
        mask = torch.ones(2, length)
        mask[0, length // 2 :] = 0
        network.arguments["encoder_hidden_states_mask"] = mask
    return network, x


def parity(family, lengths, checkpointed):
    """Relative errors of outputs and gradients of calls of several lengths, one backward."""
    mesh = make_mesh(context=2)["cp"]
    found = {}
    calls = []
    for parallel in (False, True):
        generator = torch.Generator().manual_seed(1)
        networks = [with_text(family, length, generator) for length in lengths]
        first = networks[0][0].network
        if parallel:
            context_parallelize(first, mesh)
        if checkpointed:
            checkpoint_units(first)
        outputs = []
        for one, x in networks:
            one.network = first
            outputs.append(one(x))
        sum(y.square().mean() for y in outputs).backward()
        gradients = {name: p.grad for name, p in first.named_parameters() if p.grad is not None}
        if parallel:
            for gradient in gradients.values():
                torch.distributed.all_reduce(gradient, group=mesh.get_group())
        texts = [one.arguments["encoder_hidden_states"].grad for one, _ in networks]
        calls.append((outputs, gradients, texts))
    (a, b), kinds = calls, ("outputs", "texts")
    for kind, i in zip(kinds, (0, 2), strict=True):
        pairs = zip(a[i], b[i], strict=True)
        found[kind] = max(relative(y, x) for x, y in pairs)
    found["parameters"] = max(relative(b[1][name], a[1][name]) for name in a[1])
    assert a[1].keys() == b[1].keys()
    return found


def some_families(*names):
    found = {name: parity(name, (15,), False) for name in names}
    # one rank has no token of the third; the backward pass recomputes the calls of each length
    found["several lengths"] = parity("qwen", (15, 4, 1), True)
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("names", [("qwen",), pytest.param(FAMILIES, marks=pytest.mark.slow)])
def test_any_number_of_text_tokens_gives_the_results_of_one_process(names):
    for found in run_ranks(some_families, 2, *names):
        for name, errors in found.items():
            assert all(error < 1e-4 for error in errors.values()), (name, errors)


class Sent(TorchDispatchMode):
    """Adds up the bytes of all-to-all collectives."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "all_to_all_single" in str(func):
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


class Normed(nn.Module):
    """Normalizes queries and keys, like Wan, and attends."""

    def __init__(self):
        super().__init__()
        self.qkv, self.norm = nn.Linear(16, 48), nn.RMSNorm(8)

    def forward(self, h):
        q, k, v = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in self.qkv(h).chunk(3, -1))
        q, k = self.norm(q.float()), self.norm(k.float())  # as autocast does on accelerators
        self.dtypes = [x.dtype for x in (q, k, v)]
        return scaled_dot_product_attention(q, k, v)


def bytes_sent():
    ranks, network = Ranks.of(make_mesh(context=2)["cp"]), Normed()
    h = torch.randn(2, 4, 16)
    with torch.no_grad(), Sent() as sent, HeadExchange(ranks, []):
        with torch.autocast("cpu", torch.bfloat16):
            out = network(h)
    return network.dtypes, sent.bytes, out.dtype


@pytest.mark.distributed
def test_queries_and_keys_are_exchanged_in_the_type_of_the_computation():
    for dtypes, sent, out in run_ranks(bytes_sent, 2):
        assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
        assert sent == 4 * math.prod((2, 2, 4, 8)) * 2  # q, k, v and back, two bytes each
        assert out == torch.bfloat16
