"""Context parallelism: attention that cannot be split."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pdmd.distributed import (
    Ranks,
    context_parallelize,
)
from pdmd.distributed.context_parallel import HeadExchange
from tests.distributed.networks import Block, Network
from tests.distributed.parity import make_mesh, relative
from tests.distributed.ranks import run_ranks
from tests.helpers.splitting import double, tokens


def test_attention_that_cannot_be_split_raises():
    ranks = Ranks("none", 2, 0)
    q = torch.randn(1, 2, 4, 8)
    with HeadExchange(ranks, []):
        with pytest.raises(ValueError, match="causal"):
            scaled_dot_product_attention(q, q, q, is_causal=True)
        with pytest.raises(ValueError, match="over keys only"):
            scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
        with pytest.raises(ValueError, match="heads divisible by 2"):
            scaled_dot_product_attention(q[:, :1], q, q)


def forward_errors():
    """Errors that only a forward pass can raise."""
    mesh = make_mesh(context=2)["cp"]
    network = double(Network)
    context_parallelize(network, mesh)
    with pytest.raises(ValueError, match="the h of blocks.0 has 5 tokens.* by 2 context"):
        network(tokens()[:, :5])
    assert network(tokens()).shape == (2, 6, 3)
    unit = network.blocks[1]
    unit.compile(backend="aot_eager", fullgraph=True)
    y = network(tokens())
    assert relative(y, double(Network)(tokens())) < 1e-12
    with pytest.raises(ValueError, match="split by context already"):
        context_parallelize(network, mesh)

    class Einsum(Block):
        def forward(self, h):
            return self.out(torch.cat([h, self.up(h)], -1))

    own = double(Network)
    own.blocks = nn.ModuleList([Einsum(16, 4).double()])
    context_parallelize(own, mesh)
    with pytest.raises(ValueError, match="Einsum did not call torch's scaled_dot_product"):
        own(tokens())


@pytest.mark.distributed
def test_tokens_that_do_not_divide_and_other_attention_raise():
    run_ranks(forward_errors, 2)
