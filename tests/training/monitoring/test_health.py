"""Health: updates that are not finite are skipped and reported, and too many stop the run."""

import math
import re

import pytest
import torch

from pdmd import (
    AdamRecipe,
    DistributionMatching,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    SubintervalScoreMatching,
)
from pdmd.cli.main import main
from pdmd.training.checkpoints.checkpointer import Checkpointer
from pdmd.training.learning_rates import Constant
from pdmd.training.monitoring.health import Health, NonFiniteError
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.trainer import PhaseTrainer
from tests.helpers.distilling import distill

OBJECTIVES = {"generator": DistributionMatching, "fake": SubintervalScoreMatching}
TINY = [
    "distill",
    "mixture",
    "--train.updates=6",
    "--train.fake-updates=1",
    "--train.batch-size=8",
    "--train.checkpoint-every=2",
    "--evaluate.samples=100",
    "--evaluate.teacher-steps=3",
    "--network.updates=5",
    "--plan.phases=2",
    "--no-progress",
    "--teacher.arguments",
    *("dim", "2", "classes", "2", "modes", "2"),
]


def loss_not_a_number(loss):
    return loss * math.nan


def loss_infinite(loss):
    return loss + math.inf


def gradient_not_a_number(loss):
    return loss.detach() + (0 * loss).abs().sqrt()


def spoil(monkeypatch, role, at, how=loss_not_a_number):
    """Spoils the losses of a role's objective at calls with these numbers, from 1."""
    losses, calls = OBJECTIVES[role].losses, []

    def spoiled(self, *args):
        calls.append(1)
        found = losses(self, *args)
        bad = len(calls) in at
        return {name: how(loss) if bad else loss for name, loss in found.items()}

    monkeypatch.setattr(OBJECTIVES[role], "losses", spoiled)


class Recording(Recorder):
    interval = 1

    def __init__(self):
        self.skipped, self.updates = [], 0

    def on_update(self, update):
        self.updates += 1

    def on_skipped_step(self, warning):
        self.skipped.append(warning)


def run(**changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    recorder = Recording()
    settings = dict(
        init=FromDenoiser(network), updates=4, fake_updates=1, batch_size=8, recorder=recorder
    )
    return distill(teacher, PhasePlan.uniform(2), **{**settings, **changes}), recorder


def snapshot(trainer, role):
    network, optimizers = trainer.networks[role], trainer.optimizers[role]
    state = {
        name: value.clone()
        for name, value in trainer.session.runtime.states.tensors(network).items()
    }
    for name, moments in trainer.session.runtime.states.moments(network, optimizers).items():
        state |= {f"{name} {key}": value.clone() for key, value in moments.items()}
    return state


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("how", [loss_not_a_number, loss_infinite, gradient_not_a_number])
@pytest.mark.parametrize("role", ["generator", "fake"])
def test_a_skipped_step_changes_nothing_and_the_run_continues(monkeypatch, role, how):
    spoil(monkeypatch, role, {3}, how)
    apply, changed = PhaseTrainer._apply, []

    def recorded(self, acting, *args):
        before = {name: snapshot(self, name) for name in self.networks}
        out = apply(self, acting, *args)
        moved = {name for name in before if not same(before[name], snapshot(self, name))}
        changed.append((acting, moved))
        return out

    monkeypatch.setattr(PhaseTrainer, "_apply", recorded)
    student, recorder = run()
    assert recorder.updates == 8 and len(recorder.skipped) == 1
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())
    assert [acting for acting, _ in changed] == ["fake", "generator"] * 8
    for acting in ("fake", "generator"):
        moved = [moved for other, moved in changed if other == acting]
        expected = [{acting}] * 8
        if acting == role:
            expected[2] = set()
        assert moved == expected


@pytest.mark.parametrize(
    ("role", "name"), [("generator", "distribution_matching"), ("fake", "score_matching")]
)
def test_a_warning_names_the_update_its_losses_and_times(monkeypatch, role, name):
    spoil(monkeypatch, role, {6})
    _, recorder = run(
        optimizer=AdamRecipe(lr=0.0125, decay=Constant()),
        fake_optimizer=AdamRecipe(lr=0.0125, decay=Constant()),
    )
    (warning,) = recorder.skipped
    assert "\n" not in warning
    assert f"phase 2, update 2: the {role}'s loss or gradient is not finite" in warning
    assert f"{name} = nan" in warning and "gradient norm = nan" in warning
    evaluated = {
        role: [float(t) for t in times if t]
        for role, *times in re.findall(r"; (\w+) at t = ([\d.]+)(?: to ([\d.]+))?", warning)
    }
    assert {"fake", "teacher"} <= evaluated.keys()
    assert all(0 <= t <= 1 for times in evaluated.values() for t in times)
    assert "the step was skipped" in warning and "now 0.0125" in warning


def test_the_default_recorder_warns_of_skipped_updates(monkeypatch):
    spoil(monkeypatch, "fake", {2})
    with pytest.warns(UserWarning, match="phase 1, update 2: the fake's loss"):
        run(recorder=Recorder())


@pytest.mark.parametrize("max_consecutive_skips", [0, 1, 3])
@pytest.mark.parametrize("role", ["generator", "fake"])
def test_more_consecutive_skips_than_allowed_stop_the_run(
    monkeypatch, role, max_consecutive_skips
):
    recorder = Recording()
    bad = range(2, 2 + max_consecutive_skips)
    with monkeypatch.context() as patch:  # as many skips as allowed
        spoil(patch, role, {*bad})
        run(recorder=recorder, max_consecutive_skips=max_consecutive_skips)
    assert len(recorder.skipped) == max_consecutive_skips and recorder.updates == 8
    spoil(monkeypatch, role, {*bad, 2 + max_consecutive_skips})
    with pytest.raises(NonFiniteError, match=f": the {role}'s loss") as error:
        run(max_consecutive_skips=max_consecutive_skips)
    again = f"{max_consecutive_skips + 1} steps of the {role} in a row were skipped"
    assert (again in str(error.value)) == (max_consecutive_skips > 0)


def test_an_applied_step_resets_the_count(monkeypatch):
    spoil(monkeypatch, "fake", {1, 2, 4, 5, 7, 8})
    _, recorder = run(max_consecutive_skips=2)
    assert len(recorder.skipped) == 6 and recorder.updates == 8


def test_roles_are_counted_apart():
    health = Health(1)
    health.skipped("fake", "a")
    health.skipped("generator", "b")
    health.applied("generator")
    health.skipped("generator", "c")
    with pytest.raises(NonFiniteError, match="d 2 steps of the fake in a row were skipped"):
        health.skipped("fake", "d")
    assert health.drain() == ["a", "b", "c", "d"] and health.drain() == []


def test_a_negative_number_of_skips_raises():
    with pytest.raises(ValueError, match="max_consecutive_skips must be at least 0, got -1"):
        run(max_consecutive_skips=-1)


def test_the_last_good_checkpoint_is_named_and_resumes(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        spoil(patch, "generator", {4, 5, 6, 7})
        checkpointer = Checkpointer(tmp_path / "a", every=3)
        with pytest.raises(NonFiniteError) as error:
            run(checkpointer=checkpointer, updates=8)
    name = "phase-0001-update-000000006"  # valid although earlier steps were skipped
    assert f"the last good checkpoint is {name}" in str(error.value)
    student, _ = run(checkpointer=Checkpointer(tmp_path / "a", every=3), updates=8, resume=True)
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())
    spoil(monkeypatch, "generator", {1})
    with pytest.raises(NonFiniteError, match="no checkpoint was written"):
        run(checkpointer=Checkpointer(tmp_path / "b"), max_consecutive_skips=0)


def test_the_command_line_prints_one_line_and_exits_with_1(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, "generator", {2, 4, 5, 6})
        assert main([*TINY, "--out", str(folder), "--train.max_consecutive_skips=2"]) == 1
    *warnings, error = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("pdmd: warning: phase 1, update ") for line in warnings] == [True] * 3
    assert error.startswith("pdmd: error: phase 1, update 6: the generator's loss")
    assert "the last good checkpoint is phase-0001-update-000000004" in error
    assert main([*TINY, "--out", str(folder), "--resume", "--train.max_consecutive_skips=0"]) == 0
