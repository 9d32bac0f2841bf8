"""Prompts of a text and a first image, and the families that read them."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image
from tensordict import TensorDict

from pdmd import Guided, PhasePlan, sample
from pdmd.teachers import ImagePrompt, WanImageTeacher, WanTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.image_prompts import EncodedImageText
from pdmd.teachers.conditioning.sources import read_image_prompts
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import close, family, noise, ode, wan_pipeline
from tests.helpers.tiny_flows import FLOWS, WAN_I2V, flow
from tests.teachers.families.test_family_folders import t5


def picture(seed, width=20, height=12):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def clip_vision(dim):
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=dim,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    side = {"height": 8, "width": 8}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=side)
    return processor, CLIPVisionModel(config).eval()


def saved(tmp_path, name):
    """Writes a pipeline's folder with encoders, and a file of two prompts with images."""
    seen = clip_vision(16) if name == "wan_i2v_2.1" else (None, None)
    pipeline = FLOWS[name].pipeline(flow(name), text=(*t5(32), *seen), shift=3.0)
    pipeline.save_pretrained(tmp_path / "pipeline")
    pictures = [picture(0), picture(1)]
    lines = []
    for i, (image, text) in enumerate(zip(pictures, ["a cat", "a dog"], strict=True)):
        image.save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"text": text, "image": f"{i}.png"}))
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(lines))
    return pipeline, pictures


@pytest.mark.parametrize("name", ["wan_i2v", "wan_i2v_2.1", "wan_i2v_5b"])
def test_image_to_video_loads_and_samples_as_its_pipeline_does(tmp_path, monkeypatch, name):
    # the pipeline takes ftfy to be installed; plain words need no fixing
    unfixed = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", unfixed, raising=False)
    teacher = flow(name)
    pipeline, pictures = saved(tmp_path, name)
    size = {k: FLOWS[name].arguments[k] for k in ("height", "width", "frames")}
    options = {"folder": str(tmp_path / "pipeline"), "dtype": "float32", **size}
    loaded = teachers.get("wan_i2v")(prompts=str(tmp_path / "prompts.jsonl"), **options)
    assert loaded.latent_shape == teacher.latent_shape and loaded.shift == 3.0
    for key, weight in teacher.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[key])
    condition = loaded.encode(loaded.prompts)
    start = noise(loaded, 2)

    def run(i, output):
        return pipeline(
            image=pictures[i],
            prompt=["a cat", "a dog"][i],
            negative_prompt="",
            guidance_scale=3.0,
            max_sequence_length=512,
            height=size["height"],
            width=size["width"],
            num_frames=size["frames"],
            latents=start[i : i + 1],
            num_inference_steps=3,
            output_type=output,
        ).frames

    expected = torch.cat([run(i, "latent") for i in range(2)])
    times = pipeline.scheduler.sigmas.tolist()
    latents = ode(Guided(loaded, 3.0), condition, times)
    close(latents, expected)
    close(loaded.decode(latents[:1]), run(0, "pt").transpose(1, 2))
    null = loaded.encode([None, None])
    assert list(null.keys()) == ["prompt"] and null.batch_size == (2,)
    named = teachers.get("wan_i2v")(meta=True, **options)
    assert {p.device.type for p in named.parameters()} == {"meta"}
    assert {b.device.type for b in named.buffers()} <= {"cpu"}


def test_image_to_video_is_distilled_on_texts_with_images(tmp_path):
    saved(tmp_path, "wan_i2v")
    loaded = WanImageTeacher.from_pretrained(
        tmp_path / "pipeline",
        prompts=read_image_prompts(str(tmp_path / "prompts.jsonl")),
        dtype="float32",
        **{k: WAN_I2V[k] for k in ("height", "width", "frames")},
    )
    plan = PhasePlan.from_timesteps((1.0, 0.9, 0.0))
    student = distill(Guided(loaded, (3.0, 2.0)), plan, updates=1, fake_updates=1, batch_size=2)
    x = sample(student, student.encode(loaded.prompts))
    assert x.shape == (2, *loaded.latent_shape) and x.isfinite().all()
    with pytest.raises(ValueError, match="'first' is missing"):
        loaded(noise(loaded, 1), 0.5)


def test_networks_go_to_the_teacher_of_their_kind(tmp_path):
    with pytest.raises(ValueError, match=r"needs a first image; take WanImageTeacher \(wan_i2v\)"):
        WanTeacher(flow("wan_i2v_2.1").backbone)
    wan_pipeline(family("wan_2.1")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is text to video, which WanTeacher \(wan\) loads"):
        WanImageTeacher.from_pretrained(tmp_path, height=32, width=16, frames=9)
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        odd = WanTransformer3DModel(in_channels=20, num_layers=1)
        ends = WanTransformer3DModel(in_channels=36, num_layers=1, pos_embed_seq_len=514)
    with pytest.raises(ValueError, match="takes 20 channels and makes 16; .* takes 16 or 36"):
        WanImageTeacher(odd)
    with pytest.raises(ValueError, match="between a first and a last image"):
        WanImageTeacher(ends)


def test_an_image_is_a_path_a_picture_or_a_tensor(tmp_path):
    image = picture(0)
    image.save(tmp_path / "0.png")
    levels = torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(12, 20, 3)
    tensor = levels.permute(2, 0, 1) / 255
    for given in (image, tmp_path / "0.png", str(tmp_path / "0.png"), tensor):
        assert ImagePrompt("a cat", given).picture().tobytes() == image.tobytes()
    grey = ImagePrompt("a cat", image.convert("L")).picture()
    assert grey.mode == "RGB"
    assert ImagePrompt("a cat", "0.png") == ImagePrompt("a cat", "0.png")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "cannot read the image nowhere.png"),
        (
            torch.zeros(4, 8, 8),
            r"of shape \(3, H, W\) in \[0, 1\], got torch.float32 of \(4, 8, 8",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((3, 2, 2), 255.0), r"values are in \[0, 1\], got 255 to 255"),
        (torch.full((3, 2, 2), torch.nan), r"values are in \[0, 1\], got nan to nan"),
        (7, "a path, an image of PIL or a tensor, got a int"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        ImagePrompt("a cat", image).picture()


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a.png"):
        ImagePrompt("a cat", tmp_path / "a.png").picture()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ('{"text": "a cat", "image": "0.png"}\n{"text": "a dog"}', "row 2 of .* has no image in"),
        ('{"text": "a cat", "image": ""}', "row 1 of .* has no image in 'image'"),
        ('{"text": "a cat", "image": 5}', "row 1 of .* has no image in 'image'"),
        ('{"image": "0.png"}', "row 1 of .* has neither 'prompt' nor 'text' but 'image'"),
        ("a cat", "line 1 of .* is no JSON object"),
        ('{"text": 3, "image": "0.png"}', "prompt 1 of .* is no text but 3"),
        ('["a cat", "0.png"]', "line 1 of .* is no JSON object"),
    ],
)
def test_a_file_of_prompts_names_its_bad_line(tmp_path, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_image_prompts(str(path))
    with pytest.raises(ValueError, match="does not exist"):
        read_image_prompts(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="texts alone, and this teacher's prompts have first im"):
        read_image_prompts(str(tmp_path / "prompts.txt"))


def counted():
    calls = []

    def load():
        calls.append("load")
        return "encoders"

    def embed_text(encoders, texts):
        prompt = torch.tensor([[[float(len(text))]] for text in texts])
        return TensorDict({"prompt": prompt}, batch_size=[len(texts)])

    def embed_image(encoders, image):
        return {"first": torch.full((1, 2), float(image.width))}

    return calls, EncodedImageText(load, embed_text, embed_image, imaged=["first"], null="none")


def test_texts_and_images_are_encoded_row_by_row_by_encoders_loaded_once():
    calls, encoded = counted()
    assert not calls
    prompts = [ImagePrompt("a", picture(0, 5)), ImagePrompt("abc", picture(0, 7))]
    condition = encoded.encode(prompts)
    assert condition["prompt"].flatten().tolist() == [1, 3]
    assert condition["first"][:, 0].tolist() == [5, 7]
    assert encoded.encode([None])["prompt"].item() == 4 and calls == ["load"]


@pytest.mark.parametrize("prompts", [["a cat"], [None, ImagePrompt("a cat", "0.png")]])
def test_what_is_no_prompt_with_an_image_is_named(prompts):
    _, encoded = counted()
    with pytest.raises(ValueError, match="a prompt is an ImagePrompt"):
        encoded.encode(prompts)
    with pytest.raises(ValueError, match="no prompts to draw from; pass prompts="):
        _ = encoded.prompts
