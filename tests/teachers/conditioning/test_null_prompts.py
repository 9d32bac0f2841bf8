"""Null prompts of zeros, in place of an encoded empty text."""

import torch
from tensordict import TensorDict

from pdmd.teachers.conditioning.null_prompts import ZeroedNull
from pdmd.teachers.conditioning.prompts import PromptEmbeddings


def embeddings():
    fields = {"prompt": torch.arange(1.0, 25).reshape(3, 4, 2), "pooled": torch.ones(3, 5)}
    return PromptEmbeddings(["a", None, ""], TensorDict(fields, batch_size=[3]))


def test_no_prompt_is_zeros_and_an_empty_text_is_encoded():
    inner = embeddings()
    plain, zeroed = (p.encode(["a", None, ""]) for p in (inner, ZeroedNull(inner)))
    for key in ("prompt", "pooled"):
        assert torch.equal(zeroed[key][[0, 2]], plain[key][[0, 2]])
        assert not zeroed[key][1].any() and plain[key][1].any()
    assert ZeroedNull(inner).prompts == inner.prompts


def test_the_zeros_change_the_fingerprint():
    inner = embeddings()
    inner.fingerprint = lambda: "digest"
    assert ZeroedNull(inner).fingerprint() not in (None, "digest")
    inner.fingerprint = lambda: None
    assert ZeroedNull(inner).fingerprint() is None
