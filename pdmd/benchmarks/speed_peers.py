"""Equal work: DMD with one phase of one step, by the library and two other implementations.

A cycle is a number of fake updates on fresh rollouts from noise to clean samples, then a generator
update against a guided teacher. Each implementation has copies of the same teacher, the same batch
size, learning rates, Adam (fused), clipping and EMA, and the same number of network evaluations.
Each is written as its documentation recommends: the hand-written loop evaluates guidance as one
batch of twice the size, ``modelopt.torch.fastgen`` as two calls, and the library as either by the
number of rows (:class:`~pdmd.teachers.guided.Guided`).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pdmd.benchmarks.bare import DECAY, MARGIN, MAX_GRAD_NORM, apply_update, bare_cycle, labels
from pdmd.distillation.experts import Expert, OdeExpert
from pdmd.distillation.phases import PhasePlan
from pdmd.distributed.runtime import OneProcess
from pdmd.objectives.distribution_matching import DistributionMatching
from pdmd.objectives.score_matching import SubintervalScoreMatching
from pdmd.randomness import RankGenerator
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import Guided
from pdmd.training.conditions import ConditionStream
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import FakeScoreTraining, FakeUpdates
from pdmd.training.learning_rates import Constant
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import FreshPhaseInputs, PhaseInputs
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

__all__ = ["MISSING", "PEERS", "Cycle", "Task", "has_modelopt", "build_trainer"]

MISSING = (
    "nvidia-modelopt is not installed, so its rows are left out; "
    "install it with pip install 'pdmd[bench]'"
)

Cycle = Callable[[], object]
"""Runs one cycle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The task of all implementations.

    Attributes:
        teacher: The teacher, frozen, without guidance, on its device; its labels are 0 to 9.
        guidance: The guidance scale.
        fake_updates: Fake updates per generator update.
        batch: Batch size of a rollout.
        lr: The learning rate of the generator.
        fake_lr: The learning rate of the fake score.
        seed: The seed of all random numbers.
    """

    teacher: Teacher
    guidance: float
    fake_updates: int
    batch: int
    lr: float
    fake_lr: float
    seed: int


def build_trainer(
    task: Task,
    expert: type[Expert],
    plan: PhasePlan,
    earlier: list[Expert],
    *,
    fake_updates: FakeUpdates | None = None,
    fake_updates_per_rollout: int = 1,
    phase_inputs: PhaseInputs | None = None,
) -> PhaseTrainer:
    """Builds the library's trainer of the next phase.

    Args:
        task: The task.
        expert: The class of experts.
        plan: The phases.
        earlier: The frozen experts of earlier phases.
        fake_updates: The number of fake updates; fixed by default.
        fake_updates_per_rollout: Fake updates that reuse one rollout.
        phase_inputs: Where rollouts start.
    """
    teacher = task.teacher
    return PhaseTrainer(
        experts=[expert(teacher.trainable_copy(), plan[len(earlier)])],
        earlier=earlier,
        teacher=Guided(teacher, task.guidance),
        fakes=[[teacher.trainable_copy()]],
        generator_objective=DistributionMatching(),
        fake_objective=SubintervalScoreMatching(),
        conditions=ConditionStream(labels(torch.arange(10, device=teacher.device))),
        updates=10**6,
        generator=RankGenerator.make(task.seed),
        expert_training=ExpertTraining(
            optimizer=AdamRecipe(lr=task.lr, decay=Constant()),
            ema=DECAY,
            max_grad_norm=MAX_GRAD_NORM,
        ),
        rollouts=Rollouts(batch_size=task.batch, phase_inputs=phase_inputs or FreshPhaseInputs()),
        fake_training=FakeScoreTraining(
            updates=fake_updates or task.fake_updates,
            updates_per_rollout=fake_updates_per_rollout,
            optimizer=AdamRecipe(lr=task.fake_lr, decay=Constant()),
            max_grad_norm=MAX_GRAD_NORM,
        ),
        session=Session(runtime=OneProcess(teacher.device), max_consecutive_skips=0),
        seed=task.seed,
    )


def _pdmd(task: Task) -> Cycle:
    return build_trainer(task, OdeExpert, PhasePlan.uniform(1), []).cycle


def _bare(task: Task) -> Cycle:
    return bare_cycle(
        task.teacher,
        PhasePlan.uniform(1)[0],
        fake_updates=task.fake_updates,
        batch=task.batch,
        lr=task.lr,
        fake_lr=task.fake_lr,
        guidance=task.guidance,
        seed=task.seed,
    )


def has_modelopt() -> bool:
    """Returns whether ``nvidia-modelopt`` is installed, without importing it."""
    return importlib.util.find_spec("modelopt") is not None


def _modelopt(task: Task) -> Cycle:
    try:
        with warnings.catch_warnings():  # about versions of libraries that it does not use
            warnings.simplefilter("ignore")
            fastgen: Any = importlib.import_module("modelopt.torch.fastgen")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"nvidia-modelopt cannot be used ({error}); install it with pip install 'pdmd[bench]'"
        ) from error

    class Pipeline(fastgen.DMDPipeline):
        """Calls networks with this library's signature: latents, times, condition."""

        def _call_model(
            self,
            model: Teacher,
            hidden_states: torch.Tensor,
            timestep: torch.Tensor,
            encoder_hidden_states: Any = None,
        ) -> torch.Tensor:
            return model.network(hidden_states, timestep, encoder_hidden_states)

    teacher, batch = task.teacher, task.batch
    device, shape = teacher.device, (batch, *teacher.latent_shape)
    student, fake = (copy.deepcopy(teacher).requires_grad_(True).train() for _ in range(2))
    config = fastgen.DMDConfig(
        pred_type="flow",
        fake_score_pred_type="flow",
        guidance_scale=task.guidance,
        student_sample_steps=1,
        sample_t_cfg=fastgen.SampleTimestepConfig(
            time_dist_type="uniform", min_t=MARGIN, max_t=1 - MARGIN
        ),
        ema=fastgen.EMAConfig(decay=DECAY, fsdp2=False),
    )
    pipeline = Pipeline(student, teacher, fake, config)
    optimizers = [
        torch.optim.AdamW(n.parameters(), lr=rate, betas=(0.5, 0.99), weight_decay=0.0, fused=True)
        for n, rate in ((student, task.lr), (fake, task.fake_lr))
    ]
    rng = torch.Generator(device).manual_seed(task.seed)
    clean = torch.zeros(shape, device=device)  # a one-step student uses only the shape
    null = labels(torch.full((batch,), 10, device=device))

    def draw() -> tuple[torch.Tensor, Any]:
        label = torch.randint(10, (batch,), generator=rng, device=device)
        return torch.randn(shape, generator=rng, device=device), labels(label)

    def cycle() -> None:
        for _ in range(task.fake_updates):
            noise, condition = draw()
            losses = pipeline.compute_fake_score_loss(clean, noise, condition)
            apply_update(fake, optimizers[1], losses["total"])
        noise, condition = draw()
        losses = pipeline.compute_student_loss(
            clean, noise, condition, negative_encoder_hidden_states=null
        )
        apply_update(student, optimizers[0], losses["total"])
        pipeline.update_ema()

    return cycle


PEERS: dict[str, Callable[[Task], Cycle]] = {"pdmd": _pdmd, "bare": _bare, "modelopt": _modelopt}
"""The implementations; the first is the reference."""
