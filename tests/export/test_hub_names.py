"""Names on the hub are found in its cache, without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdmd.export import export_diffusers, export_lora
from tests.helpers.exporting import FOUR, qwen_folder, student_of

ROOT = Path(__file__).parents[2]
NAME = "someone/tiny-qwen"
SCRIPT = """
import sys
from pdmd.distillation.student_folders import source_teacher
from pdmd import Student
from pdmd.export import export_diffusers
from tests.helpers.exporting import FOUR, student_of

place = sys.argv[1]
student = student_of("qwen_image", FOUR, "someone/tiny-qwen")
size = {"height": 64, "width": 48, "dtype": "float32"}
student.source["arguments"].update(size)
student.save(place + "/student")
teacher = source_teacher(place + "/student")
print("encoded", tuple(teacher.encode(["a cat"])["prompt"].shape))
loaded = Student.load(place + "/student", teacher=teacher)
export_diffusers(loaded, place + "/out")
print("exported")
"""


def cached(folder, cache):
    """Writes a pipeline's folder as the hub's client caches it: a revision of links to blobs."""
    place = cache / f"models--{NAME.replace('/', '--')}"
    snapshot, blobs = place / "snapshots" / ("a" * 40), place / "blobs"
    blobs.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    for number, source in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        target = snapshot / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, blobs / f"{number:064d}")
        target.symlink_to(os.path.relpath(blobs / f"{number:064d}", target.parent))


def test_a_cached_pipeline_is_loaded_and_exported_by_its_name(tmp_path):
    cached(qwen_folder(tmp_path / "base"), tmp_path / "hub")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "encoded" in done.stdout and done.stdout.endswith("exported\n")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder"] and (tmp_path / "out" / "text_encoder").is_dir()
    assert NAME in (tmp_path / "out" / "README.md").read_text()
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float64", "int8", "half", "bf16"])
@pytest.mark.parametrize("export", [export_diffusers, export_lora])
def test_only_types_that_the_card_loads_are_exported(export, dtype, tmp_path):
    student = student_of("qwen_image", FOUR, tmp_path)
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        export(student, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
