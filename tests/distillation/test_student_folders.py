"""Student folders: damage is detected, and other files are kept."""

import json
import random

import pytest
import torch

from pdmd import Student
from pdmd.cli.main import main
from tests.helpers.mutations import mutate
from tests.helpers.small_runs import small, untrained_student


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_mutated_description_raises_or_loads(tmp_path, capsys):
    folder = tmp_path / "student"
    untrained_student(steps=2).save(folder)
    path, rng, rejected = folder / "student.json", random.Random(0), 0
    good = json.loads(path.read_text())
    for i in range(600):
        path.write_text(json.dumps(mutate(good, rng)))
        try:
            Student.load(folder)
            continue
        except ValueError as error:
            rejected += 1
            assert 0 < len(str(error)) < 700
        if i % 6 == 0:
            out = tmp_path / "x.safetensors"
            assert main(["sample", str(folder), "--n", "2", "--out", str(out)]) == 2
            error = capsys.readouterr().err.strip()
            assert error.startswith("pdmd: error: ") and "\n" not in error and not out.exists()
    assert rejected > 400


@pytest.mark.parametrize("name", ["student.json", "expert_1.safetensors"])
def test_flipped_bytes_raise(tmp_path, name):
    folder, rng = tmp_path / "student", random.Random(1)
    untrained_student().save(folder)
    content = (folder / name).read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        if name == "student.json":  # a flipped bit could give another valid number
            damaged[rng.randrange(len(damaged))] = 0xFF
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Student.load(folder)


def test_saving_again_keeps_other_files(tmp_path):
    folder = tmp_path / "student"
    untrained_student().save(folder)
    (folder / "notes.md").write_text("mine")
    (folder / "expert_1_best.safetensors").write_text("mine")
    (folder / "expert_9.safetensors").write_bytes(b"left from a longer plan")
    other = untrained_student(seed=1)
    other.save(folder)
    assert {p.name for p in folder.iterdir()} == {
        "student.json",
        "expert_1.safetensors",
        "expert_2.safetensors",
        "expert_1_best.safetensors",
        "notes.md",
    }
    loaded = Student.load(folder)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "source", [3, [], {"teacher": 3}, {"teacher": "mixture", "arguments": {"cat": 1}}, {}]
)
def test_damaged_sources_raise(tmp_path, source):
    small().save(tmp_path / "student")
    path = tmp_path / "student" / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": source}))
    with pytest.raises(ValueError, match="damaged"):
        Student.load(tmp_path / "student")


def test_damaged_folders_raise(tmp_path):
    folder = tmp_path / "student"
    small().save(folder)
    with pytest.raises(ValueError, match="no student.json"):
        Student.load(tmp_path / "nothing")
    path = folder / "expert_2.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"expert_2.safetensors is damaged"):
        Student.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"expert_2.safetensors is missing"):
        Student.load(folder)
    description = json.loads((folder / "student.json").read_text())
    for key in description:
        broken = {k: v for k, v in description.items() if k != key}
        (folder / "student.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="damaged"):
            Student.load(folder)
    (folder / "student.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Student.load(folder)
