"""Qwen-Image-Edit against its pipeline: tokens of the image, guidance, encodings, folders."""

import json

import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus

from pdmd import Guided, PhasePlan, Student, sample
from pdmd.conformance import check
from pdmd.teachers import ImagePrompt, QwenImageEditTeacher, QwenImageTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings, embed
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from pdmd.teachers.families.qwen_image_edit import IMAGE_TOKEN, scaled_size
from pdmd.teachers.families.tiny.encoders import qwen_encoder, qwen_image_processor
from pdmd.teachers.families.tiny.pipelines import IMAGE_PROMPTS, write_tiny_pipeline
from pdmd.teachers.families.tiny.vaes import qwen_vae
from tests.helpers.distilling import distill
from tests.helpers.editing import SIZE, arguments, edit, run
from tests.helpers.tiny_encoders import picture
from tests.helpers.tiny_families import close, noise, ode, scheduler
from tests.helpers.tiny_pipelines import bare

TEXTS = ["a cat", "make it a drawing of a dog"]


def processor(tokenizer, pictures):
    """Does what the pipeline's own does, which needs torchvision."""

    def process(*, text, images, padding, return_tensors):
        from transformers import BatchFeature

        seen = pictures(images=images, return_tensors="pt")
        number = int(seen["image_grid_thw"][0].prod()) // 4
        words = [line.replace(IMAGE_TOKEN, number * IMAGE_TOKEN) for line in text]
        inputs = tokenizer(words, padding=padding, return_tensors=return_tensors)
        return BatchFeature({**seen, **inputs})

    return process


def pipeline_of(teacher, tokenizer=None, encoder=None):
    pipeline = bare(
        "QwenImageEditPlusPipeline",
        transformer=teacher.backbone,
        scheduler=scheduler(shift=2.0),
        vae=qwen_vae(teacher.latent_shape[0]),
        tokenizer=tokenizer,
        text_encoder=encoder,
        processor=None,
    )
    pipeline.processor = tokenizer and processor(tokenizer, qwen_image_processor())
    return pipeline


@pytest.mark.parametrize("zero", [True, False], ids=["2511", "2509"])
def test_it_conforms(zero):
    report = check(edit(zero), skip=["score"])
    assert report.passed, str(report)


@pytest.mark.parametrize(("zero", "scale"), [(True, 1.0), (True, 4.0), (False, 4.0)])
def test_it_samples_as_its_pipeline_does(zero, scale):
    teacher = edit(zero)
    pipeline = pipeline_of(teacher)
    condition = teacher.encode(teacher.prompts[:2])
    start, expected = noise(teacher, 2), []
    for i in range(2):
        row = condition[i : i + 1]
        pipeline._encode_vae_image = lambda image, generator, row=row: row["reference"][:, :, None]
        given = {
            "prompt_embeds": row["prompt"],
            "prompt_embeds_mask": row["mask"],
            "negative_prompt_embeds": row["null_prompt"][:, 0],
        }
        image = picture(0).resize((64, 32))
        expected.append(run(pipeline, teacher, image, start[i : i + 1], scale=scale, **given))
    times = pipeline.scheduler.sigmas.tolist()
    close(ode(Guided(teacher, scale), condition, times), torch.cat(expected))


def test_a_folder_encodes_guides_and_decodes_as_its_pipeline_does(tmp_path):
    folder = write_tiny_pipeline("qwen_image_edit", tmp_path / "pipeline")
    lines = [{"prompt": text, "image": f"{i}.png"} for i, text in enumerate(TEXTS)]
    for i in range(2):
        picture(i).resize((128, 64)).save(tmp_path / f"{i}.png")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = {"folder": str(folder), "dtype": "float32", **SIZE}
    teacher = teachers.get("qwen_image_edit")(prompts=str(tmp_path / "prompts.jsonl"), **options)
    condition = teacher.encode(teacher.prompts)
    tokenizer, model = qwen_encoder(16, sees=True)
    inner = model.forward

    def forward(*, input_ids, **given):  # as the pipeline meant, with the kinds of its tokens
        kinds = (input_ids == model.config.image_token_id).int()
        return inner(input_ids=input_ids, mm_token_type_ids=kinds, **given)

    model.forward = forward
    pipeline = pipeline_of(teacher, tokenizer, model)
    start = noise(teacher, 2)
    latents = ode(Guided(teacher, 3.0), condition, times_of(pipeline, 3))
    for i, text in enumerate(TEXTS):
        image = picture(i).resize((128, 64))
        given = {"prompt": text, "negative_prompt": " ", "scale": 3.0}
        close(latents[i : i + 1], run(pipeline, teacher, image, start[i : i + 1], **given), 5e-5)
    pixels = run(pipeline, teacher, image, start[1:], output="pt", **given)
    close(teacher.decode(latents[1:]), pixels, 5e-5)
    null = teacher.encode([None])
    assert "reference" not in null and null.batch_size == (1,)
    with pytest.raises(ValueError, match="'reference' and 'null_prompt' is missing"):
        teacher(start, 0.5)
    with pytest.raises(ValueError, match="no negative prompt 'blurry'"):
        teacher.encode_negative("blurry")
    named = teachers.get("qwen_image_edit")(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}


def times_of(pipeline, steps):
    pipeline.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    return pipeline.scheduler.sigmas.tolist()


def test_positions_of_images_have_three_axes(tmp_path):
    folder = write_tiny_pipeline("qwen_image_edit", tmp_path)
    encoders = QwenImageEditTeacher.load_encoder(folder, dtype="float32")
    wide, tall = (picture(0).resize(size) for size in ((112, 56), (56, 112)))
    seen = []
    hook = encoders.pipeline.text_encoder.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    for image in (wide, tall):
        encoders.encode("a", image)
    hook.remove()
    axes = [ids[-3:, 0].max(1).values - ids[-3:, 0].min(1).values for ids in seen]
    assert all(ids.shape[0] in (3, 4) for ids in seen)
    assert torch.equal(axes[0], axes[1])  # the text goes on after the longest side
    assert not torch.equal(seen[0][-2], seen[1][-2])  # rows and columns differ
    assert (seen[0][-3:, 0] != seen[0][-1:, 0]).any()


def test_it_is_distilled_on_stored_embeddings(tmp_path):
    folder = write_tiny_pipeline("qwen_image_edit", tmp_path / "pipeline")
    prompts = read_image_prompts(str(folder / IMAGE_PROMPTS))
    loaded = QwenImageEditTeacher.from_pretrained(folder, prompts=prompts, dtype="float32", **SIZE)
    embed(loaded.text, prompts, str(tmp_path / "store"), teacher="qwen_image_edit")
    stored = StoredEmbeddings(str(tmp_path / "store"))
    options = {"embeddings": stored, "dtype": "float32", **SIZE}
    again = QwenImageEditTeacher.from_pretrained(folder, **options)
    x = noise(loaded, 4)
    with torch.no_grad():
        first, second = (Guided(t, 3.0)(x, 0.5, t.encode(prompts)).value for t in (loaded, again))
    close(first, second)
    with pytest.raises(ValueError, match=r"have images of shape \(4, 4, 8\), and images of 64 x"):
        QwenImageEditTeacher.from_pretrained(folder, **{**options, "reference_height": 64})
    student = distill(
        Guided(again, 3.0), PhasePlan.uniform(2), updates=1, fake_updates=1, batch_size=2
    )
    x = sample(student, again.encode(prompts))
    assert x.shape == (4, *again.latent_shape) and x.isfinite().all()


def test_a_student_is_saved_and_loaded_to_the_same_bits(tmp_path):
    source = {"teacher": "qwen_image_edit", "arguments": arguments()}
    student = distill(edit(), PhasePlan.uniform(2), source=source, updates=1, batch_size=2)
    student.save(tmp_path)
    loaded = Student.load(tmp_path)
    condition = loaded.encode(loaded.prompts)
    first, second = (
        sample(one, condition, generator=torch.Generator().manual_seed(0))
        for one in (student, loaded)
    )
    assert torch.equal(first, second)


def test_sizes_are_those_of_the_pipeline_and_folders_go_to_their_teacher(tmp_path):
    for height, width in ((1024, 1024), (768, 1344), (1000, 600)):
        for area in (384**2, 1024**2):
            expected = edit_plus.calculate_dimensions(area, width / height)
            assert scaled_size(height, width, area) == expected[::-1]
    folder = write_tiny_pipeline("qwen_image_edit", tmp_path)
    with pytest.raises(ValueError, match=r"is a QwenImageEditPlusPipeline, which calls"):
        QwenImageTeacher.from_pretrained(folder)
    with pytest.raises(ValueError, match="given together or not"):
        QwenImageEditTeacher.from_config(**{**arguments(), "reference_height": None})
    with pytest.raises(ValueError, match="must be an ImagePrompt"):
        QwenImageEditTeacher.from_pretrained(folder, prompts=["a cat"])
    assert ImagePrompt("a", picture(0)).picture().mode == "RGB"
