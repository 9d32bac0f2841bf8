"""One rank's walk through a distillation, with its private memory measured by stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pdmd.benchmarks.private_memory import PrivateMemory
from pdmd.benchmarks.rank_memory import ADAPTER, SIZE, Walk, _load
from pdmd.diffusion.sampling import sample_ode
from pdmd.distillation.distill import distill
from pdmd.distillation.initializers import FromTeacher, Initializer, LowRankRoles
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.sampling import sample
from pdmd.distributed.titan import TitanRuntime
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

__all__ = ["walk_rank"]


class _Stages(Recorder):
    """Names the stages of a distillation, and stops it once in phase 2."""

    interval = 1

    def __init__(self, memory: PrivateMemory, checkpointer: Checkpointer, stops: bool) -> None:
        self.memory, self.checkpointer, self.stops = memory, checkpointer, stops
        self.phase = 0

    def on_phase_start(self, phase: Any, phases: int, updates: int, update: int) -> None:
        self.phase = phase.index + 1
        if self.stops and self.phase == 1:
            self.memory.stage("phase 1")

    def on_update(self, update: int) -> None:
        if self.stops and self.phase == 1 and update == 2:
            self.memory.stage("phase 2")  # with the end of phase 1
        if self.stops and self.phase == 2:
            self.checkpointer.stop_requested = True


def walk_rank(walk: Walk, rank: int, ranks: int) -> None:
    """Walks through a distillation, and writes the peaks of its stages.

    Args:
        walk: The walk.
        rank: This rank.
        ranks: The number of ranks.
    """
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    work = Path(walk.work)
    dist.init_process_group(
        "gloo", init_method=f"file://{work / 'ranks'}", rank=rank, world_size=ranks
    )
    runtime = TitanRuntime(precision=torch.bfloat16, activation_checkpointing="full")
    _warm(runtime)
    with PrivateMemory() as memory:
        memory.stage("load")
        for stops in (True, False):
            if not stops:
                memory.stage("resume")
            checkpointer = Checkpointer(work / "checkpoint", every=1)
            try:
                student, teacher = _distilled(walk, runtime, checkpointer, memory, stops)
            except Interrupted:
                continue
        memory.stage("save")
        student.save(work / "student")
        memory.stage("evaluate")
        placed = runtime.placement.frozen(teacher, shared=walk.adapted)
        condition = teacher.encode(list(teacher.prompts)[:2]).to(runtime.device)
        sample_ode(placed, condition, steps=2)
        sample(student, condition)
        memory.stage("export")
    (work / f"peaks_{rank}.json").write_text(json.dumps(memory.peaks))
    runtime.ranks.close()


def _distilled(
    walk: Walk,
    runtime: TitanRuntime,
    checkpointer: Checkpointer,
    memory: PrivateMemory,
    stops: bool,
) -> Any:
    teacher = runtime.placement.outline(_load(walk.folder))
    initializer: Initializer = LowRankRoles(ADAPTER, ADAPTER) if walk.adapted else FromTeacher()
    student = distill(
        teacher,
        PhasePlan.uniform(2),
        updates=2,
        experts=ExpertTraining(initializer=initializer),
        rollouts=Rollouts(batch_size=runtime.ranks.data_ranks),
        fake_scores=FakeScoreTraining(updates=1),
        session=Session(
            runtime=runtime,
            recorder=_Stages(memory, checkpointer, stops),
            checkpointer=checkpointer,
            resume=not stops,
        ),
        seed=walk.seed,
        source={
            "teacher": "qwen_image",
            "arguments": {"folder": walk.folder, "dtype": "bfloat16", **SIZE},
        },
    )
    return student, teacher


def _warm(runtime: TitanRuntime) -> None:
    """Loads what is imported late, so that it is not measured."""
    import diffusers.models.transformers.transformer_qwenimage
    import torch.distributed.checkpoint.state_dict_saver

    assert diffusers and torch
    x = torch.ones(8, 8, dtype=torch.bfloat16, requires_grad=True)
    (x @ x).float().sum().backward()
    runtime.ranks.mean(torch.ones(1))
