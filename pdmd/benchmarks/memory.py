"""Measured memory: tensors saved for the backward pass, and peak allocation."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pdmd.benchmarks.schemes import Scheme
from pdmd.distillation.initializers import Initializer
from pdmd.distillation.phases import PhasePlan
from pdmd.teachers.base import Teacher

__all__ = ["peak_allocated", "rollout_mib", "saved_mib"]


def peak_allocated(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Measures the peak memory that a function allocates.

    On the CPU, allocations are counted by the torch profiler, which slows the function: do not
    time it.

    Args:
        run: The function. Memory allocated before is not counted.
        device: The device whose memory is measured.

    Returns:
        The peak, in bytes.
    """
    device = torch.device(device)
    gc.collect()  # memory freed during the run would distort the count
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # do not log every start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    kineto: Any = profiler.profiler
    events = kineto.kineto_results.events()
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def saved_mib(compute: Callable[[], object], network: nn.Module) -> float:
    """Measures the storages that autograd saves, excluding the network's parameters.

    Args:
        compute: The computation; its result is kept alive meanwhile.
        network: The network that it evaluates.

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
    """Measures the activations saved by a scheme's rollout with gradient.

    Args:
        scheme: The scheme.
        plan: Its plan.
        init: The initializer of its networks.
        teacher: The teacher.
        batch: Batch size of the rollout.

    Returns:
        The maximum over the phases, in MiB.
    """
    generator = torch.Generator().manual_seed(0)
    condition = teacher.encode([teacher.prompts[i % len(teacher.prompts)] for i in range(batch)])

    def measure(index: int) -> float:
        phase = plan[index]
        expert = scheme.expert(init.expert(teacher, phase, []), phase)
        x = torch.randn(batch, *teacher.latent_shape, generator=generator)
        exit_step = scheme.truncation(phase, generator)
        return saved_mib(
            lambda: expert(x, condition, generator=generator, exit_step=exit_step), expert
        )

    return max(measure(i) for i in range(len(plan)))
