"""Files: digests detect damage, writes are atomic, and errors name the URL."""

import hashlib

import pytest

from pdmd.files import FileDigest, is_local, locate, own_digest, put, say, telling, write_whole


def test_a_url_is_located_without_a_trailing_slash(tmp_path):
    fs, path = locate(f"{tmp_path}/run/")
    assert path == f"{tmp_path}/run" and is_local(fs)
    fs, path = locate("memory://bucket/run/")
    assert path == "/bucket/run" and not is_local(fs)
    with pytest.raises(ValueError, match="nosuch://x is on an unknown file system .*give a path"):
        locate("nosuch://x")


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
