"""Context parallelism: attention that cannot be split."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pdmd.distributed import (
    Ranks,
)
from pdmd.distributed.context_parallel import HeadExchange


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
