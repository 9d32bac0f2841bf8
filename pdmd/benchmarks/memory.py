"""The activations that a recorded computation keeps for its backward, measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pdmd.benchmarks.schemes import Scheme
from pdmd.phases import PhasePlan
from pdmd.teachers.base import Teacher
from pdmd.training.initializers import Initializer

__all__ = ["rollout_mib", "saved_mib"]


def saved_mib(compute: Callable[[], object], network: nn.Module) -> float:
    """Measures the storages that autograd saves, the network's parameters left out.

    Args:
        compute: What to record; its result is kept until all is counted.
        network: The network it runs.

    Returns:
        Their size, in MiB.
    """
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = compute()
    size = sum(saved.values())
    del kept
    return round(size / 2**20, 3)


def rollout_mib(
    scheme: Scheme, plan: PhasePlan, init: Initializer, teacher: Teacher, batch: int
) -> float:
    """Measures a scheme's recorded rollout.

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
    condition = teacher.encode([teacher.prompts[i % len(teacher.prompts)] for i in range(batch)])

    def measure(index: int) -> float:
        phase = plan[index]
        expert = scheme.expert(init.expert(teacher, phase, []), phase)
        x = torch.randn(batch, *teacher.latent_shape, generator=generator)
        stop = scheme.truncation(phase, generator)
        return saved_mib(lambda: expert(x, condition, generator=generator, stop=stop), expert)

    return max(measure(i) for i in range(len(plan)))
