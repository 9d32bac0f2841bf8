"""Where the networks of a run start: at the teacher, at another network, or a pretrained one."""

from __future__ import annotations

from typing import Any

from torch import nn

from pdmd.cli.config import DistillConfig
from pdmd.distillation.initializers import FromDenoiser, FromNetwork, Initializer
from pdmd.distillation.student_networks import check_conditions
from pdmd.distributed.placement import Placement
from pdmd.teachers.base import Teacher
from pdmd.teachers.guided import unguided
from pdmd.teachers.packaged.pretraining import network_arguments, pretrained_network
from pdmd.typing import Conditions

__all__ = ["RunStart", "has_weights"]


class RunStart:
    """Where the networks of a run start.

    Args:
        config: The configuration.
        teacher: The teacher, or its outline.
        conditions: Its encoded prompts.
        placement: Places the networks.

    Raises:
        ValueError: If the teacher has neither weights nor samples, or the network of the experts
            cannot be built, does not fit the teacher, or cannot be placed or adapted.
    """

    def __init__(
        self,
        config: DistillConfig,
        teacher: Teacher,
        conditions: Conditions | None,
        placement: Placement,
    ) -> None:
        self.config, self.teacher = config, teacher
        self.conditions: Any = conditions
        self.origin: FromDenoiser | FromNetwork | None = None
        adapters, network = config.lora.build(), teacher
        if not has_weights(teacher):
            self._check_samples()
            arguments = self._arguments()
            untrained = config.network.build(arguments, teacher.schedule)
            placement.check(untrained)
            if any(adapters):
                raise ValueError(
                    f"{config.teacher.name} has no weights to adapt; train full weights, with "
                    "lora.rank = 0 and lora.fake_rank = 0"
                )
            config.train.build_initializer(FromDenoiser(untrained))
            return
        placement.check(network)
        if config.student.given:
            built = config.student.build(teacher, outlined=not placement.in_place)
            first = None if conditions is None else conditions[:1]
            check_conditions(built, first)
            placement.check(built)
            self.origin = FromNetwork(placement.outline(built))
        config.lora.check_layers(unguided(teacher))
        config.train.build_initializer(self.origin, adapters)

    def build(self, *, progress: bool) -> tuple[Initializer, dict[str, Any]]:
        """Returns the initializer, and the ``source`` of the student.

        A network of a teacher without weights is pretrained for it.

        Args:
            progress: Whether to show a progress bar.
        """
        config, source = self.config, self.config.teacher.source()
        if has_weights(self.teacher):
            if self.origin is not None:
                source |= config.student.source()
            return config.train.build_initializer(self.origin, config.lora.build()), source
        arguments = self._arguments()
        source["network"] = {"name": config.network.name, "arguments": arguments}
        network = pretrained_network(
            self.teacher,
            config.network.name,
            arguments,
            updates=config.network.updates,
            seed=config.train.seed,
            progress=progress,
        )
        return config.train.build_initializer(FromDenoiser(network)), source

    def _check_samples(self) -> None:
        name = self.config.teacher.name
        if self.config.student.given:
            raise ValueError(
                f"{name} has no weights, so that fake scores cannot start from it; choose the "
                "network of both in the section [network], not in [student]"
            )
        if not hasattr(unguided(self.teacher), "sample"):
            raise ValueError(
                f"{name} has neither weights nor samples to pretrain a network on; give the "
                "teacher parameters or a sample(n, condition, generator=...) method"
            )

    def _arguments(self) -> dict[str, Any]:
        network = self.config.network
        return network_arguments(
            self.teacher,
            self.conditions,
            teacher_name=self.config.teacher.name,
            name=network.name,
            arguments=network.arguments,
        )


def has_weights(module: nn.Module) -> bool:
    """Returns whether a module has parameters."""
    return any(True for _ in module.parameters())
