"""Writing stores: atomic, resumable, and of one encoder."""

import os

import pytest
import torch
from tensordict import TensorDict

from pdmd.teachers import PromptEmbeddings
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.embeddings.index import StoreFolder
from tests.helpers.stores import (
    Encoder,
    Late,
    assert_same,
    embed_quietly,
    open_store,
    prompt_names,
)


def files(folder):
    """The files of a store, and others that are not hidden."""
    return {p.name: p.read_bytes() for p in folder.glob("[!.]*")}


def test_an_interrupted_embed_resumes_at_the_missing_shard(tmp_path):
    url, prompts = tmp_path / "store", prompt_names(10)
    whole = embed_quietly(Encoder(), prompts, tmp_path / "whole", batch_size=2)
    encoder = Encoder()
    encoder.fails_at = 6  # in the middle of the second shard
    with pytest.raises(KeyboardInterrupt):
        embed_quietly(encoder, prompts, url, batch_size=2)
    assert [*files(url)] == ["embeddings-00000.safetensors"]
    with pytest.raises(ValueError, match=r"has no index.json: .*pdmd embed PROMPTS --out"):
        StoredEmbeddings(url)
    again = Encoder()
    assert embed_quietly(again, prompts, url, batch_size=2) == whole
    assert again.encoded == [*prompts[4:], None]
    last = Encoder()
    assert embed_quietly(last, prompts, url, batch_size=2) == whole and not last.encoded
    assert files(url) == files(tmp_path / "whole")


def test_one_process_at_a_time_writes_to_a_local_store(tmp_path):
    first, second = Encoder(), Encoder()
    encode = first.encode

    def encode_meanwhile(prompts):
        with pytest.raises(ValueError, match=f"store is in use by process {os.getpid()} "):
            embed_quietly(second, prompt_names(3)[::-1], tmp_path / "store")
        return encode(prompts)

    first.encode = encode_meanwhile
    embed_quietly(first, prompt_names(3), tmp_path / "store")
    assert not second.encoded
    stored = open_store(tmp_path / "store", tmp_path)
    assert_same(stored.encode(prompt_names(3)), second.encode(prompt_names(3)))


def test_an_interrupted_write_leaves_no_shard(tmp_path, monkeypatch):
    url, prompts = tmp_path / "store", prompt_names(6)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.mv", lambda *_: 1 / 0)
        with pytest.raises(OSError, match=f"{url}: embeddings-00000.safetensors could not be wr"):
            embed_quietly(Encoder(), prompts, url)
    assert [*files(url)] == ["embeddings-00000.safetensors.tmp"]
    embed_quietly(Encoder(), prompts, url)
    assert_same(open_store(url, tmp_path).encode(prompts), Encoder().encode(prompts))


def test_another_list_or_encoder_requires_overwrite(tmp_path):
    url, prompts = tmp_path / "store", prompt_names(6)
    embed_quietly(Encoder(), prompts, url)
    before = files(url)
    for encoder, requested, more, named in (
        (Encoder(), ["new", *prompts], {}, "other prompts"),
        (Encoder(), prompt_names(2), {}, "other prompts"),
        (Encoder(), prompts[::-1], {}, "other prompts"),
        (Encoder(), prompts, {"shard_size": 5}, "other prompts"),
        (Encoder(name="two"), prompts, {}, "another encoder .oneoneoneone, this one is twotwo"),
        (Encoder(name=None), prompts, {}, "another encoder .oneoneoneone, this one is unknown"),
    ):
        with pytest.raises(ValueError, match=f"{url} has .*{named}.*--overwrite"):
            embed_quietly(encoder, requested, url, **more)
        assert {
            p.name: p.read_bytes() for p in url.glob("[!.]*")
        } == before and not encoder.encoded
    (url / "notes.txt").write_text("mine")
    embed_quietly(Encoder(name="two"), prompt_names(2), url, overwrite=True)
    assert open_store(url, tmp_path).fingerprint() == "two" * 20
    left = files(url).keys()
    assert left == {"notes.txt", "index.json", "embeddings-00000.safetensors"}


@pytest.mark.parametrize("first", [3, 4, 6, 8])
@pytest.mark.parametrize("then", [9, 12])
@pytest.mark.parametrize("masked", [True, False])
def test_added_prompts_are_encoded_alone(tmp_path, first, then, masked):
    url, prompts = tmp_path / "store", prompt_names(then)
    embed_quietly(Encoder(masked=masked), prompts[:first], url)
    before = open_store(url, tmp_path).index.digest
    encoder = Encoder(masked=masked)
    found = embed_quietly(encoder, prompts, url)
    assert sorted(encoder.encoded) == sorted(prompts[first:])
    whole = embed_quietly(Encoder(masked=masked), prompts, tmp_path / "whole")
    assert found == whole and found.digest != before
    stored = open_store(url, tmp_path)
    queried = [*prompts, None]
    assert_same(stored.encode(queried), Encoder(masked=masked).encode(queried))


def test_an_interrupted_addition_loses_nothing(tmp_path):
    url, prompts = tmp_path / "store", prompt_names(11)
    embed_quietly(Encoder(), prompts[:6], url)
    before = files(url)
    encoder = Encoder()
    encoder.fails_at = 3  # in the shard that was begun, after the new one
    with pytest.raises(KeyboardInterrupt):
        embed_quietly(encoder, prompts, url, batch_size=1)
    kept = files(url)
    assert all(kept[name] == data for name, data in before.items())
    assert_same(open_store(url, tmp_path).encode([None]), Encoder().encode([None]))
    again = Encoder()
    embed_quietly(again, prompts, url, batch_size=1)
    assert again.encoded == prompts[6:8]
    queried = [*prompts, None]
    assert_same(open_store(url, tmp_path).encode(queried), Encoder().encode(queried))


def test_a_store_of_another_dtype_raises(tmp_path):
    url, encoder = tmp_path / "store", Encoder(dtype=torch.bfloat16)
    encoder.fails_at = 4
    with pytest.raises(KeyboardInterrupt):
        embed_quietly(encoder, prompt_names(6), url)
    with pytest.raises(ValueError, match="'prompt' is float32 .any, 3. for .* bfloat16 .any, 3."):
        embed_quietly(Encoder(), prompt_names(6), url)


def test_embeddings_of_an_unknown_encoder_are_stored(tmp_path):
    source = PromptEmbeddings.random(5, length=4, dim=3, masked=True)
    index = embed_quietly(source, source.prompts, f"memory://{tmp_path.name}")
    assert index.encoder is None and StoreFolder.of(f"memory://{tmp_path.name}").shards()
    stored = open_store(f"memory://{tmp_path.name}", tmp_path)
    short = stored.encode(source.prompts)
    full = source.encode(source.prompts)
    n = short["mask"].shape[1]
    assert_same(short, TensorDict({k: v[:, :n] for k, v in full.items()}, batch_size=[5]))
    assert not full["mask"][:, n:].any()


def test_the_fingerprint_of_a_downloaded_encoder_is_recorded(tmp_path):
    encoder, prompts = Late(), prompt_names(6)
    encoder.fails_at = 6  # in the second shard
    with pytest.raises(KeyboardInterrupt):
        embed_quietly(encoder, prompts, tmp_path / "store", batch_size=2)
    index = embed_quietly(Encoder(), prompts, tmp_path / "store")  # which has a fingerprint by now
    assert index.encoder == Encoder().fingerprint()
