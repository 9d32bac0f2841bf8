"""A text encoder for stores of embeddings, and helpers to write and read them."""

import zlib

import torch
from tensordict import TensorDict

from pdmd.teachers.conditioning.embeddings import StoredEmbeddings, embed
from pdmd.teachers.conditioning.prompts import Prompts
from pdmd.teachers.conditioning.text_lengths import trimmed, with_lengths
from pdmd.typing import join_conditions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder(Prompts):
    """Samples the embedding of a prompt by the seed of its text; records what it encodes."""

    def __init__(self, *, dtype=torch.float32, masked=True, length=9, seed=0, name="one"):
        self.dtype, self.masked, self.length, self.seed = dtype, masked, length, seed
        self.name, self.encoded, self.fails_at = name, [], None

    @property
    def prompts(self):
        return []

    def fingerprint(self):
        return None if self.name is None else self.name * 20

    def row(self, prompt):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{prompt} {self.seed}".encode()))
        n = int(torch.randint(1, self.length + 1, (), generator=generator))
        tokens = torch.randn(1, n, 3, generator=generator).to(self.dtype)
        fields = {"prompt": tokens, "mask": torch.ones(1, n, dtype=torch.bool)}
        if not self.masked:
            padding = torch.zeros(1, self.length - n, 3, dtype=self.dtype)
            fields = {"prompt": torch.cat([tokens, padding], 1)}
        fields["pooled"] = torch.randn(1, 5, generator=generator)
        return TensorDict(fields, batch_size=[1])

    def encode(self, prompts):
        if self.fails_at is not None and len(self.encoded) >= self.fails_at:
            raise KeyboardInterrupt
        self.encoded += prompts
        rows = [self.row(prompt) for prompt in prompts]
        joined = rows[0]
        for row in rows[1:]:
            joined = join_conditions(joined, row)
        return joined


class Late(Encoder):
    """Has a fingerprint only after its first use, like an encoder that is downloaded."""

    def fingerprint(self):
        return super().fingerprint() if self.encoded else None


def assert_same(a, b):
    a, b = (trimmed(with_lengths(c)).exclude("lengths") for c in (a, b))
    assert set(a.keys()) == set(b.keys()) and a.batch_size == b.batch_size
    for key in a.keys():
        assert type(a[key]) is torch.Tensor
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


def prompt_names(n):
    return [f"prompt {i} \u2192 \u732b" for i in range(n)]


def embed_quietly(encoder, prompts, url, **more):
    return embed(encoder, prompts, str(url), progress=False, **{"shard_size": 4, **more})


def open_store(url, tmp_path, **more):
    return StoredEmbeddings(url, cache=tmp_path / "cache", progress=False, **more)
