"""Embed, distill and export from the command line, then sample with diffusers alone."""

import re

import pytest

from pdmd import Student
from pdmd.cli.main import main
from tests.helpers.exporting import Case, qwen_folder, run_in_subprocess, wan_folder

pytestmark = pytest.mark.slow  # tests/export/test_pipelines.py samples the same exports

PROMPTS = "a cat\na dog that runs\na red square\n"

RUN = """
[teacher]
name = "{teacher}"
guidance = {guidance}

[teacher.arguments]
folder = "{folder}"
embeddings = "{store}"
cache = "{cache}"
dtype = "float32"
height = {height}
width = {width}
{more}

[plan]
{plan}

[train]
updates = 2
fake_updates = 2
batch_size = 2
checkpoint_every = 2

[evaluate]
samples = 100
teacher_steps = 2

{lora}
"""

WAN = {
    "teacher": "wan",
    "guidance": [4.0, 3.0],
    "height": 16,
    "width": 16,
    "more": "frames = 5",
    "plan": "timesteps = [1.0, 0.9375, 0.875, 0.625, 0.0]\nsteps = [2, 2]",
}
QWEN = {
    "teacher": "qwen_image",
    "guidance": [4.0],
    "height": 32,
    "width": 32,
    "more": "",
    "plan": "phases = 2\nsteps = [1]",
}
LORA = "[lora]\nrank = 2\nalpha = 4.0\nfake_rank = 3"
FULL_FAKE = "[lora]\nrank = 2\nalpha = 4.0"
NAMES = ("wan", "wan_lora", "qwen", "qwen_lora", "qwen_full_fake")
ADAPTED = [f"{n}_{kind}" for n in NAMES if "_" in n for kind in ("files", "comfyui")]


@pytest.fixture(scope="module")
def trips(tmp_path_factory):
    place = tmp_path_factory.mktemp("trips")
    (place / "prompts.txt").write_text(PROMPTS)
    folders = {"wan": wan_folder(place / "wan_base"), "qwen": qwen_folder(place / "qwen_base")}
    cases = []
    for name in NAMES:
        base = name.partition("_")[0]
        settings = {"wan": WAN, "qwen": QWEN}[base]
        size = ["height", str(settings["height"]), "width", str(settings["width"])]
        source = ["--arguments", "folder", str(folders[base]), "dtype", "float32", *size]
        embed = ["embed", str(place / "prompts.txt"), "--teacher", settings["teacher"], *source]
        store = place / f"{base}_store"
        if not store.exists():
            assert main([*embed, "--out", str(store), "--no-progress"]) == 0
        lora = {"lora": LORA, "fake": FULL_FAKE}.get(name.rpartition("_")[2], "")
        config = place / f"{name}.toml"
        paths = {"folder": folders[base], "store": store, "cache": place / "cache"}
        config.write_text(RUN.format(**settings, **paths, lora=lora))
        run = place / name
        assert main(["distill", str(config), "--out", str(run), "--no-progress"]) == 0
        out = place / f"{name}_exported"
        assert (
            main(
                [
                    "export",
                    str(run),
                    str(out),
                    "--to",
                    "diffusers",
                    "--no-progress",
                    "--trust-source",
                ]
            )
            == 0
        )
        student = Student.load(run / "student", trust_source=True)
        cases.append(Case(name, out, student))
        if name == "wan":
            near = place / "near"
            stock = ["--to", "diffusers", "--scheduler", "stock", "--measure", "3"]
            assert (
                main(["export", str(run), str(near), *stock, "--no-progress", "--trust-source"])
                == 0
            )
            cases.append(Case("near", near, student, trust=False))
        if lora:
            files = place / f"{name}_files"
            assert (
                main(
                    [
                        "export",
                        str(run),
                        str(files),
                        "--to",
                        "lora",
                        "--no-progress",
                        "--trust-source",
                    ]
                )
                == 0
            )
            cases.append(Case(f"{name}_files", files, student, files="diffusers"))
            cases.append(Case(f"{name}_comfyui", files, student, files="comfyui", card=False))
    run = place / "glyphs"
    few = ["--train.updates", "2", "--train.batch-size", "4", "--lora.rank", "2"]
    few += ["--evaluate.samples", "100", "--evaluate.teacher-steps", "2", "--no-progress"]
    assert main(["distill", "glyphs", "--out", str(run), *few]) == 0
    assert (run / "grids" / "prompts.png").exists() and "vendi" in (
        run / "report.html"
    ).read_text()
    out = place / "glyphs_exported"  # with the components of the packaged pipeline
    assert main(["export", str(run), str(out), "--no-progress"]) == 0
    cases.append(Case("glyphs", out, Student.load(run / "student")))
    run_in_subprocess(cases, place)
    return {case.name: case for case in cases}


@pytest.mark.parametrize(
    "name",
    [
        "glyphs",
        *NAMES,
        *(f"{n}_{kind}" for n in NAMES if "l" in n for kind in ("files", "comfyui")),
    ],
)
def test_a_distilled_student_samples_the_same_in_diffusers(trips, name):
    assert trips[name].error() <= 1e-5


def test_a_stock_scheduler_has_the_error_on_its_card(trips):
    case = trips["near"]
    card = (case.folder / "README.md").read_text()
    stated = float(re.search(r"this student's networks differ by (\S+?)\. ", card)[1])
    gap = (case.result() - case.expected).square().mean().sqrt() / case.expected.std()
    assert gap == pytest.approx(stated, rel=0.05) and gap > 1e-5
