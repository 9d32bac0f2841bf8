"""`pdmd sample` and a run's grids, for teachers that read text and decode by a VAE."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import pdmd
from pdmd import PhasePlan
from pdmd.cli.main import main
from pdmd.distillation.student_folders import source_teacher
from pdmd.evaluation.evaluate import evaluate
from pdmd.evaluation.report import write_grids
from pdmd.teachers.base import teachers
from tests.cli.test_embed_families import no_encoder
from tests.helpers import tiny_runs
from tests.helpers.distilling import distill
from tests.helpers.tiny_encoders import qwen_text, t5
from tests.helpers.tiny_families import QWEN, WAN, family, qwen_pipeline, wan_pipeline

PROMPTS = ["a cat", "a dog that is far from home", "two"]


def distilled(folder, name, pipeline, size):
    """Writes a family's pipeline, embeddings and student; returns the student's folder."""
    pipeline.save_pretrained(folder / "pipeline")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    pairs = [str(w) for pair in {"folder": folder / "pipeline", **size}.items() for w in pair]
    words = ["embed", str(folder / "prompts.txt"), "--teacher", name, "--no-progress"]
    assert main([*words, "--out", str(folder / "store"), "--arguments", *pairs]) == 0
    arguments = {"folder": str(folder / "pipeline"), "embeddings": str(folder / "store"), **size}
    arguments["cache"] = str(folder / "cache")
    teacher = teachers.get(name)(**arguments)
    settings = {"updates": 1, "fake_updates": 1, "batch_size": 2}
    source = {"teacher": name, "arguments": arguments, "guidance": 1.0}
    student = distill(teacher, PhasePlan.uniform(2), source=source, **settings)
    student.save(folder / "student")
    return folder / "student"


@pytest.fixture(scope="module")
def image_student(tmp_path_factory):
    pipeline = qwen_pipeline(family("qwen_image"), text=qwen_text(QWEN["joint_attention_dim"]))
    size = {"height": 32, "width": 48, "dtype": "float32"}
    return distilled(tmp_path_factory.mktemp("image"), "qwen_image", pipeline, size)


@pytest.fixture(scope="module")
def video_student(tmp_path_factory):
    pipeline = wan_pipeline(family("wan_2.1"), text=t5(WAN["text_dim"]))
    size = {"height": 32, "width": 16, "frames": 9, "dtype": "float32"}
    return distilled(tmp_path_factory.mktemp("video"), "wan", pipeline, size)


def sampled(student, out, *words):
    return main(
        ["sample", str(student), "--out", str(out), "--no-progress", "--trust-source", *words]
    )


def test_files_hold_what_the_vae_decodes(image_student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pdmd.teachers.families.text.load_text_encoder", no_encoder)
    words = ["--n", "4", "--batch-size", "3", "--seed", "5"]
    assert sampled(image_student, tmp_path / "each", *words) == 0
    assert "4 samples with NFE 2" in capsys.readouterr().out
    assert sampled(image_student, tmp_path / "x.safetensors", *words) == 0
    teacher = source_teacher(image_student, trust_source=True)
    student = pdmd.Student.load(image_student, teacher=teacher)
    generator = torch.Generator().manual_seed(5)
    requested = [*PROMPTS, PROMPTS[0]]
    parts = [
        pdmd.sample(student, student.encode(p), generator=generator)
        for p in (requested[:3], requested[3:])
    ]
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("latents"), torch.cat(parts))
        assert json.loads(file.metadata()["prompts"]) == requested
    pictures = torch.cat([teacher.decode(x) for x in parts])
    for i, expected in enumerate((255 * pictures.double()).movedim(1, -1).numpy()):
        found = np.asarray(Image.open(tmp_path / "each" / f"000{i}.png"))
        assert found.shape == (32, 48, 3) and np.abs(found - expected).max() < 0.5001
    listed = json.loads((tmp_path / "each" / "prompts.json").read_text())
    assert [entry["prompt"] for entry in listed] == requested


def test_prompts_are_drawn_once_each_and_new_ones_need_the_encoder(
    image_student, tmp_path, capsys
):
    out = tmp_path / "each"
    assert sampled(image_student, out, "--prompts", "two", "a cat") == 0
    assert len(list(out.glob("*.png"))) == 2
    assert sampled(image_student, out, "--prompts", "something new") == 2
    assert "no embedding of the prompt 'something new'" in capsys.readouterr().err
    more = ["--arguments", "embeddings", ""]
    assert sampled(image_student, out, "--prompts", "something new", *more) == 0
    assert len(list(out.glob("*.png"))) == 1
    assert sampled(image_student, out, *more) == 2
    assert "the teacher has no prompts" in capsys.readouterr().err
    assert sampled(image_student, out, "--arguments", "colour", "red") == 2
    assert "colour" in capsys.readouterr().err


def test_videos_are_written_in_every_form(video_student, tmp_path):
    iio = pytest.importorskip("imageio.v3")
    for out in ("grid.mp4", "grid.gif", "stills.png", "each/"):
        assert sampled(video_student, f"{tmp_path}/{out}", "--n", "2", "--fps", "5") == 0
    assert iio.imread(tmp_path / "grid.mp4").shape[0] == 9
    assert iio.immeta(tmp_path / "each" / "0001.mp4")["fps"] == 5
    assert iio.imread(tmp_path / "each" / "0001.mp4").shape == (9, 32, 16, 3)
    assert Image.open(tmp_path / "grid.gif").n_frames == 9
    frames = (np.asarray(Image.open(tmp_path / "stills.png")) < 250).any(-1)
    assert frames.mean() > 0.5


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "x.jpg"], "end in .png, .mp4, .gif or .safetensors, got 'x.jpg'"),
        (["--out", "x.mp4"], "samples images, not videos; use .png"),
        (["--n", "-1"], "--n is from 1"),
        (["--batch-size", "-1"], "--batch-size is from 0"),
        (["--fps", "0"], "--fps must be above 0"),
        (["--device", "tpu"], "'tpu'"),
    ],
)
def test_bad_input_is_one_line(image_student, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(image_student), "--trust-source", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and "\n" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("expert", ["ode", "renoising"])
def test_samples_do_not_depend_on_the_size_of_batches(tmp_path, capsys, expert):
    words = [f"--train.expert={expert}", "--plan.steps", "2"]
    assert tiny_runs.distill(tmp_path / "run", *words) == 0
    files = [tmp_path / f"{size}.safetensors" for size in (1, 3, 5)]
    for size, file in zip((1, 3, 5), files, strict=True):
        words = ["sample", str(tmp_path / "run"), "--n", "5", "--batch-size", str(size)]
        assert main([*words, "--out", str(file)]) == 0
    one, *others = (load_file(file)["latents"] for file in files)
    for other in others:
        assert torch.allclose(one, other, atol=1e-5)
    assert len(one.unique(dim=0)) == 5
    capsys.readouterr()


def test_samples_of_any_number_of_values_do_not_depend_on_the_size_of_batches(tmp_path):
    """torch draws 16 normal numbers at once, and other rows would depend on those before."""
    arguments = {"height": 24, "width": 40, "channels": 8, "layers_per_block": 1, "heads": 1}
    arguments |= {"cross_attention_dim": 8, "norm_num_groups": 8, "random_prompts": 3}
    teacher = teachers.get("stable_diffusion")(**arguments)
    assert teacher.latent_shape == (4, 3, 5)
    expert = pdmd.OdeExpert(teacher.trainable_copy().eval(), PhasePlan.uniform(1)[0])
    source = {"teacher": "stable_diffusion", "arguments": arguments}
    more = {"encode": teacher.encode, "prompts": teacher.prompts, "source": source}
    pdmd.Student([expert], **more).save(tmp_path / "student")
    found = []
    for size in (1, 3, 6):
        out = tmp_path / f"{size}.safetensors"
        assert sampled(tmp_path / "student", out, "--n", "6", "--batch-size", str(size)) == 0
        found.append(load_file(out)["latents"])
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-3, rtol=1e-4)
    assert len(found[0].unique(dim=0)) == 6


@pytest.mark.parametrize(
    ("out", "said"), [("taken.safetensors", "is a folder"), ("/proc/x/a.safetensors", "cannot be")]
)
def test_where_samples_go_is_checked_before_any_work(tmp_path, monkeypatch, capsys, out, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.safetensors").mkdir()
    assert main(["sample", "nowhere", "--out", out]) == 2
    error = capsys.readouterr().err
    assert said in error and "nowhere" not in error


def test_a_student_without_decoder_cannot_write_images(tmp_path, capsys):
    teacher = teachers.get("mixture")(dim=2)
    from pdmd.distillation.initializers import FromDenoiser

    network = pdmd.teachers.MlpDenoiser(kind="x0", dim=2, schedule=teacher.schedule, classes=0)
    source = {"teacher": "mixture", "arguments": {"dim": 2}}
    source["network"] = {"name": "mlp", "arguments": {"kind": "x0", "dim": 2, "classes": 0}}
    student = distill(
        teacher,
        PhasePlan.uniform(1),
        init=FromDenoiser(network),
        updates=1,
        fake_updates=1,
        source=source,
    )
    student.save(tmp_path / "student")
    assert sampled(tmp_path / "student", tmp_path / "x.png") == 2
    assert "does not make images; use --out samples.safetensors" in capsys.readouterr().err
    assert sampled(tmp_path / "student", tmp_path / "x.safetensors", "--n", "7") == 0


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("small", [True, False])
def test_grids_show_what_is_decoded(request, tmp_path, monkeypatch, kind, small):
    folder = request.getfixturevalue(f"{kind}_student")
    teacher = source_teacher(folder, trust_source=True)
    student = pdmd.Student.load(folder, teacher=teacher)
    monkeypatch.setattr("pdmd.evaluation.report.SMALL", 10**6 if small else 1)
    panels = []

    def side_by_side(shown, **more):
        panels.append(shown)
        from pdmd.evaluation.figures import side_by_side

        return side_by_side(shown, **more)

    monkeypatch.setattr("pdmd.evaluation.report.side_by_side", side_by_side)
    write_grids(tmp_path, student, teacher, teacher_steps=2)
    assert {p.name for p in (tmp_path / "grids").iterdir()} == {
        "samples.png",
        "prompts.png",
        "phase_1.png",
        "phase_2.png",
    }
    shown = panels[0]["student, 2 steps"]
    count = 100 if small else 9
    prompts = [PROMPTS[i % 3] for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    expected = teacher.decode(pdmd.sample(student, student.encode(prompts), generator=generator))
    if kind == "video":
        expected = expected[:, :, 4]  # of nine frames
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-4)


def test_a_text_student_is_evaluated_in_latents(image_student):
    teacher = source_teacher(image_student, trust_source=True)
    student = pdmd.Student.load(image_student, teacher=teacher)
    rows = evaluate(student, teacher, samples=100, teacher_steps=2, progress=False)["rows"]
    assert [row["method"] for row in rows] == ["teacher", "teacher_euler_2", "student"]
    assert all(np.isfinite(v) for row in rows for k, v in row.items() if k != "method")


@pytest.mark.parametrize("out", ["x.png", "folder", "x.safetensors"])
def test_samples_that_are_not_finite_are_no_black_pictures(tmp_path, capsys, out):
    teacher = teachers.get("digits")()
    plan = PhasePlan.uniform(2)
    experts = [pdmd.OdeExpert(teacher.trainable_copy().requires_grad_(False), p) for p in plan]
    next(experts[1].parameters()).data[0] = torch.nan
    source = {"teacher": "digits", "arguments": {}}
    more = {"encode": teacher.encode, "prompts": teacher.prompts, "source": source}
    pdmd.Student(experts, **more).save(tmp_path / "student")
    assert sampled(tmp_path / "student", tmp_path / out, "--n", "2") == 2
    assert "the sample of 0 is not finite" in capsys.readouterr().err
    assert not (tmp_path / out).exists()
