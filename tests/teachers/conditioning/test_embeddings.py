"""Stores of prompt embeddings: what goes in comes out, whatever happens meanwhile."""

import json
import multiprocessing
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from pdmd.files import own_digest
from pdmd.teachers import PromptEmbeddings
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings, embed
from pdmd.teachers.conditioning.embeddings.index import Place, Shard
from pdmd.teachers.conditioning.embeddings.rows import forms_of, pack
from pdmd.teachers.conditioning.prompts import EncodedText, Prompts
from pdmd.typing import join_conditions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder(Prompts):
    """Draws each prompt's embedding from a seed that is the prompt; counts what it is asked."""

    def __init__(self, *, dtype=torch.float32, masked=True, length=9, seed=0, name="one"):
        self.dtype, self.masked, self.length, self.seed = dtype, masked, length, seed
        self.name, self.evaluated_at, self.fails_at = name, [], None

    @property
    def prompts(self):
        return []

    def fingerprint(self):
        return None if self.name is None else self.name * 20

    def row(self, prompt):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{prompt} {self.seed}".encode()))
        n = int(torch.randint(1, self.length + 1, (), generator=generator))
        tokens = torch.randn(1, n, 3, generator=generator).to(self.dtype)
        entries = {"prompt": tokens, "mask": torch.ones(1, n, dtype=torch.bool)}
        if not self.masked:
            filling = torch.zeros(1, self.length - n, 3, dtype=self.dtype)
            entries = {"prompt": torch.cat([tokens, filling], 1)}
        entries["pooled"] = torch.randn(1, 5, generator=generator)
        return TensorDict(entries, batch_size=[1])

    def encode(self, prompts):
        if self.fails_at is not None and len(self.evaluated_at) >= self.fails_at:
            raise KeyboardInterrupt
        self.evaluated_at += prompts
        rows = [self.row(prompt) for prompt in prompts]
        joined = rows[0]
        for row in rows[1:]:
            joined = join_conditions(joined, row)
        return joined


def same(a, b):
    assert set(a.keys()) == set(b.keys()) and a.batch_size == b.batch_size
    for key in a.keys():
        assert type(a[key]) is torch.Tensor
        assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


def names(n):
    return [f"prompt {i} \u2192 \u732b" for i in range(n)]


def quiet(encoder, prompts, url, **more):
    return embed(encoder, prompts, str(url), progress=False, **{"shard_size": 4, **more})


def opened(url, tmp_path, **more):
    return StoredEmbeddings(url, cache=tmp_path / "cache", progress=False, **more)


@pytest.mark.parametrize("kind", ["memory", "local"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_what_goes_in_comes_out(tmp_path, kind, masked, dtype):
    url = f"memory://{tmp_path.name}/store/" if kind == "memory" else str(tmp_path / "new/store")
    encoder = Encoder(dtype=DTYPES[dtype], masked=masked)
    prompts = names(11)
    index = quiet(encoder, prompts, url, batch_size=3, teacher="mine")
    assert encoder.evaluated_at == [*prompts, None]  # each once, in order
    assert index.rows == 12 and [shard.rows for shard in index.shards] == [4, 4, 4]
    stored = opened(url, tmp_path)
    assert stored.fingerprint() == "one" * 20 and stored.index == index
    assert list(stored.prompts) == prompts and stored.prompts[-1] == prompts[-1]
    assert stored.prompts[2:4] == prompts[2:4]
    for asked in ([*prompts, None], [None], prompts[5:2:-1], [prompts[7]] * 3):
        same(stored.encode(asked), encoder.encode(asked))
    lazy = stored.conditions(stored.prompts)
    rows = torch.tensor([3, 3, 0, 10])
    same(lazy.to(torch.device("cpu"))[rows], encoder.encode(prompts)[rows])
    same(lazy[:2], encoder.encode(prompts)[:2])
    assert lazy.batch_size == (11,)


ROWS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(lengths=ROWS, masked=st.booleans(), dtype=st.sampled_from(list(DTYPES)), data=st.data())
def test_packing_loses_no_bit(lengths, masked, dtype, data):
    longest = max(lengths) + data.draw(st.integers(0, 2))
    bits = st.integers(0, 2 ** (8 * DTYPES[dtype].itemsize) - 1)
    raw = torch.zeros(len(lengths), longest, 2, dtype=torch.int64)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for i, n in enumerate(lengths):
        for j in range(n):
            raw[i, j] = torch.tensor([data.draw(bits), data.draw(bits)])
            mask[i, j] = data.draw(st.booleans())
    integer = {2: torch.int16, 4: torch.int32}[DTYPES[dtype].itemsize]
    prompt = raw.to(integer).view(DTYPES[dtype])  # any bits: infinities, NaN, minus zero
    entries = {"prompt": prompt, **({"mask": mask} if masked else {})}
    condition = TensorDict(entries, batch_size=[len(lengths)])
    forms = forms_of(condition)
    tensors, counts = pack(condition, forms)
    assert forms["prompt"].ragged == masked
    prompts = tuple(str(i) for i in range(len(lengths)))
    shard = Shard.loads(Shard(prompts, "abc", forms, tensors, counts).dumps())
    assert (shard.prompts, shard.encoder, shard.forms) == (prompts, "abc", forms)
    for key, value in entries.items():
        ends = shard.lengths[key].cumsum(0).tolist()
        for i, end in enumerate(ends):
            own = shard.tensors[key][end - int(shard.lengths[key][i]) : end]
            bytes_of = value[i].contiguous().reshape(-1).view(torch.uint8)
            kept = own.contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(kept, bytes_of[: len(kept)]) and not bytes_of[len(kept) :].any()
        used = shard.lengths[key]
        assert not masked or torch.equal(used, shard.lengths["prompt"])


def test_an_interrupted_store_is_unfinished_and_goes_on(tmp_path):
    url, prompts = tmp_path / "store", names(10)
    whole = quiet(Encoder(), prompts, tmp_path / "whole", batch_size=2)
    encoder = Encoder()
    encoder.fails_at = 6  # in the middle of the second shard
    with pytest.raises(KeyboardInterrupt):
        quiet(encoder, prompts, url, batch_size=2)
    assert [p.name for p in url.iterdir()] == ["embeddings-00000.safetensors"]
    with pytest.raises(ValueError, match=r"has no index.json, .*pdmd embed PROMPTS --out"):
        StoredEmbeddings(url)
    again = Encoder()
    assert quiet(again, prompts, url, batch_size=2) == whole
    assert again.evaluated_at == [*prompts[4:], None]
    last = Encoder()
    assert quiet(last, prompts, url, batch_size=2) == whole and not last.evaluated_at
    files = {p.name: p.read_bytes() for p in url.iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}


def test_a_write_that_stops_half_way_leaves_no_shard(tmp_path, monkeypatch):
    url, prompts = tmp_path / "store", names(6)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.mv", lambda *_: 1 / 0)
        with pytest.raises(OSError, match=f"{url}: embeddings-00000.safetensors could not be wr"):
            quiet(Encoder(), prompts, url)
    assert [p.name for p in url.iterdir()] == ["embeddings-00000.safetensors.tmp"]
    quiet(Encoder(), prompts, url)
    same(opened(url, tmp_path).encode(prompts), Encoder().encode(prompts))


def test_another_list_or_encoder_is_refused_until_told_to_overwrite(tmp_path):
    url, prompts = tmp_path / "store", names(6)
    quiet(Encoder(), prompts, url)
    before = {p.name: p.read_bytes() for p in url.iterdir()}
    for encoder, asked, more, named in (
        (Encoder(), names(7), {}, "other prompts"),
        (Encoder(), names(2), {}, "other prompts"),
        (Encoder(), prompts[::-1], {}, "other prompts"),
        (Encoder(), prompts, {"shard_size": 5}, "other prompts"),
        (Encoder(name="two"), prompts, {}, "another encoder .oneoneoneone, this one is twotwo"),
        (Encoder(name=None), prompts, {}, "another encoder .oneoneoneone, this one is unknown"),
    ):
        with pytest.raises(ValueError, match=f"{url} holds .*{named}.*--overwrite"):
            quiet(encoder, asked, url, **more)
        assert {
            p.name: p.read_bytes() for p in url.iterdir()
        } == before and not encoder.evaluated_at
    (url / "notes.txt").write_text("mine")
    quiet(Encoder(name="two"), names(2), url, overwrite=True)
    assert opened(url, tmp_path).fingerprint() == "two" * 20
    left = {p.name for p in url.iterdir()}
    assert left == {"notes.txt", "index.json", "embeddings-00000.safetensors"}


def test_a_store_begun_with_another_dtype_is_refused(tmp_path):
    url, encoder = tmp_path / "store", Encoder(dtype=torch.bfloat16)
    encoder.fails_at = 4
    with pytest.raises(KeyboardInterrupt):
        quiet(encoder, names(6), url)
    with pytest.raises(ValueError, match="'prompt' is float32 .any, 3. in .* bfloat16 .any, 3."):
        quiet(Encoder(), names(6), url)


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named_and_made_again(tmp_path, capsys, how):
    url, prompts = tmp_path / "store", names(9)
    quiet(Encoder(), prompts, url)
    path = url / "embeddings-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    whole = path.read_bytes()
    path.write_bytes(bytes(data) if how == "flip" else whole[:-9])
    if how == "gone":
        path.unlink()
    what = {"flip": "holds other bytes", "cut": "is truncated", "gone": "is missing"}[how]
    with pytest.raises(ValueError, match=f"damaged: {path.name} {what}.*`pdmd embed` again"):
        opened(url, tmp_path).encode(prompts)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.endswith("index")]
    again = Encoder()
    quiet(again, prompts, url)
    assert again.evaluated_at == prompts[4:8] and path.read_bytes() == whole
    same(opened(url, tmp_path).encode(prompts), Encoder().encode(prompts))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"sha256": 3, "format": 1}', "flip", "format"])
def test_a_damaged_index_is_named(tmp_path, text):
    named = "json is damaged; run the same"

    url = tmp_path / "store"
    quiet(Encoder(), names(3), url)
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


def test_an_unknown_prompt_and_bad_input_are_named(tmp_path):
    url = tmp_path / "store"
    for prompts, named in (
        ([], "at least one prompt"),
        ("a cat", "a list of at least one"),
        (["a", "b", "a"], "'a' comes twice"),
        (["a", 3], "a text, got 3"),
    ):
        with pytest.raises(ValueError, match=named):
            quiet(Encoder(), prompts, url)
    with pytest.raises(ValueError, match="batch_size is at least 1, got 0"):
        quiet(Encoder(), ["a"], url, batch_size=0)
    with pytest.raises(ValueError, match="nowhere has no index.json"):
        StoredEmbeddings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no file system that is known"):
        StoredEmbeddings("nosuch://bucket/store")
    quiet(Encoder(), names(3), url)
    stored = opened(url, tmp_path)
    with pytest.raises(ValueError, match=f"no embedding of the prompt 'a dog' in {url}; embed it"):
        stored.encode([names(3)[0], "a dog"])
    with pytest.raises(ValueError, match="a text or None, got 3"):
        stored.encode([3])
    with pytest.raises(ValueError, match="no embedding of the prompt 'a dog'"):
        opened(url, tmp_path, prompts=["a dog"]).conditions(["a dog"])
    chosen = opened(url, tmp_path, prompts=names(3)[1:])
    assert list(chosen.prompts) == names(3)[1:]
    same(chosen.conditions(chosen.prompts)[:], Encoder().encode(names(3)[1:]))


def test_prompts_that_share_a_digest_are_told_apart(tmp_path, monkeypatch):
    cache = "pdmd.teachers.conditioning.embeddings.cache._digest"
    monkeypatch.setattr(cache, lambda prompt: len(prompt) % 2)
    url, prompts = tmp_path / "store", ["a", "bb", "c", "dd", "e", ""]
    quiet(Encoder(), prompts, url)
    stored = opened(url, tmp_path)
    same(stored.encode(prompts[::-1]), Encoder().encode(prompts[::-1]))
    with pytest.raises(ValueError, match="no embedding of the prompt 'f'"):
        stored.encode(["f"])


def read_in_a_process(url, cache, queue):
    stored = StoredEmbeddings(url, cache=cache, progress=False)
    queue.put(float(stored.encode(stored.prompts)["prompt"].double().sum()))


def test_processes_share_one_local_copy(tmp_path):
    url, prompts = str(tmp_path / "store"), names(40)
    encoder = Encoder()
    quiet(encoder, prompts, url)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (url, tmp_path / "cache", queue)
    workers = [context.Process(target=read_in_a_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert sums == {float(encoder.encode(prompts)["prompt"].double().sum())}
    copies = [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    digest = StoredEmbeddings(url).index.digest
    assert [p.name for p in copies] == [digest]


def test_an_abandoned_copy_is_made_again(tmp_path):
    url = str(tmp_path / "store")
    quiet(Encoder(), names(3), url)
    digest = StoredEmbeddings(url).index.digest
    draft = tmp_path / "cache" / f"{digest}.partial"
    draft.mkdir(parents=True)
    (draft / "meta.json").write_text("half")
    same(opened(url, tmp_path).encode(names(3)), Encoder().encode(names(3)))
    assert not draft.exists()


def test_embeddings_of_no_known_encoder_are_stored(tmp_path):
    source = PromptEmbeddings.random(5, length=4, dim=3, masked=True)
    index = quiet(source, source.prompts, f"memory://{tmp_path.name}")
    assert index.encoder is None and Place.of(f"memory://{tmp_path.name}").shards()
    stored = opened(f"memory://{tmp_path.name}", tmp_path)
    short = stored.encode(source.prompts)
    full = source.encode(source.prompts)
    n = short["mask"].shape[1]
    same(short, TensorDict({k: v[:, :n] for k, v in full.items()}, batch_size=[5]))
    assert not full["mask"][:, n:].any()


def test_the_texts_of_one_store_are_looked_up_in_another(tmp_path):
    """Two stores of as many prompts in another order: the rows follow the texts."""
    prompts = names(6)
    quiet(Encoder(), prompts, tmp_path / "a")
    quiet(Encoder(), prompts[::-1], tmp_path / "b")
    a, b = (opened(tmp_path / name, tmp_path) for name in "ab")
    same(b.conditions(a.prompts)[:], Encoder().encode(prompts))
    same(b.conditions(b.prompts)[:], Encoder().encode(prompts[::-1]))


class Late(Encoder):
    """Knows itself only once it was asked, as an encoder that is downloaded does."""

    def fingerprint(self):
        return super().fingerprint() if self.evaluated_at else None


def test_an_encoder_that_comes_with_its_first_use_is_known_in_the_store(tmp_path):
    encoder, prompts = Late(), names(6)
    encoder.fails_at = 6  # in the second shard
    with pytest.raises(KeyboardInterrupt):
        quiet(encoder, prompts, tmp_path / "store", batch_size=2)
    index = quiet(Encoder(), prompts, tmp_path / "store")  # by then its files are there
    assert index.encoder == Encoder().fingerprint()


def test_how_texts_are_encoded_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pdmd.teachers.conditioning.prompts.encoder_fingerprint", lambda folder: "files"
    )
    made = [
        EncodedText(dict, dict, null="", folder="f", how=how).fingerprint()
        for how in (None, {"text_length": 64}, {"text_length": 512})
    ]
    assert made[0] == "files" and len(set(made)) == 3


def test_no_prompts_are_refused_before_an_encoder_is_loaded():
    with pytest.raises(ValueError, match="no prompts to encode"):
        EncodedText(lambda: 1 / 0, dict, null="").encode([])


@pytest.mark.parametrize("subfolder", ["unet", ""])
def test_weights_of_the_hub_are_asked_for_without_their_variants(monkeypatch, subfolder):
    from fnmatch import fnmatch

    from pdmd.teachers.families import pipelines

    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.extend(allow_patterns),
    )
    with pytest.raises(TypeError):  # nothing was downloaded
        list(pipelines._tensors("someone/model", subfolder))
    at, stem = f"{subfolder}/" * bool(subfolder), "diffusion_pytorch_model"
    files = {
        f"{at}{stem}.safetensors": True,
        f"{at}{stem}.safetensors.index.json": True,
        f"{at}{stem}-00001-of-00002.safetensors": True,
        f"{at}{stem}.fp16.safetensors": False,
        f"{at}{stem}.non_ema.safetensors": False,
        f"{at}{stem}.bin": False,
        f"vae/{stem}.safetensors": False,
    }
    assert {file: any(fnmatch(file, p) for p in asked) for file in files} == files
