"""Runtimes: one process and torchtitan give the same student."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pdmd
from pdmd import (
    AdamRecipe,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    Session,
)
from pdmd.cli.parallel_config import ParallelConfig
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.runtime import OneProcess, pick_device
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.trainer import PhaseTrainer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_titan import digits
from tests.helpers.distilling import distill


class Losses(Recorder):
    interval = 1

    def __init__(self):
        self.scalars = []

    def on_scalars(self, phase, update, values):
        self.scalars.append(dict(values))


def trained(runtime, teacher=None, **changes):
    """Distills a little; returns the scalars of every update and the student's weights."""
    recorder = Losses()
    settings = dict(updates=3, fake_updates=2, batch_size=8, optimizer=AdamRecipe(lr=1e-4))
    student = distill(
        teacher or digits(),
        PhasePlan.uniform(2),
        **{**settings, **changes},
        recorder=recorder,
        runtime=runtime,
    )
    return recorder.scalars, runtime.states.full(student)


# ---------------------------------------------------------------------------------- torchtitan's


def titans(settings):
    from pdmd.distributed.titan import TitanRuntime

    return [trained(TitanRuntime(**one)) for one in settings]


def test_torchtitan_on_one_process_trains_the_same_student():
    expected_scalars, expected = trained(OneProcess())
    settings = [
        {},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
    ]
    (results,) = run_ranks(titans, 1, settings)
    for setting, (scalars, got) in zip(settings, results, strict=True):
        assert len(scalars) == len(expected_scalars) == 6
        for actual, there in zip(scalars, expected_scalars, strict=True):
            again = {
                name.replace("backward", "recomputed"): value
                for name, value in there.items()
                if name.endswith("_backward") and setting.get("activation_checkpointing") == "full"
            }
            assert actual == pytest.approx({**there, **again}, rel=1e-5), setting
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            apart = float((got[name] - value).abs().max())
            assert apart <= 1e-6 * float(value.abs().max()), (setting, name)


# ------------------------------------------------------------------------------------ one process


def test_devices_are_picked_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert pick_device("auto") == (accelerator or torch.device("cpu"))
    with pytest.raises(ValueError, match="unknown device 'gpu'; use auto, cpu or cuda"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="'meta' is not one of auto, cpu and cuda"):
        pick_device("meta")


def test_python_picks_the_device_of_the_command_line():
    assert OneProcess().device == Session().runtime.device == pick_device("auto")
    assert ParallelConfig().build(0).device == OneProcess().device
    assert OneProcess("cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="unknown device 'gpu'; use auto, cpu or cuda"):
        OneProcess("gpu")


def test_bfloat16_applies_to_networks_only(monkeypatch):
    kinds, apply = [], PhaseTrainer._apply
    clip = LocalOptimization.clip_gradients

    def recorded(self, role, objective, *args):
        class Recorded:
            def losses(self, *args):
                found = objective.losses(*args)
                kinds.append({f"{role} loss": loss.dtype for loss in found.values()})
                return found

        spied: Any = Recorded()
        return apply(self, role, spied, *args)

    def recorded_clip(self, network, parameters, max_grad_norm):
        for parameter in parameters:
            kinds.append({"parameter": parameter.dtype, "gradient": parameter.grad.dtype})
        return clip(self, network, parameters, max_grad_norm)

    computed, linear = set(), torch.nn.functional.linear

    def recorded_linear(x, *args):
        computed.add(x.dtype)
        return linear(x, *args)

    monkeypatch.setattr(PhaseTrainer, "_apply", recorded)
    monkeypatch.setattr(LocalOptimization, "clip_gradients", recorded_clip)
    monkeypatch.setattr(torch.nn.functional, "linear", recorded_linear)
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    init = FromDenoiser(MlpDenoiser.rectified_flow(dim=2, classes=2, width=16))
    runtime = OneProcess(precision=torch.bfloat16)
    scalars, student = trained(runtime, teacher, init=init, batch_size=64)
    assert all(torch.tensor(list(actual.values())).isfinite().all() for actual in scalars)
    assert {kind for found in kinds for kind in found} == {
        "fake loss",
        "generator loss",
        "parameter",
        "gradient",
    }
    assert all(kind == torch.float32 for found in kinds for kind in found.values())
    assert torch.bfloat16 in computed
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in student.values())
    expected, exact = trained(OneProcess(), teacher, init=init, batch_size=64)
    assert scalars != expected
    for name, value in exact.items():  # Adam's steps are as long, whatever the gradient's noise
        assert torch.allclose(student[name], value, atol=2 * 3 * 1e-4), name


# ---------------------------------------------------------------------------------------- imports


def loaded_by(code):
    """Returns the packages that a fresh interpreter has loaded after some code."""
    code += "\nimport sys\nprint('loaded:', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_pdmd_and_one_process_load_no_torchtitan(tmp_path):
    assert "torchtitan" not in loaded_by("import pdmd")
    words = ["distill", "mixture", "--out", str(tmp_path / "run"), "--train.updates=1"]
    words += ["--network.updates=1", "--evaluate.samples=100", "--evaluate.teacher-steps=2"]
    words += ["--plan.phases=1", "--train.batch-size=4", "--no-progress"]
    loaded = loaded_by(f"from pdmd.cli.main import main\nassert main({words}) == 0")
    assert "pdmd" in loaded and "torch" in loaded and "torchtitan" not in loaded
    assert (tmp_path / "run" / "report.html").exists()


def test_one_module_imports_torchtitan():
    folder = Path(pdmd.__file__).parent
    importing = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.split()[:1] in (["import"], ["from"]) and line.split()[1].startswith("torchtitan")
    }
    assert importing == {str(Path("distributed") / "titan_parts.py")}
