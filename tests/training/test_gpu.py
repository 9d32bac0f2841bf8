"""One cycle of every phase as large models train: adapters over one base, bfloat16, recomputed.

``python -m pytest -m gpu`` runs it on an accelerator; its smallest case runs anywhere.
"""

import json
import runpy
from pathlib import Path

import pytest
import torch

from pdmd import LowRank, LowRankRoles, PhasePlan
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers import QwenImageTeacher
from pdmd.teachers.guided import Guided
from pdmd.training.monitoring.accounting import Account
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
        assert sum(float(p.abs().sum()) for p in factors) > 0  # they have moved


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
    assert peak < 3 * weights  # three networks would be that much without a single activation


def test_a_tiny_benchmark_counts_and_times_every_role(tmp_path, capsys):
    main = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "gpu.py"))["main"]
    out = tmp_path / "gpu.json"
    some = ["--device", "cpu", "--tiny", "--cycles", "2", "--frames", "5", "--out", str(out)]
    main(["qwen_image", "wan_a14b", "--fake-updates", "2", *some])
    rows = json.loads(out.read_text())["rows"]
    assert [(r["model"], r["roles"]) for r in rows] == [
        (model, roles) for model in ("qwen_image", "wan_a14b") for roles in ("one base", "copies")
    ]
    for row in rows:
        # rollouts stop at a random step of the last phase's two
        asked, own = row["equivalents"], row["equivalents"]["generator"] - 3
        assert asked["teacher"] == 2 and asked["fake"] == 2 * 4 + 1
        assert 3 <= own <= 6 and asked["frozen"] == 6
        parts = row["seconds"]
        assert parts["all"] == pytest.approx(sum(v for k, v in parts.items() if k != "all"))
        assert all(parts[f"{role} backward"] > 0 for role in ("generator", "fake"))
        assert all(parts[f"{role} forward"] > 0 for role in asked)
        assert 0 < row["model_flops_utilisation"] < row["hardware_flops_utilisation"]
    for one, copies in zip(rows[::2], rows[1::2], strict=True):
        assert copies["peak_gib"] > one["peak_gib"]
    with pytest.raises(SystemExit):
        main(["qwen_image", "--cycles", "0", "--out", str(out)])
    assert "cycles" in capsys.readouterr().err
