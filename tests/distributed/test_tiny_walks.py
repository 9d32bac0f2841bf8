"""Recipes at tiny size, from prompts to students that diffusers loads without this library.

One process and two ranks. What a walk costs is mostly the import of diffusers and transformers, so
all of it runs in children of the fork server, which has imported them.
"""

import os
import subprocess
import sys

import pytest

from pdmd.cli.main import main
from tests.distributed.ranks import run_ranks

BRIEF = ("--train.updates", "1", "--evaluate.at-end", "never", "--teacher.no-check-score")
RECIPES = {"qwen_image": {"true_cfg_scale": 1.0}, "wan22_t2v": {"guidance_scale": 1.0}}
"""Recipes, and how their pipelines are called without guidance."""


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pdmd":
            raise ModuleNotFoundError(f"{name} is blocked here")


def walk(name, folder, world):
    """Distills on a rank of a number of them; the first one exports."""
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    rank = 0
    if world > 1:
        import torch.distributed as dist

        rank = dist.get_rank()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    words = ["distill", name, "--tiny", "--out", f"{folder}/run", "--no-progress", *BRIEF]
    words += ["--teacher.arguments.prompts", f"{folder}/prompts.txt"]  # fewer than the 194
    if main(words) != 0:
        return False
    if rank:
        return True
    os.environ["WORLD_SIZE"] = "1"
    student = f"{folder}/run/student"
    codes = [main(["export", student, f"{folder}/out", "--no-progress"])]
    if world == 1:  # the other commands of the runbook
        pictures = f"{folder}/samples.{'mp4' if name.startswith('wan') else 'png'}"
        codes += [
            main(["export", student, f"{folder}/lora", "--to", "lora", "--format", "both"]),
            main(["sample", student, "--prompts", "a kite", "a house", "--out", pictures]),
            main(["doctor", f"{folder}/run"]) // 2,  # 1 where random networks have findings
        ]
    return codes == [0] * len(codes)


def call_plainly(folder, call, place):
    """Loads a pipeline and calls it where this library cannot be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pdmd"]:
        del sys.modules[name]
    sys.meta_path.insert(0, Blocker())
    os.environ.update(HF_MODULES_CACHE=f"{place}/modules", HF_HUB_OFFLINE="1")
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline("a kite", num_inference_steps=4, output_type="pt", **call)[0]
    with pytest.raises(ModuleNotFoundError, match="blocked here"):
        import pdmd  # noqa: F401
    return tuple(out.shape), bool(out.isfinite().all()), type(pipeline.transformer).__name__


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_recipe_is_walked_to_a_student_that_plain_diffusers_loads(name, world, tmp_path):
    from pdmd.cli.config_files import load_config
    from pdmd.teachers.families.tiny.pipelines import TINY

    (tmp_path / "prompts.txt").write_text("a kite\na house\na boat\na tree\n")
    assert run_ranks(walk, world, name, str(tmp_path), world) == [True] * world
    assert (tmp_path / "run" / "validation" / "metrics.jsonl").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    options = dict(TINY[load_config(name).teacher.name].options)
    if "frames" in options:
        options["num_frames"] = options.pop("frames")
    call = {**RECIPES[name], **options}
    (out,) = run_ranks(call_plainly, 1, str(tmp_path / "out"), call, str(tmp_path))
    shape, finite, transformer = out
    assert finite and shape[-2:] == (options["height"], options["width"])
    assert transformer == "PhasedTransformer" or name == "wan22_t2v"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", RECIPES)
def test_torchrun_walks_a_tiny_recipe_on_two_ranks(name, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    words = ["distill", name, "--tiny", "--out", "run", "--no-progress"]
    done = subprocess.run(
        [*launch, "-m", "pdmd", *words], cwd=tmp_path, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "student  run/student" in done.stdout and "teacher_euler_4" in done.stdout
    assert (tmp_path / "run" / "metrics.json").is_file()
