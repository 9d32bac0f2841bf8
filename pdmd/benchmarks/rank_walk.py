"""One rank's walk through a distillation, with its private memory measured by stage."""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pdmd.benchmarks.private_memory import PrivateMemory
from pdmd.diffusion.sampling import sample_ode
from pdmd.distillation.distill import distill
from pdmd.distillation.initializers import FromTeacher, Initializer, LowRankRoles
from pdmd.distillation.low_rank import LowRank
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.sampling import sample
from pdmd.distillation.students import Student
from pdmd.distributed.runtime import Runtime
from pdmd.distributed.weight_files import WholeTensor, write_tensors
from pdmd.export.diffusers import export_diffusers
from pdmd.extras import require
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.prompts import PromptEmbeddings
from pdmd.teachers.families.qwen_image import QwenImageTeacher
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.monitoring.recorder import Recorder
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

__all__ = ["ADAPTER", "Walk", "load_teacher", "walk_rank", "write_teacher"]

ADAPTER = LowRank(rank=16, alpha=16.0)
SIZE: dict[str, Any] = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Walk:
    """What a rank goes through.

    Attributes:
        folder: The teacher's folder.
        work: A folder that all ranks share, for checkpoint, student and export.
        adapted: Whether experts and fake scores are adapters.
        seed: The seed.
    """

    folder: str
    work: str
    adapted: bool
    seed: int


def write_teacher(folder: Path, millions: float) -> None:
    """Writes a Qwen-Image-class pipeline with random weights in bfloat16, tensor by tensor.

    Args:
        folder: Where; an existing teacher is kept.
        millions: Parameters of its transformer, approximately, in millions.
    """
    if (folder / "model_index.json").exists():
        return
    heads = max(2, round(math.sqrt(millions / 1000) * 12))
    block = _outline(heads, 2).backbone
    per_block = sum(p.numel() for p in block.transformer_blocks[0].parameters())
    layers = max(2, round(millions * 1e6 / per_block))
    backbone: Any = _outline(heads, layers).backbone
    place = folder / "transformer"
    place.mkdir(parents=True, exist_ok=True)
    backbone.save_config(place)
    generator = torch.Generator().manual_seed(0)

    def random(value: Tensor) -> Callable[[], Tensor]:
        return lambda: 0.02 * torch.randn(value.shape, generator=generator)

    write_tensors(
        place / "diffusion_pytorch_model.safetensors",
        [
            WholeTensor(name, tuple(value.shape), torch.bfloat16, random(value))
            for name, value in backbone.state_dict().items()
        ],
        metadata={"format": "pt"},
    )
    index = {
        "_class_name": "QwenImagePipeline",
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


class _Stages(Recorder):
    """Names the stages of a distillation, and stops it once in phase 2."""

    interval = 1
    calibrations = False

    def __init__(self, memory: PrivateMemory, checkpointer: Checkpointer, stops: bool) -> None:
        self.memory, self.checkpointer, self.stops = memory, checkpointer, stops
        self.phase = 0

    def on_phase_start(self, phase: Any, phases: int, updates: int, done: int) -> None:
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
    from pdmd.distributed.titan import TitanRuntime

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
                gc.collect()  # as in a new process: sharded modules refer to themselves
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
        del placed
        gc.collect()  # sharded modules refer to themselves
        memory.stage("export")
        if runtime.main:  # from the files, tensor by tensor
            loaded = Student.load(work / "student", teacher=load_teacher(walk.folder))
            export_diffusers(loaded, work / "pipeline", base=walk.folder)
        dist.barrier()
    (work / f"peaks_{rank}.json").write_text(json.dumps(memory.peaks))
    runtime.ranks.close()


def _distilled(
    walk: Walk,
    runtime: Runtime,
    checkpointer: Checkpointer,
    memory: PrivateMemory,
    stops: bool,
) -> Any:
    teacher = runtime.placement.outline(load_teacher(walk.folder))
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
        check_score=False,  # of random weights, in hundreds of gathered evaluations
        source={
            "teacher": "qwen_image",
            "arguments": {"folder": walk.folder, "dtype": "bfloat16", **SIZE},
        },
    )
    return student, teacher


def _warm(runtime: Runtime) -> None:
    """Loads what is imported late, so that it is not measured."""
    require("diffusers", "diffusers")
    import diffusers.models.transformers.transformer_qwenimage
    import torch.distributed.checkpoint.state_dict_saver

    assert diffusers and torch
    x = torch.ones(8, 8, dtype=torch.bfloat16, requires_grad=True)
    (x @ x).float().sum().backward()
    runtime.ranks.mean(torch.ones(1))


def load_teacher(folder: str) -> Teacher:
    """Outlines a teacher that :func:`write_teacher` wrote."""
    text = PromptEmbeddings.random(4, length=8, dim=256, masked=True, seed=0)
    return QwenImageTeacher.from_pretrained(
        folder, dtype="bfloat16", meta=True, embeddings=text, shift=1.0, **SIZE
    )


def _outline(heads: int, layers: int) -> Any:
    return QwenImageTeacher.from_config(
        meta=True,
        dtype="bfloat16",
        **SIZE,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=128,
        joint_attention_dim=256,
    )
