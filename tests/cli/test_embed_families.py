"""Model families with stored embeddings: the same bits, without a text encoder."""

import json
import shutil

import pytest
import torch

from pdmd import Guided, PhasePlan
from pdmd.cli.main import main
from pdmd.teachers import PromptEmbeddings, QwenImageTeacher, RoutedTeacher, WanTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings, embed
from pdmd.teachers.conditioning.fingerprints import encoder_fingerprint
from tests.helpers.distilling import distill
from tests.helpers.tiny_encoders import qwen_text, t5
from tests.helpers.tiny_families import QWEN, WAN, family, qwen_pipeline, wan_pipeline

PROMPTS = ["a cat", "a dog that is far from home", "two", "a cat and a dog", "nothing"]
SIZE = {"height": 64, "width": 48, "dtype": "float32"}


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    text = qwen_text(QWEN["joint_attention_dim"])
    qwen_pipeline(family("qwen_image"), text=text).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    wan_pipeline(family("wan_2.2_a14b"), text=t5(WAN["text_dim"])).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def no_encoder(*arguments, **more):
    raise AssertionError("a text encoder was loaded")


def embedded(folder, tmp_path, *words, family="qwen_image", prompts=PROMPTS, size=SIZE):
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    pairs = [str(word) for pair in {"folder": folder, **size}.items() for word in pair]
    out = str(tmp_path / "store")
    command = ["embed", str(tmp_path / "prompts.txt"), "--teacher", family, "--out", out]
    return main([*command, "--arguments", *pairs, "--no-progress", "--batch-size", "2", *words])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_distillation_from_a_store_equals_distillation_with_the_encoder(
    qwen_folder, tmp_path, monkeypatch, scale
):
    assert embedded(qwen_folder, tmp_path, "--shard-size", "4") == 0
    live = QwenImageTeacher.from_pretrained(qwen_folder, prompts=PROMPTS, **SIZE)
    live.text.batch_size = 2
    settings = {"updates": 2, "fake_updates": 1, "batch_size": 3}
    plan = PhasePlan.uniform(2)
    whole = distill(Guided(live, scale), plan, **settings)
    monkeypatch.setattr("pdmd.teachers.families.text_pipelines.load_text_encoder", no_encoder)
    monkeypatch.setattr("pdmd.teachers.families.text.load_text_encoder", no_encoder)
    arguments = {"folder": str(qwen_folder), "embeddings": str(tmp_path / "store"), **SIZE}
    stored = teachers.get("qwen_image")(**arguments)
    assert list(stored.prompts) == PROMPTS
    monkeypatch.setattr(StoredEmbeddings, "encode", only_one_row(StoredEmbeddings.encode))
    again = distill(Guided(stored, scale), plan, **settings)
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key])
    assert list(again.prompts) == PROMPTS
    assert stored.text._opened is not None
    for rows, expected in (
        (again.encode([None]), live.encode([None])),
        (stored.conditions(PROMPTS)[:], live.encode(PROMPTS)),
    ):
        assert torch.equal(rows["prompt"], expected["prompt"])
        assert torch.equal(rows["mask"], expected["mask"])


def only_one_row(encode):
    def checked(self, prompts):
        assert len(prompts) <= 2, "all prompts were loaded into memory"
        return encode(self, prompts)

    return checked


def test_a_run_from_the_command_line_reads_the_store(qwen_folder, tmp_path, monkeypatch, capsys):
    words = ["--dtype", "bfloat16", "--limit", "3"]
    assert embedded(qwen_folder, tmp_path, *words) == 0
    assert f"3 prompts, 0.0 MB -> {tmp_path / 'store'}" in capsys.readouterr().out
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert index["entries"]["prompt"] == {"dtype": "bfloat16", "shape": [None, 16]}
    assert index["encoder"] == encoder_fingerprint(qwen_folder)
    assert (index["teacher"], index["prompts"]) == ("qwen_image", 3)
    monkeypatch.setattr("pdmd.teachers.families.text_pipelines.load_text_encoder", no_encoder)
    monkeypatch.setattr("pdmd.teachers.families.text.load_text_encoder", no_encoder)
    pairs = {"folder": qwen_folder, "embeddings": tmp_path / "store", **SIZE}
    pairs["cache"] = tmp_path / "elsewhere"
    run = ["distill", "digits", "--teacher.name", "qwen_image", "--out", str(tmp_path / "run")]
    run += ["--teacher.arguments", *(str(word) for pair in pairs.items() for word in pair)]
    run += ["--train.updates=1", "--train.fake-updates=1", "--train.batch-size=2"]
    run += ["--plan.phases=2", "--teacher.guidance", "2.0", "--evaluate.samples=100"]
    assert main([*run, "--evaluate.teacher-steps=1", "--no-progress"]) == 0
    assert any((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "cache" / "pdmd").exists()


def test_wan_embeddings_are_stored_without_padding(wan_folder, tmp_path):
    size = {"height": 32, "width": 16, "frames": 9, "dtype": "float32"}
    assert embedded(wan_folder, tmp_path, family="wan", size=size) == 0
    arguments = {"folder": str(wan_folder), "embeddings": str(tmp_path / "store"), **size}
    stored = teachers.get("wan")(**arguments)
    assert isinstance(stored, RoutedTeacher)
    live = WanTeacher.from_pretrained(wan_folder, prompts=PROMPTS, **size)
    expected = live.encode([*PROMPTS, None])["prompt"]
    found = stored.encode([*PROMPTS, None])["prompt"]
    assert found.shape == (6, 512, 32) and torch.equal(found, expected)
    rows = stored.conditions(stored.prompts)[torch.tensor([4, 0])]
    assert torch.equal(rows["prompt"], expected[[4, 0]])
    assert sum(p.stat().st_size for p in (tmp_path / "store").iterdir()) < 20_000


def test_embeddings_of_another_encoder_raise(qwen_folder, tmp_path):
    assert embedded(qwen_folder, tmp_path) == 0
    other = tmp_path / "other"
    shutil.copytree(qwen_folder, other)
    arguments = {"folder": str(other), "embeddings": str(tmp_path / "store"), **SIZE}
    teachers.get("qwen_image")(**arguments)  # a copy is the same encoder
    from safetensors.torch import load_file, save_file

    path = next((other / "text_encoder").glob("*.safetensors"))
    weights = load_file(path)
    weights[sorted(weights)[3]] += 1e-3
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="by another encoder .*; embed the prompts with this"):
        teachers.get("qwen_image")(**arguments)
    with pytest.raises(ValueError, match="computed by another encoder"):
        QwenImageTeacher.from_pretrained(
            other, embeddings=StoredEmbeddings(tmp_path / "store"), **SIZE
        )
    shutil.rmtree(other / "text_encoder")  # no encoder to compare with
    assert list(teachers.get("qwen_image")(**arguments).prompts) == PROMPTS


def test_a_fingerprint_depends_on_the_encoder_only(qwen_folder, tmp_path):
    first = encoder_fingerprint(qwen_folder)
    copy = tmp_path / "copy"
    _, encoder = qwen_text(QWEN["joint_attention_dim"])
    shutil.copytree(qwen_folder, copy)
    shutil.rmtree(copy / "text_encoder")
    encoder.save_pretrained(copy / "text_encoder", max_shard_size="20KB")
    assert len(list((copy / "text_encoder").glob("*.safetensors"))) > 1
    assert encoder_fingerprint(copy) == first  # independent of the sharding of weights
    config = copy / "text_encoder" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "transformers_version": "0", "_name_or_path": "x"}))
    shutil.rmtree(copy / "transformer")
    assert encoder_fingerprint(copy) == first
    config.write_text(json.dumps({**content, "rms_norm_eps": 1.0}))
    assert encoder_fingerprint(copy) not in (first, None)
    config.write_text(json.dumps(content))
    path = next((copy / "tokenizer").glob("tokenizer.json"))
    path.write_text(path.read_text().replace("<|im_end|>", "<|im_fin|>"))
    assert encoder_fingerprint(copy) not in (first, None)
    assert encoder_fingerprint(tmp_path / "nowhere") is None
    path = next((copy / "text_encoder").glob("*.safetensors"))
    path.write_bytes(b"\x09" + bytes(20))
    with pytest.raises(ValueError, match="safetensors is damaged"):
        encoder_fingerprint(copy)


def test_teachers_with_random_weights_accept_a_store(tmp_path):
    source = PromptEmbeddings.random(4, length=7, dim=16, masked=True)
    embed(source, source.prompts, str(tmp_path / "store"), progress=False)
    size = {k: v for k, v in QWEN.items() if k not in ("text_length", "random_prompts")}
    teacher = teachers.get("qwen_image")(embeddings=str(tmp_path / "store"), **size)
    assert list(teacher.prompts) == [f"random {i}" for i in range(4)]
    for name, more, taken in (
        ("qwen_image", {**size, "joint_attention_dim": 24}, 24),
        ("wan", {k: v for k, v in WAN.items() if k not in ("text_length", "random_prompts")}, 32),
    ):
        with pytest.raises(ValueError, match=f"store have tokens of 16 .* takes {taken}: another"):
            teachers.get(name)(embeddings=str(tmp_path / "store"), **more)
    (tmp_path / "some.txt").write_text("random 2\nrandom 0\n")
    chosen = teachers.get("qwen_image")(
        embeddings=str(tmp_path / "store"), prompts=str(tmp_path / "some.txt"), **size
    )
    assert list(chosen.prompts) == ["random 2", "random 0"]
    rows = chosen.conditions(chosen.prompts)[:]
    assert torch.equal(rows["prompt"][1], chosen.encode(["random 0", "random 2"])["prompt"][0])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["PROMPTS", "--out", "store"], "missing --teacher"),
        (["PROMPTS", "--teacher", "qwen_image"], "missing --out"),
        (["--teacher", "qwen_image"], "missing the prompts"),
        (["PROMPTS", "--teacher", "cat", "--out", "store"], "unknown teacher 'cat'"),
        (["PROMPTS", "--teacher", "digits", "--out", "store"], "reads no text"),
        (["PROMPTS", "--teacher", "qwen_image", "--out", "store"], "--arguments folder"),
        (["nowhere.txt", "--teacher", "FOLDER", "--out", "store"], "nowhere.txt does not exist"),
        (
            ["PROMPTS", "--teacher", "FOLDER", "--out", "store", "--batch-size", "0"],
            "--batch-size",
        ),
        (["PROMPTS", "--teacher", "FOLDER", "--out", "store", "--dtype", "int8"], "got 'int8'"),
        (["PROMPTS", "--teacher", "FOLDER", "--out", "store", "--device", "tpu"], "'tpu'"),
        (["PROMPTS", "--teacher", "FOLDER", "--out", "nosuch://store"], "nosuch"),
    ],
)
def test_invalid_input_is_one_line(qwen_folder, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    full = []
    for word in words:
        more = {"PROMPTS": ["prompts.txt"]}.get(word, [word])
        if word == "FOLDER":
            more = ["qwen_image", "--arguments", "folder", str(qwen_folder), "height", "64"]
        full += more
    assert main(["embed", *full]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.txt"]


def test_repeated_prompts_are_skipped_with_a_notice(qwen_folder, tmp_path, capsys):
    assert embedded(qwen_folder, tmp_path, prompts=["a", "b", "a", "", "b"]) == 0
    assert "2 of 4 prompts are duplicates; left out" in capsys.readouterr().out
    assert list(StoredEmbeddings(tmp_path / "store").prompts) == ["a", "b"]


def test_an_interrupted_embed_prints_how_to_resume(qwen_folder, tmp_path, monkeypatch, capsys):
    from pdmd.teachers.conditioning.prompts import EncodedText

    encode, seen = EncodedText.encode, []

    def failing(self, prompts):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(prompts)
        return encode(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(EncodedText, "encode", failing)
        assert embedded(qwen_folder, tmp_path, "--shard-size", "2") == 130
    assert f"prompts are in {tmp_path / 'store'}" in capsys.readouterr().err
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 2
    monkeypatch.setattr(EncodedText, "encode", lambda s, p: seen.append(p) or encode(s, p))
    assert embedded(qwen_folder, tmp_path, "--shard-size", "2") == 0
    assert seen[2:] == [["nothing"], [None]]
