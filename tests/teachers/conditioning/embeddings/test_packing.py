"""Packing of conditions: lossless to the bit."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd.teachers.conditioning.embeddings.index import Shard
from pdmd.teachers.conditioning.embeddings.packing import field_specs, pack
from tests.helpers.stores import DTYPES

ROWS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(lengths=ROWS, masked=st.booleans(), dtype=st.sampled_from(list(DTYPES)), data=st.data())
def test_packing_is_lossless(lengths, masked, dtype, data):
    longest = max(lengths) + data.draw(st.integers(0, 2))
    bits = st.integers(0, 2 ** (8 * DTYPES[dtype].itemsize) - 1)
    raw = torch.zeros(len(lengths), longest, 2, dtype=torch.int64)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for i, n in enumerate(lengths):
        for j in range(n):
            raw[i, j] = torch.tensor([data.draw(bits), data.draw(bits)])
            mask[i, j] = data.draw(st.booleans())
    integer = {2: torch.int16, 4: torch.int32}[DTYPES[dtype].itemsize]
    prompt = raw.to(integer).view(DTYPES[dtype])  # any bits: infinities, NaN, negative zero
    fields = {"prompt": prompt, **({"mask": mask} if masked else {})}
    condition = TensorDict(fields, batch_size=[len(lengths)])
    specs = field_specs(condition)
    tensors, counts = pack(condition, specs)
    assert specs["prompt"].ragged == masked
    prompts = tuple(str(i) for i in range(len(lengths)))
    shard = Shard.loads(Shard(prompts, "abc", specs, tensors, counts).dumps())
    assert (shard.prompts, shard.encoder, shard.specs) == (prompts, "abc", specs)
    for key, value in fields.items():
        ends = shard.lengths[key].cumsum(0).tolist()
        for i, end in enumerate(ends):
            own = shard.tensors[key][end - int(shard.lengths[key][i]) : end]
            bytes_of = value[i].contiguous().reshape(-1).view(torch.uint8)
            kept = own.contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(kept, bytes_of[: len(kept)]) and not bytes_of[len(kept) :].any()
        used = shard.lengths[key]
        assert not masked or torch.equal(used, shard.lengths["prompt"])
