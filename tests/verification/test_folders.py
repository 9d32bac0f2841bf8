"""Verification: a folder is as it was written, or each file that is not is named."""

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pdmd.cli.main import main
from pdmd.export.atomic_export import atomic_folder
from pdmd.teachers.conditioning.embeddings import embed
from pdmd.verification.folders import verify
from pdmd.verification.tensors import tensor_damage
from tests.helpers.checkpoints import extend, flip, truncate
from tests.helpers.stores import Encoder
from tests.helpers.tiny_runs import distill


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, an export and a store of embeddings, not to be written to."""
    folder = tmp_path_factory.mktemp("verified")
    assert distill(folder / "run") == 0
    with atomic_folder(folder / "export", overwrite=False) as draft:
        (draft / "unet").mkdir()
        save_file({"w": torch.randn(4, 4)}, draft / "unet" / "model.safetensors")
        (draft / "model_index.json").write_text("{}")
    return folder


def checkpoint_of(folder):
    return next(folder.glob("run/checkpoint/phase-*"))


def test_what_was_written_is_as_it_was_written(whole, capsys):
    for folder, kind, number in (
        (whole / "run", "run", 12),
        (whole / "run" / "student", "student", 3),
        (whole / "run" / "checkpoint", "checkpoints", 3),
        (checkpoint_of(whole), "checkpoint", 3),
        (whole / "export", "export", 3),
    ):
        assert main(["verify", str(folder)]) == 0
        assert f"({kind}): {number} files are as they were written" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [flip, truncate, extend])
@pytest.mark.parametrize(
    "pattern",
    [
        "run/student/student.json",
        "run/student/expert_2.safetensors",
        "run/checkpoint/*/*.distcp",
        "run/checkpoint/*/.metadata",
        "run/checkpoint/*/manifest.json",
        "export/unet/model.safetensors",
        "export/pdmd_export.json",
    ],
)
def test_one_damaged_file_is_one_line(whole, tmp_path, capsys, pattern, damage):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    path = next(folder.glob(pattern))
    damage(path)
    assert main(["verify", str(folder / pattern.split("/")[0])]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{path} ") and out.count("\n") == 1


def test_a_missing_expert_and_a_changed_place_are_found(whole, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(whole / "run" / "student", student)
    (student / "expert_1.safetensors").unlink()
    description = (student / "student.json").read_text()
    (student / "student.json").write_text(description.replace('"dim": 2', '"dim": 3'))
    assert verify(student).faults == [
        f"{student}/student.json was changed after it was written",
        f"{student}/expert_1.safetensors is missing",
    ]


def test_a_store_is_checked_shard_by_shard(tmp_path):
    store = tmp_path / "store"
    embed(Encoder(), ["a", "b", "c"], str(store), shard_size=2, progress=False)
    assert verify(store).faults == [] and verify(store).checked == 3
    flip(store / "embeddings-00001.safetensors")
    url = f"file://{store}"
    damaged = f"{store}/embeddings-00001.safetensors does not match its SHA-256"
    assert verify(url).faults == [damaged]


def test_a_folder_of_something_else_is_an_error(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no run, student" in capsys.readouterr().err


@given(
    st.dictionaries(st.text("ab", min_size=1), st.lists(st.integers(0, 3), max_size=3)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.integers(-3, 3),
)
def test_tensors_have_the_bytes_of_their_shapes(tmp_path_factory, shapes, dtype, more):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, path)
    assert tensor_damage(path) is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) + more] + bytes(max(0, more)))
    assert (tensor_damage(path) is None) == (more == 0)
