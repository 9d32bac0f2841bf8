"""One cycle of every phase as large models train: adapters over one base, bfloat16, recomputed.

``python -m pytest -m gpu`` runs it on an accelerator; its smallest case runs anywhere.
"""

import pytest
import torch

from pdmd import LowRank, LowRankRoles, PhasePlan, distill
from pdmd.teachers import QwenImageTeacher
from pdmd.teachers.guided import Guided
from pdmd.training.accounting import Account
from pdmd.training.runtime import OneProcess

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
        runtime=OneProcess(device, torch.bfloat16, recompute=True),
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
