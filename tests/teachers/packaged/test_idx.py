"""IDX files: round trips, and errors of what is not one."""

import gzip
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdmd.teachers.packaged.idx import read_idx, write_idx


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), max_size=4), st.booleans(), st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, shape, zipped, seed):
    path = tmp_path_factory.mktemp("idx") / ("array.gz" if zipped else "array")
    array = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()
    write_idx(array, path)
    found = read_idx(path)
    assert found.dtype == torch.uint8 and torch.equal(found, array)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == zipped


def test_the_bytes_are_those_of_the_format(tmp_path):
    write_idx(torch.tensor([[1, 2, 3], [4, 5, 255]]).byte(), tmp_path / "array")
    written = (tmp_path / "array").read_bytes()
    assert written == b"\0\0\x08\x02" + struct.pack(">2I", 2, 3) + bytes([1, 2, 3, 4, 5, 255])


@settings(max_examples=40)
@given(st.integers(0, 3 + 4 + 5), st.booleans())
def test_a_truncated_file_is_an_error(tmp_path_factory, kept, zipped):
    path = tmp_path_factory.mktemp("idx") / "array"
    content = b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(5)
    path.write_bytes(gzip.compress(content[:kept]) if zipped else content[:kept])
    with pytest.raises(ValueError, match="is not a complete IDX file.*get it again"):
        read_idx(path)


@settings(max_examples=40)
@given(st.binary(max_size=64))
def test_other_bytes_are_an_error_or_an_array(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("idx") / "array"
    path.write_bytes(content)
    try:
        assert read_idx(path).dtype == torch.uint8
    except ValueError as error:
        assert str(path) in str(error)


HEAD = b"\0\0\x08\x01" + struct.pack(">I", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY", "starts with b'.x93NUM'"),
        (b"\0\0\x0d\x01" + bytes(8), "have the type 0x0d"),
        (HEAD + bytes(3), "states 2 values of shape .2,., it has more"),
        (HEAD + bytes(1), "states 2 values of shape .2,., it has 1"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "more than 2,147,483,648 values"),
        (gzip.compress(HEAD + bytes(2), mtime=0)[:-9], "get it again"),
        (gzip.compress(HEAD + bytes(2), mtime=0)[:-5] + b"\1" * 5, "get it again"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    path = tmp_path / "array"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_a_large_zipped_file_is_read_no_further_than_its_header_states(tmp_path):
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(HEAD + bytes(1 << 22)))
    with pytest.raises(ValueError, match="it has more"):
        read_idx(path)


def test_other_arrays_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"got torch.float32 with 1.*uint8"):
        write_idx(torch.ones(2), tmp_path / "array")
    with pytest.raises(ValueError, match="array is not a complete IDX file"):
        read_idx(tmp_path / "array")
