"""Reading stores: what the encoder returned, from one local copy, or an error."""

import json
import multiprocessing

import pytest
import torch

from pdmd.files import own_digest
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from tests.helpers.stores import (
    DTYPES,
    Encoder,
    assert_same,
    embed_quietly,
    open_store,
    prompt_names,
)


@pytest.mark.parametrize("kind", ["memory", "local"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_store_returns_what_the_encoder_returns(tmp_path, kind, masked, dtype):
    url = f"memory://{tmp_path.name}/store/" if kind == "memory" else str(tmp_path / "new/store")
    encoder = Encoder(dtype=DTYPES[dtype], masked=masked)
    prompts = prompt_names(11)
    index = embed_quietly(encoder, prompts, url, batch_size=3, teacher="mine")
    assert encoder.encoded == [*prompts, None]  # each once, in order
    assert index.rows == 12 and [shard.rows for shard in index.shards] == [4, 4, 4]
    stored = open_store(url, tmp_path)
    assert stored.fingerprint() == "one" * 20 and stored.index == index
    assert list(stored.prompts) == prompts and stored.prompts[-1] == prompts[-1]
    assert stored.prompts[2:4] == prompts[2:4]
    for queried in ([*prompts, None], [None], prompts[5:2:-1], [prompts[7]] * 3):
        assert_same(stored.encode(queried), encoder.encode(queried))
    lazy = stored.conditions(stored.prompts)
    rows = torch.tensor([3, 3, 0, 10])
    assert_same(lazy.to(torch.device("cpu"))[rows], encoder.encode(prompts)[rows])
    assert_same(lazy[:2], encoder.encode(prompts)[:2])
    assert lazy.batch_size == (11,)


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named_and_recomputed(tmp_path, capsys, how):
    url, prompts = tmp_path / "store", prompt_names(9)
    embed_quietly(Encoder(), prompts, url)
    path = url / "embeddings-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    whole = path.read_bytes()
    path.write_bytes(bytes(data) if how == "flip" else whole[:-9])
    if how == "gone":
        path.unlink()
    what = {"flip": "does not match its SHA-256", "cut": "is truncated", "gone": "is missing"}[how]
    with pytest.raises(ValueError, match=f"damaged: {path.name} {what}.*`pdmd embed` again"):
        open_store(url, tmp_path).encode(prompts)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.endswith("index")]
    again = Encoder()
    embed_quietly(again, prompts, url)
    assert again.encoded == prompts[4:8] and path.read_bytes() == whole
    assert_same(open_store(url, tmp_path).encode(prompts), Encoder().encode(prompts))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"sha256": 3, "format": 1}', "flip", "format"])
def test_a_damaged_index_is_named(tmp_path, text):
    named = "json is damaged; run the same"

    url = tmp_path / "store"
    embed_quietly(Encoder(), prompt_names(3), url)
    path = url / "index.json"
    if text == "flip":
        text = path.read_text().replace("float32", "float16")
    if text == "format":
        body = {**json.loads(path.read_text()), "format": 7}
        body.pop("sha256")
        text = json.dumps({**body, "sha256": own_digest(body)})
        named = "has format 7, and this version of pdmd reads 1"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        StoredEmbeddings(url)


def test_unknown_prompts_and_invalid_arguments_raise(tmp_path):
    url = tmp_path / "store"
    for prompts, named in (
        ([], "at least one prompt"),
        ("a cat", "a list of at least one"),
        (["a", "b", "a"], "'a' is repeated"),
        (["a", 3], "a text, got 3"),
    ):
        with pytest.raises(ValueError, match=named):
            embed_quietly(Encoder(), prompts, url)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed_quietly(Encoder(), ["a"], url, batch_size=0)
    with pytest.raises(ValueError, match="nowhere has no index.json"):
        StoredEmbeddings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="an unknown file system"):
        StoredEmbeddings("nosuch://bucket/store")
    embed_quietly(Encoder(), prompt_names(3), url)
    stored = open_store(url, tmp_path)
    with pytest.raises(ValueError, match=f"no embedding of the prompt 'a dog' in {url}; embed it"):
        stored.encode([prompt_names(3)[0], "a dog"])
    with pytest.raises(ValueError, match="a text or None, got 3"):
        stored.encode([3])
    with pytest.raises(ValueError, match="no embedding of the prompt 'a dog'"):
        open_store(url, tmp_path, prompts=["a dog"]).conditions(["a dog"])
    chosen = open_store(url, tmp_path, prompts=prompt_names(3)[1:])
    assert list(chosen.prompts) == prompt_names(3)[1:]
    assert_same(chosen.conditions(chosen.prompts)[:], Encoder().encode(prompt_names(3)[1:]))


def test_prompts_with_colliding_digests_are_distinguished(tmp_path, monkeypatch):
    cache = "pdmd.teachers.conditioning.embeddings.cache._digest"
    monkeypatch.setattr(cache, lambda prompt: len(prompt) % 2)
    url, prompts = tmp_path / "store", ["a", "bb", "c", "dd", "e", ""]
    embed_quietly(Encoder(), prompts, url)
    stored = open_store(url, tmp_path)
    assert_same(stored.encode(prompts[::-1]), Encoder().encode(prompts[::-1]))
    with pytest.raises(ValueError, match="no embedding of the prompt 'f'"):
        stored.encode(["f"])


def read_in_process(url, cache, queue):
    stored = StoredEmbeddings(url, cache=cache, progress=False)
    queue.put(float(stored.encode(stored.prompts)["prompt"].double().sum()))


def test_processes_share_one_local_copy(tmp_path):
    url, prompts = str(tmp_path / "store"), prompt_names(40)
    encoder = Encoder()
    embed_quietly(encoder, prompts, url)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (url, tmp_path / "cache", queue)
    workers = [context.Process(target=read_in_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert sums == {float(encoder.encode(prompts)["prompt"].double().sum())}
    copies = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    digest = StoredEmbeddings(url).index.digest
    assert [p.name for p in copies] == [digest]


def test_an_abandoned_copy_is_replaced(tmp_path):
    url = str(tmp_path / "store")
    embed_quietly(Encoder(), prompt_names(3), url)
    digest = StoredEmbeddings(url).index.digest
    partial = tmp_path / "cache" / f"{digest}.partial"
    partial.mkdir(parents=True)
    (partial / "meta.json").write_text("half")
    assert_same(
        open_store(url, tmp_path).encode(prompt_names(3)), Encoder().encode(prompt_names(3))
    )
    assert not partial.exists()


def test_prompts_of_one_store_are_looked_up_in_another(tmp_path):
    """Two stores have the same prompts in different orders."""
    prompts = prompt_names(6)
    embed_quietly(Encoder(), prompts, tmp_path / "a")
    embed_quietly(Encoder(), prompts[::-1], tmp_path / "b")
    a, b = (open_store(tmp_path / name, tmp_path) for name in "ab")
    assert_same(b.conditions(a.prompts)[:], Encoder().encode(prompts))
    assert_same(b.conditions(b.prompts)[:], Encoder().encode(prompts[::-1]))
