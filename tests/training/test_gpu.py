"""One cycle per phase as for large models: adapters, bfloat16, activation checkpointing.

``python -m pytest -m gpu`` runs it on an accelerator; its smallest case runs anywhere.
"""

import json
import runpy
import time
from pathlib import Path

import pytest
import torch

from pdmd import LowRank, LowRankRoles, PhasePlan
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers import QwenImageTeacher
from pdmd.teachers.guided import Guided
from pdmd.training.monitoring.accounting import Account
from pdmd.training.trainer import PhaseTrainer
from tests.helpers.distilling import distill

TINY = {"height": 64, "width": 64, "num_layers": 1, "num_attention_heads": 2, "text_length": 8}
TINY |= {"attention_head_dim": 32, "joint_attention_dim": 64}
SMALL = {"height": 512, "width": 512, "num_layers": 8, "num_attention_heads": 12}


def one_cycle(device, **sizes):
    teacher = QwenImageTeacher.from_config(**sizes, dtype="bfloat16", device=device)
    account = Account()
    student = distill(
        Guided(teacher, 4.0),
        PhasePlan.uniform(2),
        init=LowRankRoles(LowRank(rank=4), LowRank(rank=4)),
        updates=1,
        fake_updates=2,
        batch_size=2,
        account=account,
        runtime=OneProcess(device, torch.bfloat16, activation_checkpointing=True),
    )
    return student, account


def check(student, account):
    forward = account.state()["forward"]
    assert forward["teacher"] == 2 * 2 * 2 and forward["fake"] == 2 * 2 * 3  # phases, samples
    for expert in student.experts:
        factors = [p for n, p in expert.denoiser.named_parameters() if "lora_B" in n]
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in factors)
        assert sum(float(p.abs().sum()) for p in factors) > 0  # they have been updated


def test_a_tiny_cycle_on_the_cpu():
    check(*one_cycle("cpu", **TINY))


@pytest.mark.gpu
def test_a_small_cycle_fits_beside_one_network():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    student, account = one_cycle("cuda", **SMALL)
    check(student, account)
    weights = sum(p.nbytes for p in student.experts[0].denoiser.base.parameters())
    peak = torch.cuda.max_memory_allocated() - before
    print(
        f"{torch.cuda.get_device_name()}: {weights / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB"
    )
    assert peak < 3 * weights  # less than three networks without any activations


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "gpu.py"))["main"]


DRY = ["--device", "cpu", "--tiny", "--cycles", "1"]


def test_a_dry_run_measures_every_role_and_cycle(benchmark, tmp_path):
    out = tmp_path / "gpu.json"
    benchmark([*DRY, "--out", str(out)])
    figures = json.loads(out.read_text())
    assert list(figures["models"]) == ["qwen_image", "wan_a14b"] and not figures["left_out"]
    for name, model in figures["models"].items():
        kinds = ("unmasked", "masked") if name == "qwen_image" else ("unmasked",)
        passes = ("teacher, guided forward", "expert, forward and backward")
        passes += ("fake score, forward and backward",)
        steps = ("generator, optimizer step", "fake, optimizer step")
        expected = {f"{what}, {kind}" for what in passes for kind in kinds} | {*steps}
        assert set(model["roles"]) == expected
        assert all(role["seconds"] > 0 for role in model["roles"].values())
        assert len(model["cycles"]) == 2 and all(c["seconds"] > 0 for c in model["cycles"])


def test_a_benchmark_leaves_out_what_does_not_fit(benchmark, tmp_path):
    out = tmp_path / "gpu.json"
    benchmark(["wan_a14b", *DRY, "--memory", "1e-6", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert not figures["models"] and "GiB" in figures["left_out"]["wan_a14b"]


def test_a_benchmark_stops_within_its_budget_and_keeps_its_figures(
    benchmark, tmp_path, monkeypatch
):
    out, cycles = tmp_path / "gpu.json", []
    whole = PhaseTrainer.cycle

    def slow(trainer):
        assert json.loads(out.read_text())["models"]["qwen_image"]["roles"]
        cycles.append(len(json.loads(out.read_text())["models"]["qwen_image"]["cycles"]))
        whole(trainer)
        now = time.monotonic() + 1000
        monkeypatch.setattr(time, "monotonic", lambda: now)

    monkeypatch.setattr(PhaseTrainer, "cycle", slow)
    benchmark(["qwen_image", *DRY, "--seconds", "900", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert cycles == [0] and len(figures["models"]["qwen_image"]["cycles"]) == 1
    assert figures["left_out"]["qwen_image"].startswith("no time for cycle 2")


def test_numbers_of_a_benchmark_are_checked(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark(["qwen_image", "--cycles", "0", "--out", str(tmp_path / "gpu.json")])
    assert "cycles" in capsys.readouterr().err
