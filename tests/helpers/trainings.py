"""Trainers of small image networks, to measure memory and network evaluations."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdmd import (
    AdamRecipe,
    DistributionMatching,
    Guided,
    OdeExpert,
    RectifiedFlow,
    SubintervalScoreMatching,
    Teacher,
)
from pdmd.distillation.initializers import FromTeacher
from pdmd.distributed.runtime import OneProcess
from pdmd.planning import PhaseFootprints, measure_footprint
from pdmd.teachers.mixture import encode_labels
from pdmd.teachers.packaged.transformer import ImageTransformer
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining
from pdmd.training.phase_inputs import FreshPhaseInputs
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

SMALL = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 2, "heads": 4}
MEDIUM = {"image_size": 16, "patch_size": 2, "width": 96, "depth": 3, "heads": 4}


class Images(Teacher):
    prompts = list(range(10))

    def __init__(self, **settings):
        size = settings["image_size"]
        super().__init__(schedule=RectifiedFlow(), kind="velocity", latent_shape=(1, size, size))
        self.net = ImageTransformer(**settings)

    def encode(self, prompts):
        return encode_labels(prompts, 10)

    def network(self, x_t, t, condition):
        return self.net(x_t, t.to(x_t.dtype), condition["label"])


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args):
        return checkpoint(self.block, *args, use_reentrant=False)


def checkpointed(teacher):
    teacher.net.blocks = nn.ModuleList(Checkpointed(block) for block in teacher.net.blocks)
    return teacher


def trainer_of(
    teacher,
    work,
    index,
    *,
    guidance=1.0,
    batch_size=None,
    seed=0,
    phase_inputs=None,
    init=None,
    runtime=None,
    fake_updates=None,
):
    """Builds the trainer of one phase of a planned work."""
    teacher, init = teacher.eval().requires_grad_(False), init or FromTeacher()
    runtime = runtime or OneProcess(activation_checkpointing=work.activation_checkpointing)
    phase, place = work.plan[index], runtime.placement
    earlier = [
        OdeExpert(init.expert(teacher, one, []).requires_grad_(False).eval(), one)
        for one in work.plan.phases[:index]
    ]
    expert, fake = init.expert(teacher, phase, []), init.fake(teacher, phase)
    conditions = ConditionStream(teacher.encode(teacher.prompts))
    real = teacher if guidance == 1 else Guided(teacher, guidance)
    if not isinstance(runtime, OneProcess):
        real = place.frozen(real, shared=init.adapts)
        earlier = [OdeExpert(place.frozen(one.denoiser), one.phase) for one in earlier]
    return PhaseTrainer(
        experts=[OdeExpert(expert, phase)],
        earlier=earlier,
        teacher=real,
        fakes=[[fake]],
        generator_objective=DistributionMatching(timestep_samples=work.timestep_samples),
        fake_objective=SubintervalScoreMatching(),
        conditions=conditions,
        updates=100,
        generator=torch.Generator().manual_seed(seed),
        expert_training=ExpertTraining(ema=0.9, accumulate=work.accumulate),
        rollouts=Rollouts(
            batch_size=batch_size or work.batch_size,
            truncation=work.truncation,
            phase_inputs=phase_inputs or FreshPhaseInputs(),
        ),
        fake_training=FakeScoreTraining(
            updates=fake_updates or work.fake_updates,
            updates_per_rollout=work.fake_updates_per_rollout,
            accumulate=work.fake_accumulate,
            optimizer=AdamRecipe(),
        ),
        session=Session(
            runtime=runtime,
            max_consecutive_skips=0,
        ),
    )


def roles_of(network, work, index):
    condition, steps = network.encode([1]), work.recorded_steps(index)
    settings = {"train": True, "activation_checkpointing": work.activation_checkpointing}
    one = measure_footprint(network, condition, **settings)
    many = one if steps == 1 else measure_footprint(network, condition, steps=steps, **settings)
    return PhaseFootprints(teacher=one, generator=many, fake=one, frozen=(one,) * index)
