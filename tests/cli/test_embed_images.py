"""First images in a store: embedded once, read without text encoder, CLIP or VAE."""

import json
import shutil

import pytest
import torch

from pdmd import Guided, PhasePlan
from pdmd.cli.main import main
from pdmd.teachers import ImagePrompt, RoutedTeacher
from pdmd.teachers.base import teachers
from pdmd.teachers.conditioning.embeddings import StoredEmbeddings
from pdmd.teachers.conditioning.prompt_files import read_image_prompts
from tests.helpers.distilling import distill
from tests.helpers.tiny_encoders import picture
from tests.helpers.tiny_families import WAN, family, wan_pipeline
from tests.helpers.tiny_flows import FLOWS, saved

NAMES = ["wan_i2v", "wan_i2v_2.1", "wan_i2v_5b"]
TEXTS = ["a cat", "a dog that is far from home", "a cat"]


@pytest.fixture(scope="module", params=NAMES)
def pipeline(request, tmp_path_factory):
    return pipeline_of(request.param, tmp_path_factory.mktemp("i2v"))


@pytest.fixture(scope="module")
def a14b(tmp_path_factory):
    return pipeline_of("wan_i2v", tmp_path_factory.mktemp("a14b"))


def pipeline_of(name, place):
    """Writes a pipeline and a prompt file; returns their folder and arguments of the teacher."""
    saved(place, name)
    size = {key: FLOWS[name].arguments[key] for key in ("height", "width", "frames")}
    (place / "pictures").mkdir()
    lines = []
    for i, text in enumerate(TEXTS):
        shape = {"width": 2 * size["width"], "height": 2 * size["height"]}
        picture(i, **shape).save(place / "pictures" / f"{i}.png")
        image = f"pictures/{i}.png" if i else f"file://{place}/pictures/0.png"
        lines.append(json.dumps({"prompt": text, "image": image}))
    (place / "prompts.jsonl").write_text("\n".join(lines))
    return place, {"folder": str(place / "pipeline"), "dtype": "float32", **size}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def words_of(arguments):
    return [str(word) for pair in arguments.items() for word in pair]


def embedded(source, arguments, out, *words, teacher="wan_i2v"):
    command = ["embed", str(source), "--teacher", teacher, "--out", str(out), "--no-progress"]
    return main([*command, "--arguments", *words_of(arguments), *words])


def fail(*arguments, **more):
    raise AssertionError("an encoder or a VAE was loaded")


def without_encoders(monkeypatch):
    monkeypatch.setattr("pdmd.teachers.families.wan_image.load_text_encoder", fail)
    monkeypatch.setattr("pdmd.teachers.families.text.load_text_encoder", fail)
    monkeypatch.setattr("diffusers.AutoencoderKLWan.from_pretrained", fail)


def test_a_store_returns_what_the_encoders_return(pipeline, tmp_path, monkeypatch, capsys):
    place, arguments = pipeline
    words = ["--batch-size", "2", "--shard-size", "2"]
    assert embedded(place / "prompts.jsonl", arguments, tmp_path / "store", *words) == 0
    assert "3 prompts, 0." in capsys.readouterr().out
    live = teachers.get("wan_i2v")(prompts=str(place / "prompts.jsonl"), **arguments)
    expected, null = live.encode(live.prompts), live.encode([None])
    plan = PhasePlan.from_timesteps((1.0, 0.9, 0.0))
    settings = {"updates": 2, "fake_updates": 1, "batch_size": 2}
    scale = (3.0, 2.0) if isinstance(live, RoutedTeacher) else 3.0
    whole = distill(Guided(live, scale), plan, **settings)
    without_encoders(monkeypatch)
    stored = teachers.get("wan_i2v")(embeddings=str(tmp_path / "store"), **arguments)
    assert [prompt.text for prompt in stored.prompts] == TEXTS
    for found in (stored.conditions(stored.prompts)[:], stored.encode(live.prompts)):
        assert set(found.keys()) == set(expected.keys())
        assert all(torch.equal(found[key], expected[key]) for key in expected.keys())
    found = stored.encode([None])  # the null prompt has no image fields
    assert list(found.keys()) == ["prompt"] and torch.equal(found["prompt"], null["prompt"])
    again = distill(Guided(stored, scale), plan, **settings)
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key
    with pytest.raises(ValueError, match="store must be an ImagePrompt .* got 'a cat'"):
        stored.encode(["a cat"])
    other = ImagePrompt("a cat", picture(7))
    with pytest.raises(ValueError, match="no embedding of the prompt ImagePrompt"):
        stored.encode([other])
    with pytest.raises(ValueError, match="only the embeddings of the image of .a cat. are stored"):
        stored.prompts[0].picture()


def test_embedding_resumes_at_the_missing_shard(a14b, tmp_path, monkeypatch, capsys):
    from pdmd.teachers.conditioning.image_prompts import EncodedImageText

    place, arguments = a14b
    encode, seen = EncodedImageText.encode, []

    def failing(self, prompts):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(prompts)
        return encode(self, prompts)

    command = (place / "prompts.jsonl", arguments, tmp_path / "store", "--shard-size", "1")
    with monkeypatch.context() as patch:
        patch.setattr(EncodedImageText, "encode", failing)
        assert embedded(*command) == 130
    assert "run again to resume" in capsys.readouterr().err
    monkeypatch.setattr(EncodedImageText, "encode", lambda s, p: seen.append(p) or encode(s, p))
    assert embedded(*command) == 0
    assert [[p and p.image.rpartition("/")[2] for p in batch] for batch in seen[2:]] == [
        ["2.png"],
        [None],
    ]
    moved = tmp_path / "moved"  # the same images in another folder are the same prompts
    shutil.copytree(place / "pictures", moved / "pictures")
    lines = (place / "prompts.jsonl").read_text().replace(f"file://{place}/", "")
    (moved / "prompts.jsonl").write_text(lines)
    seen.clear()
    assert embedded(moved / "prompts.jsonl", *command[1:]) == 0 and not seen
    picture(9, width=16, height=32).save(moved / "pictures" / "1.png")  # other images are not
    capsys.readouterr()
    assert embedded(moved / "prompts.jsonl", *command[1:]) == 2
    assert "has other prompts" in capsys.readouterr().err


def test_a_run_from_the_command_line_reads_images_from_the_store(a14b, tmp_path, monkeypatch):
    place, arguments = a14b
    assert embedded(place / "prompts.jsonl", arguments, tmp_path / "store") == 0
    monkeypatch.setattr("pdmd.teachers.families.wan_image.load_text_encoder", fail)
    run = ["distill", "digits", "--teacher.name", "wan_i2v", "--out", str(tmp_path / "run")]
    run += ["--teacher.arguments", *words_of(arguments), "embeddings", str(tmp_path / "store")]
    run += ["--train.updates=1", "--train.fake-updates=1", "--train.batch-size=2"]
    run += ["--plan.timesteps", "1.0", "0.9", "0.0", "--teacher.guidance", "3.0", "2.0"]
    run += ["--evaluate.samples=100", "--evaluate.teacher-steps=1", "--no-progress"]
    assert main(run) == 0
    out = tmp_path / "grid.png"
    assert main(["sample", str(tmp_path / "run"), "--out", str(out), "--n", "3"]) == 0
    assert out.exists()


def test_images_are_read_from_tables_and_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"t{i}"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "rows.csv").write_text(
        "caption,first\n" + "".join(f"t{i},pictures/{i}.png\n" for i in range(3))
    )
    named = {"column": "caption", "image_column": "first"}
    for source, more in ((folder, {}), (tmp_path / "rows.csv", named)):
        for limit in (0, 2):
            read = read_image_prompts(str(source), limit=limit, **more)
            assert [prompt.text for prompt in read] == [f"t{i}" for i in range(limit or 3)]
            for i, prompt in enumerate(read):
                assert prompt.picture().tobytes() == picture(i).tobytes()


CAT = {"prompt": "a cat", "image": "0.png"}


@pytest.mark.parametrize(
    ("rows", "words", "named"),
    [
        ([{**CAT, "image": "gone.png"}], [], "cannot read the image .*gone.png .*FileNotFound"),
        ([{**CAT, "image": "prompts.jsonl"}], [], "prompts.jsonl .it is none of PNG"),
        ([{**CAT, "image": "wide.png"}], [], "wide.png is 40 x 10, and the video 16 x 32: crop"),
        ([CAT, {"prompt": "a dog"}], [], "row 2 of .* has no image in 'image'"),
        ([CAT], ["--image-column", "first"], "row 1 of .* has no image in 'first'"),
        ([{"image": "0.png"}], [], "row 1 of .* has neither 'prompt' nor 'text'"),
    ],
)
def test_invalid_images_are_one_line(a14b, tmp_path, capsys, rows, words, named):
    import re

    picture(0, width=16, height=32).save(tmp_path / "0.png")
    picture(0, width=40, height=10).save(tmp_path / "wide.png")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = (tmp_path / "prompts.jsonl", a14b[1], tmp_path / "store", *words)
    assert embedded(*command) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(named, error) and "\n" not in error and "Traceback" not in error
    assert not (tmp_path / "store").exists()
    if "wide.png" in named:
        assert embedded(*command, "--stretch") == 0


def test_images_for_a_text_to_video_teacher_raise(a14b, tmp_path, capsys):
    size = {"height": 32, "width": 16, "frames": 9, "dtype": "float32"}
    pipeline = tmp_path / "wan"
    from tests.helpers.tiny_encoders import t5

    wan_pipeline(family("wan_2.2_a14b"), text=t5(WAN["text_dim"])).save_pretrained(pipeline)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text(json.dumps(CAT))
    text = {"folder": str(pipeline), **size}
    assert embedded(lines, text, tmp_path / "texts", teacher="wan") == 2
    assert "row 1 of" in (error := capsys.readouterr().err) and "does not accept" in error
    assert embedded(lines, text, tmp_path / "texts", "--stretch", teacher="wan") == 2
    assert "--stretch is for first images, which 'wan' does not take" in capsys.readouterr().err
    assert embedded(lines, text, tmp_path / "texts", "--column", "prompt", teacher="wan") == 0
    place, arguments = a14b
    assert embedded(place / "prompts.jsonl", arguments, tmp_path / "store") == 0
    stores = {name: StoredEmbeddings(tmp_path / name) for name in ("store", "texts")}
    tiny = {k: v for k, v in WAN.items() if k not in ("text_length", "random_prompts")}
    with pytest.raises(ValueError, match="store have first images, which WanTeacher does not"):
        teachers.get("wan")(embeddings=str(tmp_path / "store"), **tiny)
    assert stores["texts"].image_keys == () and stores["store"].image_keys == ("first",)
    tiny["latent_channels"] = 4
    with pytest.raises(ValueError, match="texts have no 'first', which this teacher takes"):
        teachers.get("wan_i2v")(embeddings=str(tmp_path / "texts"), **tiny)
    with pytest.raises(ValueError, match=r"shape \(8, 3, 4, 2\), and .* 32 x 16 .* 5 frames take"):
        teachers.get("wan_i2v")(embeddings=str(tmp_path / "store"), **{**tiny, "frames": 5})
    assert len(teachers.get("wan_i2v")(embeddings=str(tmp_path / "store"), **tiny).prompts) == 3


def test_the_fingerprint_includes_the_image_encoders(tmp_path):
    from safetensors.torch import load_file, save_file

    place, arguments = pipeline_of("wan_i2v_2.1", tmp_path)
    assert embedded(place / "prompts.jsonl", arguments, tmp_path / "store") == 0
    arguments["embeddings"] = str(tmp_path / "store")
    teachers.get("wan_i2v")(**arguments)
    for part in ("vae", "image_encoder"):
        path = next((place / "pipeline" / part).glob("*.safetensors"))
        content = path.read_bytes()
        weights = load_file(path)
        weights[sorted(weights)[0]] += 1e-3
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(ValueError, match="computed by another encoder"):
            teachers.get("wan_i2v")(**arguments)
        path.write_bytes(content)
        path.rename(tmp_path / "away")  # no encoder to compare with
        teachers.get("wan_i2v")(**arguments)
        (tmp_path / "away").rename(path)
