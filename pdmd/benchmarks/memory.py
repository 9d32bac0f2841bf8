"""The activations that a generator update keeps for its backward, measured."""

from __future__ import annotations

import torch
from torch import Tensor

from pdmd.benchmarks.schemes import Scheme
from pdmd.phases import PhasePlan
from pdmd.teachers.base import Teacher
from pdmd.training.initializers import Initializer

__all__ = ["saved_mib"]


def saved_mib(
    scheme: Scheme, plan: PhasePlan, init: Initializer, teacher: Teacher, batch: int
) -> float:
    """Measures a recorded rollout: the storages autograd saves, parameters left out.

    Args:
        scheme: The scheme.
        plan: Its plan.
        init: Where its networks start.
        teacher: The teacher.
        batch: Samples in the rollout.

    Returns:
        The most over the plan's phases, in MiB.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = [teacher.prompts[i % len(teacher.prompts)] for i in range(batch)]
    condition = teacher.encode(prompts)
    most = 0
    for phase in plan:
        expert = scheme.expert(init.expert(teacher, phase, []), phase)
        own = {p.untyped_storage().data_ptr() for p in expert.parameters()}
        saved: dict[int, int] = {}

        def pack(x: Tensor, own: set[int] = own, saved: dict[int, int] = saved) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return x

        x = torch.randn(batch, *teacher.latent_shape, generator=generator)
        stop = scheme.truncation(phase, generator)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = expert(x, condition, generator=generator, stop=stop)
        most = max(most, sum(saved.values()))
        del out
    return round(most / 2**20, 3)
