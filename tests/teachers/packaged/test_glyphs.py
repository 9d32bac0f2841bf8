"""The glyphs teacher: the packaged pipeline, its quality, and its evaluator."""

import filecmp
import json

import pytest
import torch
from safetensors.torch import load_file

from pdmd import sample_ode
from pdmd.cli.main import main
from pdmd.evaluation.evaluators import GlyphsEvaluator, LatentEvaluator, evaluator_for
from pdmd.teachers.packaged.glyph_text import build_tokenizer
from pdmd.teachers.packaged.glyph_world import NAMES, GlyphBank
from pdmd.teachers.packaged.glyphs import GLYPHS, GlyphsTeacher
from pdmd.teachers.packaged.pretraining_glyphs import pretrain_glyphs
from tests.helpers.tiny_families import run_qwen


@pytest.fixture(scope="module")
def teacher():
    return GlyphsTeacher.from_arguments()


def test_the_pipeline_is_small_and_loads_in_diffusers(teacher):
    from diffusers import QwenImagePipeline

    size = sum(path.stat().st_size for path in GLYPHS.rglob("*") if path.is_file())
    assert size < 20e6
    pipeline = QwenImagePipeline.from_pretrained(GLYPHS)
    pipeline.set_progress_bar_config(disable=True)
    condition, null = teacher.encode(NAMES[8:12]), teacher.encode([None])
    embeddings, mask = pipeline.encode_prompt(list(NAMES[8:12]))
    torch.testing.assert_close(condition["prompt"], embeddings)
    assert torch.equal(condition["mask"], mask.bool()) and not mask.all()  # digits are shorter
    shown = run_qwen(pipeline, teacher, condition, null, scale=2.0, steps=3)
    assert shown.isfinite().all()


def test_the_tokenizer_has_the_template_length_of_the_pipeline():
    tokenizer = build_tokenizer()
    words = tokenizer.convert_ids_to_tokens(tokenizer(NAMES[10]).input_ids)
    assert words == ["LATIN", "ĠCAPITAL", "ĠLETTER", "ĠA"]
    shipped = json.loads((GLYPHS / "tokenizer" / "tokenizer.json").read_text())
    assert shipped["model"]["vocab"] == dict(tokenizer.get_vocab())


def test_it_passes_the_conformance_check(capsys):
    assert main(["check", "glyphs"]) == 0


def test_samples_match_their_prompts_in_many_faces(teacher):
    prompts = [NAMES[i % 46] for i in range(184)]
    drawn = sample_ode(
        teacher,
        teacher.encode(prompts),
        steps=16,
        batch=len(prompts),
        generator=torch.Generator().manual_seed(0),
    )
    measure = GlyphsEvaluator(teacher, prompts, drawn, seed=0)
    row, real = measure(drawn), measure.real()
    assert row["accuracy"] > 0.85
    assert row["faces"] > 0.8 * real["faces"] and row["vendi"] > 0.7 * real["vendi"]


def test_the_evaluator_detects_mode_collapse_within_a_prompt():
    """One image per prompt is accurate, and not diverse."""
    bank, prompts = GlyphBank(2, seed=5), [NAMES[i % 46] for i in range(276)]
    character = torch.tensor([NAMES.index(prompt) for prompt in prompts])

    def pictures(seed):
        return bank.draw(276, torch.Generator().manual_seed(seed), character).pictures

    reference = pictures(1)

    class Pictures(GlyphsTeacher):  # images are their own latents
        def __init__(self):
            torch.nn.Module.__init__(self)

        def decode(self, x):
            return x

    plain = Pictures()
    measure = GlyphsEvaluator(plain, prompts, reference, seed=3)
    many, one = measure(pictures(2)), measure(pictures(2)[:46].repeat(6, 1, 1, 1))
    assert many["accuracy"] > 0.98 and one["accuracy"] > 0.95
    assert one["faces"] == pytest.approx(1) and many["faces"] > 4
    assert one["vendi"] == pytest.approx(1) and many["vendi"] > 1.7
    assert one["cosine"] == pytest.approx(1) and many["cosine"] < 0.9
    assert one["coverage"] < many["coverage"]


def test_other_prompts_are_evaluated_in_latent_space(teacher):
    x, condition = torch.randn(8, 4, 8, 8), teacher.encode(["a cat"] * 8)
    other = evaluator_for(teacher, condition, x, 0, prompts=["a cat"] * 8)
    assert isinstance(other, LatentEvaluator)
    own = evaluator_for(teacher, condition, x, 0, prompts=[NAMES[0]] * 8)
    assert isinstance(own, GlyphsEvaluator)


def test_pretraining_writes_the_pipeline_and_resumes(tmp_path):
    few = {"updates": 2, "variants": 1, "pictures": 100, "progress": False}
    folder = pretrain_glyphs(tmp_path / "one", **few)
    assert {p.name for p in folder.iterdir()} == {p.name for p in GLYPHS.iterdir()} - {"README.md"}
    for part in ("vae", "text_encoder", "transformer"):
        made, shipped = (next((f / part).glob("*.safetensors")) for f in (folder, GLYPHS))
        shapes = [{k: v.shape for k, v in load_file(p).items()} for p in (made, shipped)]
        assert shapes[0] == shapes[1]
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    again = pretrain_glyphs(tmp_path / "two", **few)
    next((folder / "transformer").glob("*.safetensors")).unlink()
    pretrain_glyphs(folder, **few)
    for path, changed in kept.items():
        assert filecmp.cmp(path, again / path.relative_to(folder), shallow=False)
        assert path.parent.name == "transformer" or path.stat().st_mtime_ns == changed
    assert GlyphsTeacher.from_pretrained(folder).encode([NAMES[0]])["prompt"].shape[-1] == 64


def test_pretraining_rejects_a_folder_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"has thesis.tex.*choose another --out"):
        pretrain_glyphs(tmp_path)
    assert main(["pretrain", "glyphs", "--out", str(tmp_path)]) == 2
