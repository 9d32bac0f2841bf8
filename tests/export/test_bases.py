"""Base pipelines: the components that are downloaded, and errors raised before that."""

import fnmatch
import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from pdmd import PhasePlan
from pdmd.distillation.adapters import adapted_parts
from pdmd.export import export_diffusers, export_lora
from tests.helpers.exporting import RANK, qwen_folder, student_of

TWO = PhasePlan.uniform(2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return qwen_folder(tmp_path_factory.mktemp("base") / "pipeline")


class Hub:
    """A hub of one pipeline, which records the requested files."""

    def __init__(self, source, place):
        self.source, self.place, self.calls = source, place / ("c0ffee" * 7)[:40], []

    def __call__(self, name, *, revision=None, allow_patterns=None, ignore_patterns=(), **more):
        if more.get("local_files_only"):
            return str(self.place)
        assert name == "someone/qwen" and revision in (None, self.place.name)
        got = []
        for path in sorted(p for p in self.source.rglob("*") if p.is_file()):
            at = str(path.relative_to(self.source))
            wanted = any(fnmatch.fnmatch(at, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(at, pattern) for pattern in ignore_patterns):
                (self.place / at).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.place / at)
                got.append(at)
        self.calls.append(got)
        return str(self.place)


@pytest.fixture
def hub(base, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    encoder = source / "text_encoder"
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "flax_model.msgpack"):
        (encoder / name).write_bytes(b"large")
    (source / "qwen_all_in_one.safetensors").write_bytes(b"large")
    (source / "LICENSE.txt").write_text("free")
    found = Hub(source, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    return found


@pytest.mark.parametrize("place", ["LICENSE", "vae/notes.txt", "tokenizer/more", "scheduler"])
def test_links_out_of_the_pipeline_are_not_followed(base, tmp_path, place):
    secret = tmp_path / "secret"
    (secret / "deep").mkdir(parents=True)
    (secret / "deep" / "key").write_text("SECRET")
    shutil.copytree(base, tmp_path / "base")
    student = student_of("qwen_image", TWO, base)
    link = tmp_path / "base" / place
    if place == "scheduler":  # replaced by the export, so not copied
        link = tmp_path / "base" / "vae" / "gone"
    link.symlink_to(secret if place == "tokenizer/more" else secret / "deep" / "key")
    named = str(link.relative_to(tmp_path / "base"))
    with pytest.raises(ValueError, match=f"links to files outside of it: {named}; replace"):
        export_diffusers(student, tmp_path / "out", base=str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()


def test_links_within_the_pipeline_and_to_the_hubs_blobs_are_copied(base, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shutil.copytree(base, snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (snapshot / "vae" / "config.json").rename(blobs / "0123")
    (snapshot / "vae" / "config.json").symlink_to("../../../blobs/0123")
    (snapshot / "vae" / "again.json").symlink_to("config.json")
    student = student_of("qwen_image", TWO, base)
    out = export_diffusers(student, tmp_path / "out", base=str(snapshot))
    assert (out / "vae" / "again.json").read_bytes() == (blobs / "0123").read_bytes()
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_only_the_copied_components_are_downloaded(hub, base, tmp_path):
    student = student_of("qwen_image", TWO, base)
    folder = export_diffusers(student, tmp_path / "out", base="someone/qwen")
    facts, parts = hub.calls
    assert set(facts) >= {"model_index.json", "LICENSE.txt", "transformer/config.json"}
    assert all(path.endswith((".json", ".txt", ".md")) for path in facts)
    assert "text_encoder/model.safetensors" in parts and "tokenizer/tokenizer.json" in parts
    assert not [path for path in parts if path.startswith(("transformer", "scheduler"))]
    for large in (".bin", ".fp16.safetensors", ".msgpack", "one.safetensors"):
        assert not [path for path in (*facts, *parts) if path.endswith(large)]
    assert (folder / "text_encoder" / "model.safetensors").exists()
    assert (folder / "LICENSE.txt").read_text() == "free"


@pytest.mark.parametrize("kind", ["diffusers", "lora"])
def test_another_pipeline_is_rejected_before_its_weights_are_downloaded(hub, base, tmp_path, kind):
    path = hub.source / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 5}))
    student = student_of("qwen_image", TWO, base, adapter=RANK)
    export = {"diffusers": export_diffusers, "lora": export_lora}[kind]
    with pytest.raises(ValueError, match="someone/qwen has num_layers = 5, and this student's 2"):
        export(student, tmp_path / "out", base="someone/qwen")
    assert len(hub.calls) == 1 and not (tmp_path / "out").exists()


def test_lora_exports_download_no_weights(hub, base, tmp_path):
    student = student_of("qwen_image", TWO, base, adapter=RANK)
    export_lora(student, tmp_path / "out", base="someone/qwen")
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    ("part", "shards"),
    [("vae", {}), ("text_encoder", {}), ("text_encoder", {"max_shard_size": "4KB"})],
)
def test_a_component_without_its_weights_is_named(base, tmp_path, part, shards):
    """A store of embeddings trains without the encoder's weights; an export cannot lack them."""
    shutil.copytree(base, tmp_path / "base")
    if shards:
        encoder = DiffusionPipeline.from_pretrained(base).text_encoder
        shutil.rmtree(tmp_path / "base" / part)
        encoder.save_pretrained(tmp_path / "base" / part, **shards)
    sorted((tmp_path / "base" / part).glob("*.safetensors"))[-1].unlink()
    student = student_of("qwen_image", TWO, tmp_path / "base")
    with pytest.raises(ValueError, match=f"base/{part} lacks weights, without which"):
        export_diffusers(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["one", "shards"])
def test_weights_in_a_variant_load_as_the_card_says(base, tmp_path, shards):
    """A teacher's pipeline may be saved in a variant, and the lines of a card name none."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", **shards)
    assert not list((tmp_path / "half").glob("*/*model.safetensors"))
    student = student_of("qwen_image", TWO, tmp_path / "half", adapter=RANK)
    folder = export_diffusers(student, tmp_path / "out")
    assert not list(folder.rglob("*fp16*"))
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    for part in ("text_encoder", "vae"):
        own, expected = (getattr(p, part).state_dict() for p in (loaded, pipeline))
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in own)
    export_lora(student, tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    line = next(text for text in card.splitlines() if text.startswith("pipe = DiffusionPipeline"))
    exec(line, {"DiffusionPipeline": DiffusionPipeline, "torch": torch})
    assert 'variant="fp16"' in line


@pytest.mark.parametrize("kind", ["diffusers", "lora"])
def test_weights_that_float16_cannot_hold_are_not_exported(base, tmp_path, kind):
    student = student_of("qwen_image", PhasePlan.uniform(1), base, adapter=RANK)
    layer = next(iter(adapted_parts(student.experts[0].denoiser)[0].factors().values()))
    layer.lora_A.weight[0, 0] = 1e9
    export = {"diffusers": export_diffusers, "lora": export_lora}[kind]
    with pytest.raises(ValueError, match="has a value of size .*bfloat16"):
        export(student, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    assert export(student, tmp_path / "out", dtype="bfloat16").is_dir()


@pytest.mark.parametrize("header", ["license: [", "license: 'a", "- one\n- two"])
def test_a_damaged_model_card_raises(base, tmp_path, header):
    folder = tmp_path / "pipeline"
    shutil.copytree(base, folder)
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# A model\n")
    student = student_of("qwen_image", TWO, base)
    with pytest.raises(
        ValueError, match="the header of .*README.md, which states the licence"
    ) as e:
        export_diffusers(student, tmp_path / "out", base=str(folder))
    assert "\n" not in str(e.value)
    (folder / "README.md").write_text("# A model without a header\n")
    export_diffusers(student, tmp_path / "out", base=str(folder))


@pytest.mark.parametrize(
    ("scheduler", "samples", "named"),
    [
        (
            "stock",
            4,
            "a QwenImagePipeline is called with the student's timesteps, so its stock",
        ),
        ("exact", 4, "the exact scheduler has no error to measure; remove --measure"),
    ],
)
def test_measuring_without_a_stock_error_raises(
    base, tmp_path, monkeypatch, scheduler, samples, named
):
    monkeypatch.setattr(
        "pdmd.export.diffusers.open_base_pipeline", lambda *a: pytest.fail("work began")
    )
    student = student_of("qwen_image", TWO, base)
    with pytest.raises(ValueError, match=named):
        export_diffusers(student, tmp_path / "out", scheduler=scheduler, measure=samples)
