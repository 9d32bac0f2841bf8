"""Sizes of checkpoints: what is planned is what is on the disk."""

import pytest
import torch

from pdmd import AdamRecipe, MlpDenoiser, PhasePlan, RectifiedFlow
from pdmd.distillation.adapters import LowRank
from pdmd.distillation.initializers import LowRankRoles
from pdmd.teachers.base import Teacher
from pdmd.training.checkpoints.checkpointer import Checkpointer
from pdmd.training.checkpoints.sizes import CheckpointSize, TrainedSize
from tests.helpers.distilling import distill
from tests.helpers.small_runs import StopAt


class Wide(Teacher):
    """A teacher of some 500 thousand parameters."""

    def __init__(self):
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(4,))
        torch.manual_seed(0)
        self.net = MlpDenoiser(dim=4, width=512, schedule=RectifiedFlow())

    def network(self, x_t, t, condition):
        return self.net.network(x_t, t, condition)

    def encode(self, prompts):
        return None


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("ema", [0.9, 0.0])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_checkpoint_has_the_planned_size_and_finished_experts_are_written_once(
    tmp_path, ema, adapters
):
    teacher, folder = Wide(), tmp_path / "c"
    spec = LowRank(rank=32)
    init = LowRankRoles(spec, spec, seed=0) if adapters else None
    checkpointer = Checkpointer(folder, every=1)
    stop = StopAt(checkpointer, after=5)
    settings = {"updates": 2, "fake_updates": 1, "batch_size": 2, "ema": ema, "init": init}
    with pytest.raises(RuntimeError, match="phase 3 after update 1"):
        distill(
            teacher,
            PhasePlan.uniform(3),
            optimizer=AdamRecipe(),
            checkpointer=checkpointer,
            recorder=stop,
            **settings,
        )
    network = (init or LowRankRoles(None, None)).expert(teacher, PhasePlan.uniform(1)[0], [])
    trained = sum(p.numel() for p in network.parameters())
    assert trained > 90_000 and (trained < 300_000) == adapters
    planned = CheckpointSize(
        generator=TrainedSize(parameters=trained, average=ema > 0),
        fake=TrainedSize(parameters=trained),
        finished=(trained, trained),
    )
    tolerance = 150_000  # names, shapes and alignment, of every tensor
    newest = folder / "phase-0003-update-000000001"
    assert 0 <= size_of(newest) - planned.checkpoint < tolerance
    experts = sorted(path.name for path in (folder / "experts").iterdir())
    assert experts == ["expert-0001", "expert-0002"]
    assert 0 <= size_of(folder / "experts") - planned.experts < tolerance
    assert size_of(folder) < planned.store


def test_full_weights_take_28_bytes_a_parameter_and_8_bit_moments_16():
    def bytes_of(bits):
        return CheckpointSize(
            generator=TrainedSize(parameters=1, average=True, bits=bits),
            fake=TrainedSize(parameters=1, bits=bits),
        ).checkpoint

    assert bytes_of(32) == 28
    assert bytes_of(8) == pytest.approx(12 + 4 * 1.015625)
    with pytest.raises(ValueError, match="32 or 8 bits, got 4"):
        TrainedSize(parameters=1, bits=4)
