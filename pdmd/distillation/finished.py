"""Finished experts: the frozen experts of earlier phases, placed by the runtime.

They stay sharded as they were trained. Networks of later phases that start from one read its
shards, through an outline of it (:mod:`pdmd.distributed.weight_sources`).
"""

from __future__ import annotations

from collections.abc import Sequence

from pdmd.diffusion.denoisers import Denoiser
from pdmd.distillation.adapters import adapted_parts
from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase
from pdmd.distributed.materialization import refer
from pdmd.distributed.runtime import Runtime
from pdmd.training.checkpoints.checkpointer import NoCheckpoints
from pdmd.training.checkpoints.training_state import load_expert
from pdmd.training.expert_training import ExpertTraining

__all__ = ["FinishedExperts"]


class FinishedExperts:
    """Builds the experts of a distillation, and stores those that are finished.

    Args:
        teacher: The teacher, or the outline of it, from which experts are initialized.
        training: How experts are initialized, and their class.
        runtime: Places the experts.

    Attributes:
        experts: The finished experts, placed by the runtime.
        starts: What the networks of later phases are copied from: the same experts, or outlines
            of them where networks are sharded.
    """

    def __init__(self, teacher: Denoiser, training: ExpertTraining, runtime: Runtime) -> None:
        self.teacher, self.training, self.runtime = teacher, training, runtime
        self.experts: list[Expert] = []
        self.starts: list[Expert] = []

    def initialize(self, group: Sequence[Phase]) -> list[Expert]:
        """Builds the experts of phases that train together, over trainable networks."""
        initializer, expert = self.training.initializer, self.training.expert
        if not self.training.curriculum.shared:
            return [
                expert(initializer.expert(self.teacher, phase, self.starts), phase)
                for phase in group
            ]
        span = Phase(
            index=group[0].index,
            timesteps=tuple(t for phase in group for t in phase.timesteps),
            t_end=group[-1].t_end,
            score_range=(
                min(phase.score_range[0] for phase in group),
                max(phase.score_range[1] for phase in group),
            ),
        )
        denoiser = initializer.expert(self.teacher, span, self.starts)
        return [expert(denoiser, phase) for phase in group]

    def gather(self, group: Sequence[Phase], trained: Sequence[Expert]) -> None:
        """Freezes and adds the experts of a trained group.

        Args:
            group: The phases of the group.
            trained: Their experts, over placed networks.
        """
        done = [_freeze(expert) for expert in trained]
        starts = done
        if not self.runtime.placement.in_place:
            starts = self.initialize(group)
            for start, placed in zip(starts, done, strict=True):
                refer(start.denoiser, placed.denoiser)
            if self.runtime.offload.experts and not self.runtime.offload.averages:
                done = self._place(starts)  # otherwise averages stay where they are
                for start, placed in zip(starts, done, strict=True):
                    refer(start.denoiser, placed.denoiser)
        self.starts += [_freeze(start) for start in starts]
        self.experts += done

    def restore(self, group: Sequence[Phase], checkpointer: NoCheckpoints) -> None:
        """Adds the experts of a finished group from a checkpoint."""
        experts = self.initialize(group)
        for network in {id(e.denoiser): e.denoiser for e in experts}.values():
            types = self.runtime.types
            self.runtime.placement.trained(
                network,
                offload=self.runtime.offload.averages,
                precision=types.generator,
                storage=types.average,
            )
        for expert in {id(one.denoiser): one for one in reversed(experts)}.values():
            load_expert(checkpointer, expert, self.runtime.states)  # once for a shared network
        self.gather(group, experts)

    def release(self) -> list[Expert]:
        """Returns the finished experts: over plain networks on the CPU, or over placed ones."""
        for expert in self.experts:
            self.runtime.placement.release(expert)
            for part in adapted_parts(expert):  # the base is the teacher's, and stays frozen
                part.base.requires_grad_(False)
        return self.experts

    def _place(self, plain: Sequence[Expert]) -> list[Expert]:
        """Returns the frozen experts of a group over placed networks, one for each plain one."""
        placement, offload = self.runtime.placement, self.runtime.offload.experts
        precision = self.runtime.types.generator
        placed = {
            id(network): placement.frozen(network, offload=offload, precision=precision)
            for network in {id(expert.denoiser): expert.denoiser for expert in plain}.values()
        }
        return [
            _freeze(type(expert)(placed[id(expert.denoiser)], expert.phase)) for expert in plain
        ]


def _freeze(expert: Expert) -> Expert:
    return expert.eval().requires_grad_(False)
