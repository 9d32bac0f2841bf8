"""Short trainings of low-rank adapters, with the losses and gradients of every update."""

import copy

import torch

from pdmd import (
    AdamRecipe,
    LowRank,
    PhasePlan,
)
from pdmd.distillation.adapters import adapted_parts
from pdmd.distillation.initializers import Initializer
from pdmd.distributed.optimization import LocalOptimization
from pdmd.distributed.runtime import OneProcess
from pdmd.teachers.packaged.digits import DigitsTeacher
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill
from tests.helpers.tiny_families import FAMILIES

FOUR = LowRank(rank=4, alpha=8.0)


TWO = LowRank(rank=2, alpha=3.0, targets=("to_q", "to_v"))


TWO_DIGITS = LowRank(rank=2, alpha=3.0, targets=("qkv",))


def shaken(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def teacher_of(name):
    cls, arguments = FAMILIES[name]
    return shaken(cls.from_config(**arguments))


def digits():
    torch.manual_seed(0)
    return DigitsTeacher(shaken(ImageTransformer(width=32, depth=2, heads=4)), std=0.7)


def evaluated(denoiser, teacher, seed=0, t=0.6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *teacher.latent_shape, generator=generator)
    condition = teacher.encode(list(teacher.prompts)[:2])
    return denoiser(x, torch.tensor([t, t - 0.1], dtype=torch.float64), condition).value


class SeparateBases(Initializer):
    """The same roles, each over its own copy of the base."""

    def __init__(self, inner):
        self.inner = inner

    def expert(self, teacher, phase, finished):
        return self._separate(self.inner.expert(teacher, phase, finished))

    def fake(self, teacher, phase):
        return self._separate(self.inner.fake(teacher, phase))

    def _separate(self, denoiser):
        for part in adapted_parts(denoiser):
            part.use_base(copy.deepcopy(part.base))
        return denoiser


class Gradients(LocalOptimization):
    """Records the gradient of every update."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def clip_gradients(self, network, parameters, max_grad_norm):
        self.gradients += [
            torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters
        ]
        return super().clip_gradients(network, parameters, max_grad_norm)


class Losses(Recorder):
    interval = 1

    def __init__(self):
        self.values = []

    def on_scalars(self, phase, update, values):
        self.values.append({k: v for k, v in values.items() if not k.endswith("_recomputed")})


def run(teacher, init, *, activation_checkpointing=False, **more):
    runtime = OneProcess(activation_checkpointing=activation_checkpointing)
    runtime.optimization, recorder = Gradients(), Losses()
    student = distill(
        teacher,
        PhasePlan.uniform(2, steps=2),
        **{
            "init": init,
            "updates": 2,
            "fake_updates": 2,
            "batch_size": 4,
            "optimizer": AdamRecipe(lr=1e-2),
            "ema": 0.5,
            "recorder": recorder,
            "runtime": runtime,
            **more,
        },
    )
    return recorder.values, runtime.optimization.gradients, student


def same(a, b):
    assert a[0] == b[0] and len(a[0]) > 0
    assert len(a[1]) == len(b[1]) > 0
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert any(bool(x.any()) for x in a[1])
    ours, theirs = a[2].state_dict(), b[2].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
