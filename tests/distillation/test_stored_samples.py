"""Real samples from a store: encoded by ``pdmd embed --latents``, and drawn with their prompts."""

import json

import pytest
import torch
from tensordict import TensorDict

from pdmd import PhasePlan
from pdmd.cli.main import main
from pdmd.distillation.stored_samples import StoredSamples
from pdmd.objectives import Models, PhaseContext
from pdmd.randomness import RankGenerator
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings, embed
from pdmd.teachers.conditioning.encoded_samples import LATENTS, EncodedSamples
from pdmd.teachers.conditioning.frames import read_frames
from pdmd.teachers.conditioning.image_prompts import ImagePrompt
from pdmd.teachers.conditioning.prompts import PromptEmbeddings
from pdmd.teachers.families.tiny.pipelines import TINY, write_tiny_pipeline
from tests.helpers.trainings import SMALL, Images

TEXTS = ["a red square", "a green square", "a blue square"]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(folder, size=(48, 40), frames=1, suffix="png"):
    """Writes pictures of one colour, or videos that darken, and a table of them."""
    from PIL import Image

    lines = []
    for i, (text, color) in enumerate(zip(TEXTS, COLORS, strict=True)):
        clip = [
            Image.new("RGB", size, tuple(c * (frames - j) // frames for c in color))
            for j in range(frames)
        ]
        clip[0].save(folder / f"{i}.{suffix}", save_all=frames > 1, append_images=clip[1:])
        lines.append(json.dumps({"prompt": text, "picture": f"{i}.{suffix}"}))
    (folder / "table.jsonl").write_text("\n".join(lines))
    return folder / "table.jsonl"


@pytest.fixture(scope="module", params=["qwen_image", "wan"])
def family(request, tmp_path_factory):
    """A tiny pipeline and a store of real samples, by the command."""
    place = tmp_path_factory.mktemp(request.param)
    write_tiny_pipeline(request.param, place / "pipeline")
    frames = TINY[request.param].options.get("frames", 1)
    table = pictures(place, frames=frames, suffix="gif" if frames > 1 else "png")
    options = {
        "folder": str(place / "pipeline"),
        "dtype": "float32",
        **TINY[request.param].options,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = ["embed", str(table), "--teacher", request.param, "--latents", "picture"]
    out = ["--out", str(place / "store"), "--no-progress", "--arguments", *words]
    assert main([*command, *out]) == 0
    return request.param, place, options


def test_the_command_stores_the_latents_of_each_prompt(family):
    name, place, options = family
    teacher = teachers[name](**options)
    first = getattr(teacher, "first", teacher)
    store = StoredEmbeddings(place / "store")
    assert store.image_keys == (LATENTS,) and len(store.prompts) == 3
    rows = store.conditions(store.prompts)[:]
    assert tuple(rows[LATENTS].shape) == (3, *teacher.latent_shape)
    encoded = first.encode(TEXTS)
    torch.testing.assert_close(rows["prompt"], encoded["prompt"], atol=1e-5, rtol=1e-5)
    encode = type(first).read_latent_encoder(options["folder"], dtype="float32", device="cpu")
    for i, (prompt, text) in enumerate(zip(store.prompts, TEXTS, strict=True)):
        assert prompt.text == text
        number = options.get("frames", 1)
        file = next(place.glob(f"{i}.*"))
        clip = [frame.resize((32, 32)) for frame in read_frames(str(file), number)]
        flat = [torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8) for f in clip]
        pixels = torch.stack(flat).view(-1, 32, 32, 3).permute(3, 0, 1, 2)[None] / 255
        expected = encode(pixels if "frames" in options else pixels[:, :, 0])[0]
        torch.testing.assert_close(rows[LATENTS][i], expected, atol=1e-5, rtol=1e-5)


def test_latents_are_those_that_the_decoder_takes(tmp_path):
    """Encoding is the inverse of decoding, for a VAE that is a map and its inverse."""
    from pdmd.teachers.families import vaes

    class Posterior:
        def __init__(self, value):
            self.value = value

        def mode(self):
            return self.value

    class Linear(torch.nn.Module):
        config = {"shift_factor": 0.3, "scaling_factor": 1.5}
        dtype = torch.float32

        def encode(self, x):
            return type("Encoded", (), {"latent_dist": Posterior(3 * x + 1)})

        def decode(self, z, return_dict):
            return ((z - 1) / 3,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vaes, "load_vae", lambda *place, **more: Linear)
        encode, decode = (
            make("Linear", tmp_path, dtype="float32")
            for make in (vaes.load_latent_encoder, vaes.load_decoder)
        )
        pixels = torch.rand(2, 3, 4, 4)
        torch.testing.assert_close(decode(encode(pixels)), pixels)


def test_a_run_takes_real_samples_from_a_store(family, tmp_path):
    name, place, options = family
    real = f'{{name = "store", folder = "{place / "store"}"}}'
    side = f'{{name = "discriminator", penalty_weight = 0, real_samples = {real}}}'
    terms = f'["score_matching", {side}]'
    words = [str(word) for pair in options.items() for word in pair]
    run = tmp_path / "run"
    command = ["distill", "digits", "--out", str(run), "--teacher.name", name]
    assert (
        main(
            [
                *command,
                *("--teacher.arguments", *words, "prompts", str(place / "table.jsonl")),
                *("--train.updates=1", "--train.fake-updates=1", "--train.batch-size=2"),
                *("--plan.phases=1", "--evaluate.at-end=never", "--teacher.no-check-score"),
                *("--objective.fake", terms, "--objective.generator"),
                '["distribution_matching", {name = "adversarial", weight = 0.1}]',
                "--no-progress",
            ]
        )
        == 0
    )
    manifest = next(run.glob("checkpoint/*/manifest.json")).read_text()
    assert "real_samples.folder" in manifest


class Numbered(EncodedSamples):
    """Stores the red channel as the latents, and the number of the prompt."""

    def __init__(self, width):
        self.width_, self.texts = width, None

    def fingerprint(self):
        return "numbered"

    @property
    def image_keys(self):
        return (LATENTS,)

    def encode(self, prompts):
        rows = [-1 if p is None else TEXTS.index(p.text) for p in prompts]
        numbers = torch.tensor(rows)
        condition = {"label": numbers}
        if prompts[0] is not None:
            condition[LATENTS] = (
                numbers.float().view(-1, 1, 1, 1).expand(-1, *self.width_).contiguous()
            )
        return TensorDict(condition, batch_size=[len(rows)])


def written(folder, width=(1, 8, 8)):
    samples = [ImagePrompt(text, torch.full((3, 2, 2), i / 4.0)) for i, text in enumerate(TEXTS)]
    embed(Numbered(width), samples, str(folder), batch_size=2, shard_size=2, progress=False)
    return StoredSamples(str(folder))


def context(teacher, example):
    return PhaseContext(
        models=Models(real=teacher, fake=teacher, expert=teacher),
        phase=PhasePlan.uniform(1)[0],
        draw_conditions=lambda n, generator: example,
    )


def test_rows_are_drawn_with_their_prompts_by_every_rank_its_own(tmp_path):
    source, teacher = written(tmp_path / "store"), Images(**SMALL)
    source.check(teacher)
    draw = source.prepare(context(teacher, teacher.encode([1])), torch.Generator())
    latents, condition = draw(64, RankGenerator.make(0))
    assert latents.shape == (64, 1, 8, 8) and set(condition.keys()) == {"label"}
    assert torch.equal(latents[:, 0, 0, 0], condition["label"].float())
    assert condition["label"].unique().tolist() == [0, 1, 2]
    parts = [draw(32, RankGenerator.make(0, rank, 2))[1]["label"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), condition["label"])


def test_stores_that_do_not_fit_are_named(tmp_path):
    teacher = Images(**SMALL)
    with pytest.raises(ValueError, match="store.* has no index.json"):
        StoredSamples(str(tmp_path / "store")).check(teacher)
    small = written(tmp_path / "small", width=(1, 4, 4))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 4\), and the teacher's are"):
        small.check(teacher)
    source = written(tmp_path / "store")
    other = TensorDict({"prompt": torch.zeros(1, 2)}, batch_size=[1])
    with pytest.raises(ValueError, match=r"the fields \['label'\], and those of training have"):
        source.prepare(context(teacher, other), torch.Generator())
    texts = PromptEmbeddings.random(2, length=3, dim=4, masked=False)
    embed(texts, ["random 0"], str(tmp_path / "texts"), progress=False)
    with pytest.raises(ValueError, match="has prompts without real samples"):
        StoredSamples(str(tmp_path / "texts")).check(teacher)


def test_videos_that_are_too_short_are_named(tmp_path):
    pictures(tmp_path, frames=3, suffix="gif")
    assert len(read_frames(str(tmp_path / "0.gif"), 3)) == 3
    with pytest.raises(ValueError, match=r"0.gif has 3 frames, and samples have 9"):
        read_frames(str(tmp_path / "0.gif"), 9)
    (tmp_path / "1.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"cannot read the frames of .*1.gif"):
        read_frames(str(tmp_path / "1.gif"), 1)


def test_a_video_of_h264_is_read(tmp_path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    frames = [torch.full((16, 16, 3), 40 * i, dtype=torch.uint8).numpy() for i in range(4)]
    imageio.mimwrite(tmp_path / "a.mp4", frames, macro_block_size=1)
    found = [frame.getpixel((8, 8))[0] for frame in read_frames(str(tmp_path / "a.mp4"), 3)]
    assert found == pytest.approx([0, 40, 80], abs=8)
    assert ImagePrompt("a", str(tmp_path / "a.mp4")).picture().size == (16, 16)
