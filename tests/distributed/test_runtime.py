"""Runtimes: what a process of one's own and torchtitan's parts make of the same training."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pdmd
from pdmd import (
    AdamRecipe,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
)
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.runtime import OneProcess, pick_device
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.optimizers import RateSchedule
from pdmd.training.trainer import PhaseTrainer
from tests.distributed.ranks import run_ranks
from tests.distributed.test_training import digits
from tests.helpers.distilling import distill


class Losses(Recorder):
    interval = 1

    def __init__(self):
        self.heard = []

    def on_scalars(self, phase, update, values):
        self.heard.append(dict(values))


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
    return recorder.heard, student.state_dict()


# ---------------------------------------------------------------------------------- torchtitan's


def titans(settings):
    from pdmd.distributed.titan import TitanRuntime

    return [trained(TitanRuntime(**one)) for one in settings]


def test_torchtitans_parts_on_one_process_make_the_same_student():
    wanted_scalars, wanted = trained(OneProcess())
    settings = [
        {},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "selective"},
    ]
    (results,) = run_ranks(titans, 1, settings)
    for setting, (scalars, got) in zip(settings, results, strict=True):
        assert len(scalars) == len(wanted_scalars) == 6
        for heard, there in zip(scalars, wanted_scalars, strict=True):
            again = {
                name.replace("backward", "recomputed"): value
                for name, value in there.items()
                if name.endswith("_backward") and setting.get("activation_checkpointing") == "full"
            }
            assert heard == pytest.approx({**there, **again}, rel=1e-5), setting
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            apart = float((got[name] - value).abs().max())
            assert apart <= 1e-6 * float(value.abs().max()), (setting, name)


NAMES = ("dp_replicate", "dp_shard", "cp", "tp")


def degrees_and_errors(cases):
    outcomes = []
    for world, *degrees in cases:
        try:
            outcomes.append(Degrees.over(world, **dict(zip(NAMES, degrees, strict=True))).dp_shard)
        except ValueError as error:
            outcomes.append(str(error))
    return outcomes


def test_degrees_multiply_to_the_ranks_or_raise():
    cases = {  # ranks, dp_replicate, dp_shard, cp, tp
        (8, 1, -1, 1, 1): 8,
        (8, 2, -1, 1, 2): 2,
        (8, 1, 2, 2, 2): 2,
        (1, 1, -1, 1, 1): 1,
        (8, 1, -1, 3, 1): "8 ranks do not divide by dp_replicate x cp x tp = 1 x 3 x 1 = 3",
        (8, 1, 2, 1, 2): "= 1 x 2 x 1 x 2 = 4, but there are 8 ranks",
        (2, 1, 1, 1, 4): "= 4, but there are 2 ranks",
        (2, 0, -1, 1, 1): "parallel.dp_replicate is at least 1, got 0",
        (2, 1, -1, -1, 1): "parallel.cp is at least 1, got -1",
        (2, 1, -1, 1, 0): "parallel.tp is at least 1, got 0",
        (2, 1, 0, 1, 1): "parallel.dp_shard is at least 1, or -1 for the rest, got 0",
    }
    outcomes = degrees_and_errors(cases)
    for (case, wanted), got in zip(cases.items(), outcomes, strict=True):
        assert got == wanted if isinstance(wanted, int) else wanted in got, case


# ------------------------------------------------------------------------------------ one process


def test_devices_are_picked_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert pick_device("auto") == (accelerator or torch.device("cpu"))
    with pytest.raises(ValueError, match="unknown device 'gpu'; use auto, cpu or cuda"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="'meta' is not one of auto, cpu and cuda"):
        pick_device("meta")


recipes = st.builds(
    AdamRecipe,
    lr=st.floats(1e-8, 1),
    decay_from=st.floats(0, 1),
    decay_to=st.floats(0, 1),
)


@given(recipe=recipes, updates=st.integers(1, 50), data=st.data())
def test_a_schedule_sets_the_recipes_rate_and_loads(recipe, updates, data):
    optimizers = [recipe.build([torch.nn.Parameter(torch.zeros(1))]) for _ in range(2)]
    schedule = RateSchedule(optimizers, recipe, updates)

    def rates():
        return {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}

    for update in range(updates + 1):
        assert rates() == {recipe.rate(update / updates)}
        schedule.step()
    update = data.draw(st.integers(0, updates))
    schedule.load_state_dict({"last_epoch": update})
    assert rates() == {recipe.rate(update / updates)}
    schedule.step()
    assert rates() == {recipe.rate((update + 1) / updates)}


@given(recipe=recipes)
def test_a_rate_is_constant_and_then_falls_to_its_end(recipe):
    rates = [recipe.rate(i / 20) for i in range(21)]
    assert all(rate == recipe.lr for i, rate in enumerate(rates) if i / 20 <= recipe.decay_from)
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
    end = 1.0 if recipe.decay_from == 1 else recipe.decay_to
    assert rates[-1] == pytest.approx(end * recipe.lr)


def test_bfloat16_computes_networks_alone(monkeypatch):
    kinds, apply = [], PhaseTrainer._apply
    clip = LocalOptimization.clip_gradients

    def watched(self, role, objective, *args):
        class Watched:
            def losses(self, *args):
                found = objective.losses(*args)
                kinds.append({f"{role} loss": loss.dtype for loss in found.values()})
                return found

        spied: Any = Watched()
        return apply(self, role, spied, *args)

    def watched_clip(self, network, max_grad_norm):
        for parameter in network.parameters():
            kinds.append({"parameter": parameter.dtype, "gradient": parameter.grad.dtype})
        return clip(self, network, max_grad_norm)

    computed, linear = set(), torch.nn.functional.linear

    def watched_linear(x, *args):
        computed.add(x.dtype)
        return linear(x, *args)

    monkeypatch.setattr(PhaseTrainer, "_apply", watched)
    monkeypatch.setattr(LocalOptimization, "clip_gradients", watched_clip)
    monkeypatch.setattr(torch.nn.functional, "linear", watched_linear)
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    init = FromDenoiser(MlpDenoiser.rectified_flow(dim=2, classes=2, width=16))
    runtime = OneProcess(precision=torch.bfloat16)
    scalars, student = trained(runtime, teacher, init=init, batch_size=64)
    assert all(torch.tensor(list(heard.values())).isfinite().all() for heard in scalars)
    assert {kind for found in kinds for kind in found} == {
        "fake loss",
        "generator loss",
        "parameter",
        "gradient",
    }
    assert all(kind == torch.float32 for found in kinds for kind in found.values())
    assert torch.bfloat16 in computed
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in student.values())
    wanted, exact = trained(OneProcess(), teacher, init=init, batch_size=64)
    assert scalars != wanted
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
