"""A store in a bucket of a real S3 server on loopback, which the environment points to."""

import json
import signal
import time

import pytest
import torch

from pdmd import Student
from pdmd.cli.main import main
from pdmd.teachers.conditioning.embeddings.index import StoreFolder
from pdmd.training.checkpoints.store import DamagedCheckpoint, Store
from pdmd.training.monitoring.recorder import RunRecorder
from tests.helpers.stores import Encoder, assert_same, embed_quietly, open_store, prompt_names

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    name = f"runs-{time.monotonic_ns()}"
    fs.mkdir(name)
    yield name
    s3fs.S3FileSystem.clear_instance_cache()


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(64, 64, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "rng": generator.get_state(),
        "step": torch.tensor(seed),
        "nothing": torch.empty(0),
    }


def check_loads(store, name, tensors):
    store.verify(name)
    loaded = {key: torch.zeros_like(value) for key, value in tensors.items()}
    store.load(name, loaded)
    assert all(torch.equal(tensors[key], loaded[key]) for key in tensors)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_checkpoints_in_a_bucket(bucket, asynchronous):
    store = Store(f"s3://{bucket}/deep/run", keep=2, asynchronous=asynchronous)
    for i in range(4):
        store.save(f"{i}", weights(i), {"i": i})
    assert store.names() == ["2", "3"]
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    files = {path.split("/run/")[1] for path in fs.find(bucket)}
    kinds = ("manifest.json", ".metadata", ".pdmd", "__0_0.distcp")
    assert files == {f"{name}/{kind}" for name in "23" for kind in kinds}
    manifest = json.loads(fs.cat_file(f"{bucket}/deep/run/3/manifest.json"))
    assert manifest["files"]["__0_0.distcp"]["size"] == fs.size(
        f"{bucket}/deep/run/3/__0_0.distcp"
    )
    again = Store(f"s3://{bucket}/deep/run")
    for i in (2, 3):
        check_loads(again, f"{i}", weights(i))
        assert again.content(f"{i}") == {"i": i}
    path = f"{bucket}/deep/run/3/__0_0.distcp"
    data = bytearray(fs.cat_file(path))
    data[len(data) // 2] ^= 1
    fs.pipe_file(path, bytes(data))
    with pytest.raises(DamagedCheckpoint, match="distcp does not match its SHA-256.*whole is 2"):
        again.verify("3")
    store.clear()
    assert store.names() == [] and fs.find(bucket, refresh=True) == []


def fail_uploads(fs, monkeypatch, part):
    """Refuses uploads of keys that contain the part, as a server does whose quota is used up."""
    from botocore.exceptions import ClientError

    call = fs.s3._make_api_call

    async def refusing(operation, parameters):
        if operation in ("PutObject", "UploadPart", "CopyObject") and part in parameters["Key"]:
            refusal = {"Error": {"Code": "QuotaExceeded", "Message": "the quota is used up"}}
            raise ClientError(refusal, operation)
        return await call(operation, parameters)

    monkeypatch.setattr(fs.s3, "_make_api_call", refusing)


@pytest.mark.parametrize("part", [".pdmd", ".distcp", ".metadata", "manifest.json"])
def test_an_upload_that_fails_is_told_and_never_chosen(bucket, monkeypatch, part):
    url = f"s3://{bucket}/run"
    store = Store(url, keep=1)
    store.save("1", weights(1), {})
    with monkeypatch.context() as patch:
        fail_uploads(s3fs.S3FileSystem(), patch, part)
        with pytest.raises(
            OSError, match=f"{url}: the checkpoint 2 could not.*the quota is used up"
        ):
            store.save("2", weights(2), {})
    assert store.names() == ["1"]
    check_loads(store, "1", weights(1))
    store.save("3", weights(3), {})
    assert store.names() == ["3"]
    check_loads(store, "3", weights(3))
    left = s3fs.S3FileSystem(skip_instance_cache=True).find(bucket)
    assert {path.split("/")[2] for path in left} == {"3"}


def test_a_bucket_that_is_not_there_is_refused_and_not_made(bucket):
    with pytest.raises(ValueError, match="can't be kept in s3://no-such-bucket/run .*bucket"):
        Store("s3://no-such-bucket/run")
    assert "no-such-bucket" not in s3fs.S3FileSystem().ls("", refresh=True)


def test_a_server_that_does_not_answer_is_told_in_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match="check credentials and endpoint") as caught:
        Store(f"s3://{bucket}/run")
    assert "http://127.0.0.1:9" in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_keeps_its_checkpoints_in_a_bucket(bucket, tmp_path, monkeypatch, capsys):
    words = ["mixture", "--train.updates=6", "--train.fake-updates=1", "--train.batch-size=8"]
    words += ["--train.checkpoint-every=2", "--train.checkpoint-async", "--no-progress"]
    words += ["--evaluate.samples=100", "--evaluate.teacher-steps=3", "--network.updates=5"]
    words += ["--plan.phases=2", "--teacher.arguments", *"dim 2 classes 2 modes 2".split()]

    def distill(name, *more):
        where = [
            "--out",
            str(tmp_path / name),
            "--train.checkpoint-folder",
            f"s3://{bucket}/{name}",
        ]
        code = main(["distill", *words, *where, *more])
        return code, capsys.readouterr().err

    assert distill("whole")[0] == 0
    with monkeypatch.context() as patch:
        made = []

        def on_update(recorder, update):
            made.append(update)
            if len(made) == 9:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(RunRecorder, "on_update", on_update)
        code, error = distill("run")
    assert code == 130 and "--resume" in error
    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    assert len(fs.glob(f"{bucket}/run/*/manifest.json")) == 2
    assert distill("run", "--resume")[0] == 0
    students = [Student.load(tmp_path / name / "student") for name in ("whole", "run")]
    pairs = zip(*(s.state_dict().values() for s in students), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    for name in ("whole", "run"):  # the last one is kept, to train longer
        fs.invalidate_cache()
        assert len(fs.glob(f"{bucket}/{name}/*/manifest.json")) == 1
    code, error = distill("other", "--train.checkpoint-folder", "s3://no-such-bucket/run")
    assert code == 2 and "no-such-bucket" in error and "\n" not in error.strip()


def test_embedding_into_a_bucket_resumes(bucket, tmp_path):
    url, prompts = f"s3://{bucket}/deep/prompts", prompt_names(10)
    encoder = Encoder()
    encoder.fails_at = 5
    with pytest.raises(KeyboardInterrupt):
        embed_quietly(encoder, prompts, url, batch_size=1)
    encoder.fails_at = None
    embed_quietly(encoder, prompts, url, batch_size=1)
    assert encoder.encoded == [*prompts[:5], *prompts[4:], None]
    assert StoreFolder.of(url).shards() == [f"embeddings-0000{i}.safetensors" for i in range(3)]
    assert_same(
        open_store(url, tmp_path).encode([*prompts, None]), Encoder().encode([*prompts, None])
    )
    embed_quietly(Encoder(), prompt_names(3), url, overwrite=True)
    assert StoreFolder.of(url).shards() == ["embeddings-00000.safetensors"]
    with pytest.raises((OSError, ValueError), match="no-such-bucket"):
        embed_quietly(Encoder(), prompts, "s3://no-such-bucket/prompts")
