"""Files: which URLs are accepted, and local files written whole."""

import hashlib
import os
import shlex
import subprocess
import sys

import pytest

from pdmd.files import (
    PROTOCOLS,
    FileDigest,
    allow_protocol,
    check_url,
    local_path,
    locate,
    locating_only_protocols,
    own_digest,
    put,
    say,
    shell_word,
    telling,
    write_file,
    write_whole,
)
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.embeddings.index import StoreFolder
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.teachers.conditioning.prompt_files import read_image_prompts, read_prompts
from pdmd.training.checkpoints.store import Store

FOREIGN = [
    "reference://::data:application/json;base64,e30=",
    "reference://x.json",
    "simplecache::s3://bucket/x",
    "file://a::memory://b",
    "a::b",
    "data:text/plain;base64,aGk=",
    "zip://x.txt::https://example.org/x.zip",
    "github://owner:repo@main/x",
    "jar://x",
    "dask://x",
    "ftp://example.org/x",
    "sftp://example.org/x",
    "filecache://x",
    "REFERENCE://x",
    "File://x",
    "a\0b",
]


@pytest.mark.parametrize("url", FOREIGN)
@pytest.mark.parametrize(
    "use",
    [
        locate,
        Store,
        StoreFolder.of,
        StoredEmbeddings,
        read_prompts,
        read_image_prompts,
        lambda url: read_prompts(f"{url}.parquet"),
        lambda url: ImagePrompt("a", url).picture(),
    ],
)
def test_other_protocols_and_chains_reach_no_file_system(monkeypatch, use, url):
    import fsspec.core

    def opened(*arguments, **named):
        raise AssertionError(f"{arguments} reached fsspec")

    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    match = r"chains file systems|on an unknown file system|a path or URL|cannot read the image"
    with pytest.raises(ValueError, match=match):
        use(url)


@pytest.mark.parametrize("url", ["a/b", "/a/b", "file:///a", "memory://a", "a b:c", "c:x"])
def test_paths_and_listed_protocols_are_located(url):
    check_url(url, writing=True)
    locate(url)


def test_what_only_reads_is_not_written():
    check_url("https://example.org/prompts.txt")
    for use in (Store, lambda url: locate(url, writing=True)):
        with pytest.raises(ValueError, match="can be read but not written"):
            use("https://example.org/run")


def test_another_protocol_is_allowed_by_name(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "sftp", True)
    allow_protocol("sftp", writing=False)
    check_url("sftp://host/x")
    with pytest.raises(ValueError, match="can be read but not written"):
        check_url("sftp://host/x", writing=True)
    for name in ("", "a::b", "S3"):
        with pytest.raises(ValueError, match="a protocol is a name"):
            allow_protocol(name)


def test_a_url_that_passed_through_a_path_is_named(tmp_path):
    from pathlib import Path

    for use in (Store, lambda url: local_path(url, "a run")):
        with pytest.raises(ValueError, match="URL that lost a slash|written to a local path"):
            use(Path("s3://bucket/run"))


@pytest.mark.parametrize(
    "url", ["s3://bucket/run", "memory://run", "simplecache::s3://b", "gs://x"]
)
def test_outputs_that_are_local_take_no_url(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"a run is written to a local path, got '{url}'"):
        local_path(url, "a run")
    assert local_path("file:///a/b", "a run").as_posix() == "/a/b"
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    import os

    path = tmp_path / "config.toml"
    (tmp_path / "config.toml.tmp").write_text("the user's")
    write_file(path, "one")
    write_file(path, b"two")
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        write_file(path, "three" * 1000)
    assert path.read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.toml", "config.toml.tmp"]


def test_a_file_that_does_not_fit_is_named(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # to the writer, a full disk
    try:
        with pytest.raises(OSError, match=r"metrics\.json"):
            write_file(tmp_path / "metrics.json", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


def test_a_link_is_replaced_and_a_device_written_to(tmp_path):
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "link").symlink_to(target)
    write_file(tmp_path / "link", "new")
    assert target.read_text() == "kept" and (tmp_path / "link").read_text() == "new"
    code = "from pdmd.files import write_file; write_file('/dev/stdout', 'out')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "out"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\r\na dog\r\n"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'),
        ("a.text", "\ufeffkept inside\na cat\na dog"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_prompts(str(tmp_path / name))[-2:] == ["a cat", "a dog"]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(str(tmp_path / name))[-2:] == ["a cat", "a dog"]


def test_a_digest_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 100
    (tmp_path / "file").write_bytes(data)
    digest = FileDigest.of(data)
    assert digest == FileDigest(25600, hashlib.sha256(data).hexdigest())
    fs, path = locate(str(tmp_path / "file"))
    assert FileDigest.read(fs, path) == digest


@pytest.mark.parametrize(
    ("data", "damage"),
    [
        (b"12345", None),
        (b"123", "is truncated to 3 of 5 bytes"),
        (b"123456", "has 6 bytes instead of 5"),
        (b"12354", "does not match its SHA-256"),
        (None, "is missing"),
    ],
)
def test_damage_is_described(tmp_path, data, damage):
    expected = FileDigest.of(b"12345")
    fs, path = locate(str(tmp_path / "file"))
    if data is not None:
        (tmp_path / "file").write_bytes(data)
        assert expected.damage(FileDigest.of(data)) == damage
    assert expected.damage_at(fs, path) == damage


def test_the_digest_of_json_does_not_depend_on_the_order_of_keys():
    assert own_digest({"a": 1, "b": [2]}) == own_digest({"b": [2], "a": 1})
    assert own_digest({"a": 1}) != own_digest({"a": 2})


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_missing_folders_are_created(tmp_path, kind):
    root = f"memory://{tmp_path.name}" if kind == "memory" else str(tmp_path)
    fs, path = locate(f"{root}/new/deep/file")
    put(fs, path, b"data")
    assert fs.cat_file(path) == b"data"


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    fs, path = locate(str(tmp_path / "file"))
    write_whole(fs, path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "mv", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_whole(fs, path, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    write_whole(fs, path, b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_errors_of_file_systems_name_the_url():
    with pytest.raises(OSError, match="s3://b: x could not be read .KeyError: 'gone'."):
        with telling("s3://b", "x could not be read"):
            raise KeyError("gone")
    with pytest.raises(ValueError, match="^mine$"), telling("s3://b", "x could not be read"):
        raise ValueError("mine")
    assert say(OSError("full")) == "full" and say(TimeoutError("late")) == "TimeoutError: late"


def test_a_library_finds_only_the_known_protocols_meanwhile():
    from fsspec.registry import get_filesystem_class

    before = get_filesystem_class("reference")
    with locating_only_protocols():
        for name in ("reference", "filecache", "github", "sftp"):
            with pytest.raises(ValueError, match="not known"):
                get_filesystem_class(name)
        for name in ("file", "memory", "zip"):
            get_filesystem_class(name)
    assert get_filesystem_class("reference") is before


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("runs/a", "runs/a"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("my runs/a", "'my runs/a'"),
        ("a;rm b", "'a;rm b'"),
        ("-a/config.toml", "./-a/config.toml"),
    ],
)
def test_a_printed_path_is_one_word_of_a_shell(path, word):
    assert shell_word(path) == word and shlex.split(word)[0].removeprefix("./") == path


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_digested(tmp_path, kind):
    path = tmp_path / "weights"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    fs, place = locate(str(path))
    with pytest.raises(FileNotFoundError, match="weights"):
        FileDigest.read(fs, place)
