"""Students of others: what their folders name is used only where the user says so."""

import json

import pytest

from pdmd import MixtureTeacher, MlpDenoiser, OdeExpert, PhasePlan, Student
from pdmd.cli.main import main
from pdmd.distillation.student_folders import source_teacher

WORLD = {"dim": 2, "modes": 2, "classes": 2}
NETWORK = {"dim": 2, "classes": 2, "width": 8, "depth": 1, "kind": "velocity"}
QWEN = {
    "height": 64,
    "width": 48,
    "num_layers": 1,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "latent_channels": 4,
}


@pytest.fixture
def folder(tmp_path):
    teacher = MixtureTeacher.random(**WORLD)
    network = MlpDenoiser(schedule=teacher.schedule, **NETWORK)
    source = {
        "teacher": "mixture",
        "arguments": WORLD,
        "network": {"name": "mlp", "arguments": NETWORK},
    }
    Student([OdeExpert(network, p) for p in PhasePlan.uniform(2)], source=source).save(
        tmp_path / "student"
    )
    return tmp_path / "student"


def edit(folder, **source):
    path = folder / "student.json"
    content = json.loads(path.read_text())
    content["source"] |= source
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({**QWEN, "embeddings": "s3://bucket/prompts"}, "embeddings = 's3://bucket/prompts'"),
        ({**QWEN, "embeddings": "memory://a", "prompts": "https://x/y.txt"}, "prompts = 'https"),
        ({**QWEN, "embeddings": "reference://::data:application/json,{}"}, "reference://"),
        ({**QWEN, "embeddings": "/a/store", "cache": "/home/x/.ssh"}, "cache = '/home/x/.ssh'"),
        ({**QWEN, "cache_dir": "here"}, "cache_dir = 'here'"),
        ({**WORLD, "plugins": ["evil"]}, "plugins = 'evil'"),
        ({**WORLD, "deep": {"er": ["hf://a/b"]}}, "deep.er = 'hf://a/b'"),
    ],
)
def test_places_are_named_and_not_used(folder, tmp_path, capsys, monkeypatch, arguments, named):
    import fsspec.core

    def opened(*arguments, **named):
        raise AssertionError(f"{arguments} reached fsspec")

    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    edit(folder, teacher="qwen_image", arguments=arguments)
    with pytest.raises(ValueError, match="only if you trust it") as caught:
        Student.load(folder)
    assert named in str(caught.value) and "--trust-source" in str(caught.value)
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ["sample", str(folder), "--out", str(tmp_path / "x.safetensors")],
        ["evaluate", str(folder)],
        ["export", str(folder), str(tmp_path / "out")],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err.strip()
        assert named in error and "--trust-source" in error and "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_all_places_are_named_at_once(folder):
    edit(folder, arguments={**WORLD, "embeddings": "s3://a", "prompts": "gs://b", "cache": "c"})
    with pytest.raises(
        ValueError, match=r"embeddings = 's3://a', prompts = 'gs://b', cache = 'c'"
    ):
        Student.load(folder)


def test_trust_and_the_users_own_arguments_let_places_be_used(folder, tmp_path):
    from pdmd.teachers.conditioning.embeddings import embed
    from tests.helpers.tiny_families import family

    teacher = family("qwen_image")
    url = f"memory://{tmp_path.name}"
    embed(teacher.text, ["random 0", "random 1"], url, progress=False)
    there = {"embeddings": url, "cache": str(tmp_path / "cache")}
    width = embed_width(teacher)
    edit(folder, teacher="qwen_image", arguments={**QWEN, "joint_attention_dim": width, **there})
    with pytest.raises(ValueError, match=r"embeddings = 'memory://.*, cache = "):
        source_teacher(folder)
    with pytest.raises(ValueError, match=r"trust it: cache = "):
        source_teacher(folder, {"embeddings": url})
    assert not (tmp_path / "cache").exists()
    for given in (
        source_teacher(folder, trust_source=True),
        source_teacher(folder, there),
    ):
        assert list(given.prompts) == ["random 0", "random 1"]


def embed_width(teacher):
    return int(teacher.encode(["random 0"])["prompt"].shape[-1])


def test_a_chain_is_rejected_even_where_the_folder_is_trusted(folder):
    edit(
        folder,
        teacher="qwen_image",
        arguments={**QWEN, "embeddings": "reference://::data:application/json,{}"},
    )
    with pytest.raises(ValueError, match="chains file systems"):
        Student.load(folder, trust_source=True)


def test_local_folders_and_given_teachers_need_no_trust(folder):
    Student.load(folder)
    edit(folder, arguments={**WORLD, "embeddings": "s3://a"})
    student = Student.load(folder, teacher=MixtureTeacher.random(**WORLD))
    assert len(student.experts) == 2


def test_saving_leaves_the_users_folders_alone(folder, tmp_path):
    student = Student.load(folder)
    for name in ("x.partial", "x.tmp", ".x.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    student.save(tmp_path / "x")
    student.save(tmp_path / "x")
    assert {p.name for p in tmp_path.iterdir()} == {
        "x",
        "student",
        "x.partial",
        "x.tmp",
        ".x.partial",
    }
    assert (tmp_path / "x.partial" / "mine").read_text() == "mine"


def test_a_failed_save_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError("No space left on device")

    student = Student.load(folder)
    monkeypatch.setattr("pdmd.distillation.students.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        student.save(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_student_is_not_saved_to_a_url(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a student is written to a local path"):
        Student.load(folder).save("s3://bucket/student")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


# --- small files that ask for much


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"width": 10**6}, "would have|does not fit the network"),
        ({"width": 10**5, "depth": 30}, "would have"),
        ({"depth": 10**7}, "depth = 10000000 of 'mlp' does not fit"),
        ({"depth": 200, "width": 2000}, "would have"),
        ({"dim": 10**9}, "dim = 1000000000 of 'mlp' does not fit"),
        ({"classes": 10**12}, "classes = 1000000000000 of"),
        ({"width": 9}, r"layers.0.bias is .8. in the file and .9. in the 'mlp'"),
        ({"depth": 2}, "in the file and"),
        ({"width": -5}, "width must be at least 1"),
    ],
)
def test_a_network_beyond_the_weights_is_not_built(folder, monkeypatch, network, told):
    import torch

    path = folder / "student.json"
    content = json.loads(path.read_text())
    content["source"]["network"]["arguments"] |= network
    path.write_text(json.dumps(content))
    real = torch.nn.Linear.reset_parameters

    def watched(layer):
        assert layer.weight.is_meta or layer.weight.numel() < 10**6, "memory was taken"
        real(layer)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", watched)
    with pytest.raises(ValueError, match=told) as caught:
        Student.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'qwen_image' would have [0-9,]+ numbers, and the files beside it hold"),
        ({**QWEN, "num_layers": 10**8}, "num_layers = 100000000 of"),
        ({**QWEN, "num_attention_heads": 4000}, "would have"),
        ({**QWEN, "height": 10**9}, "height = 1000000000 of"),
    ],
)
def test_a_random_teacher_beyond_the_weights_is_not_built(folder, arguments, told):
    edit(folder, teacher="qwen_image", arguments=arguments)
    with pytest.raises(ValueError, match=told):
        Student.load(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff" * 8,
        (10**6).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (13).to_bytes(8, "little") + b'{"a":{"b":1}}',
        (80_000).to_bytes(8, "little") + b"[" * 80_000,
    ],
)
def test_a_damaged_header_is_one_line(folder, header):
    (folder / "expert_1.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match="expert_1.safetensors is damaged") as caught:
        Student.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 90 + "1" + "}" * 90, "", "\xff", "[]"])
def test_a_description_that_is_no_student_is_one_line(folder, text):
    (folder / "student.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="student.json is damaged") as caught:
        Student.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_relative_places_are_found_from_the_students_folder(folder, tmp_path, monkeypatch):
    from pdmd.distillation.student_folders import found_place

    (tmp_path / "models" / "q").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found_place("folder", "models/q", folder) == str(tmp_path / "models" / "q")
    for key, value in (
        ("folder", "models/other"),
        ("folder", "../models/q"),
        ("folder", "s3://models/q"),
        ("folder", "/models/q"),
        ("name", "models/q"),
        ("folder", 3),
    ):
        assert found_place(key, value, folder) == value
    monkeypatch.chdir(tmp_path)
    assert found_place("folder", "models/q", folder) == "models/q"


def test_a_disk_that_is_full_while_saving_is_an_os_error(folder, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    student = Student.load(folder)
    monkeypatch.setattr("pdmd.distillation.students.write_tensors", full)
    with pytest.raises(OSError, match="could not be written to .*No space left"):
        student.save(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
