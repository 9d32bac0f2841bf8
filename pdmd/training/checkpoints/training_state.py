"""Training state: networks, optimizers, averages and random generator, in checkpoints.

All ranks write a checkpoint together, each its shards of every tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdmd.distillation.experts import Expert
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.distributed.state_layout import StateLayout
from pdmd.training.checkpoints.checkpointer import NoCheckpoints, State
from pdmd.training.checkpoints.global_generators import describe_global_generators, global_states
from pdmd.training.phase_inputs import PhaseInputs
from pdmd.training.session import Session
from pdmd.training.trainer import PhaseTrainer

__all__ = [
    "check_phases",
    "load_average",
    "load_expert",
    "load_generator",
    "load_trainer",
    "save_training",
]


def save_training(
    session: Session,
    finished: Sequence[Expert],
    generator: torch.Generator,
    phase_inputs: PhaseInputs,
    trainer: PhaseTrainer | None = None,
) -> None:
    """Writes a checkpoint of a training, on every rank together.

    Args:
        session: Its checkpointer and account are used.
        finished: The finished experts, placed by the runtime.
        generator: The random generator.
        phase_inputs: Supplies the latents at which rollouts start.
        trainer: The trainer of the current phase; ``None`` between phases.

    Raises:
        NonFiniteError: If too many updates in a row were skipped; nothing is written then.
    """
    training = () if trainer is None else trainer.experts

    def collect() -> State:
        device = session.runtime.device
        tensors: dict[str, Tensor] = {"rng": generator.get_state(), **global_states(device)}
        cursor: dict[str, Any] = {
            "finished": len(finished),
            "phases": [_times(expert.phase) for expert in (*finished, *training)],
            "update": None,
            "phase_inputs": phase_inputs.state(),
            "account": session.account.state(),
            "global_generators": describe_global_generators(device),
        }
        if trainer is not None:
            trainer.settle()
            trainer.ema.wait()
            session.runtime.synchronize()
            cursor["update"] = trainer.update
            cursor["fake_updates"] = trainer.fake_updates.state()
            cursor["skipped"] = trainer.health.state()
            moments = {role: _moments(trainer, role) for role in trainer.networks}
            cursor["moments"] = {role: sorted(names) for role, names in moments.items()}
            tensors.update(_trainer_tensors(trainer, moments))
        return tensors, cursor

    for expert in finished:
        session.checkpointer.save_expert(
            expert.phase.index,
            functools.partial(_expert_tensors, finished, expert, session.runtime.states),
        )
    update = 0 if trainer is None else trainer.update
    session.checkpointer.save(f"phase-{len(finished) + 1:04d}-update-{update:09d}", collect)


def check_phases(plan: PhasePlan, cursor: Mapping[str, Any]) -> None:
    """Checks that the phases that a checkpoint has trained are those of a plan.

    Args:
        plan: The plan of the run that resumes.
        cursor: The checkpoint's cursor.

    Raises:
        ValueError: If a phase has other times.
    """
    trained = cursor.get("phases", [])  # an older version wrote none
    if len(trained) > len(plan):
        raise ValueError(
            f"the checkpoint has trained phase {len(trained)}, but the plan has {len(plan)}; "
            "resume with the plan that it was written with, or start again"
        )
    for phase, then in zip(plan, trained, strict=False):
        if _times(phase) != then:
            raise ValueError(
                f"{phase} is evaluated at {list(phase.timesteps)}, with scores compared in "
                f"{list(phase.score_range)}, but the checkpoint's was trained at "
                f"{then['timesteps']}, to {then['t_end']:.4g}, with scores in "
                f"{then['score_range']}; resume with the plan that it was written with, or start "
                "again"
            )


def _times(phase: Phase) -> dict[str, Any]:
    return {
        "timesteps": list(phase.timesteps),
        "t_end": phase.t_end,
        "score_range": list(phase.score_range),
    }


def load_expert(checkpointer: NoCheckpoints, expert: Expert, states: StateLayout) -> None:
    """Fills a finished expert's placed network from the checkpoint last read.

    Args:
        checkpointer: The checkpointer.
        expert: The expert.
        states: The layout of its state.

    Raises:
        ValueError: If the checkpoint's network has other names or shapes.
    """
    tensors = _named("expert", states.tensors(expert.denoiser))
    checkpointer.load_expert(expert.phase.index, tensors)
    states.load(expert.denoiser, _part(tensors, "expert"))


def load_average(
    checkpointer: NoCheckpoints, experts: Sequence[Expert], states: StateLayout, *, averaged: bool
) -> None:
    """Fills the placed networks of experts in training from the average of their weights.

    Args:
        checkpointer: The checkpointer.
        experts: The experts that train together.
        states: The layout of their states.
        averaged: Whether the checkpoint has an average; otherwise the weights are loaded.

    Raises:
        ValueError: If the checkpoint's networks have other names or shapes.
    """
    unique = {id(expert.denoiser): expert.denoiser for expert in experts}
    networks = nn.ModuleDict({str(i): one for i, one in enumerate(unique.values())})
    role = "ema" if averaged else "generator"
    tensors = _named(role, states.tensors(networks))
    checkpointer.load(tensors)
    states.load(networks, _part(tensors, role))


def load_generator(checkpointer: NoCheckpoints, generator: torch.Generator) -> None:
    """Restores the state of a random generator."""
    state = torch.empty_like(generator.get_state())
    checkpointer.load({"rng": state})
    generator.set_state(state)


def load_trainer(trainer: PhaseTrainer, cursor: Mapping[str, Any]) -> None:
    """Restores a new trainer to the state in a checkpoint.

    Args:
        trainer: The trainer.
        cursor: The checkpoint's cursor.

    Raises:
        ValueError: If the checkpoint's networks have other names or shapes.
    """
    states = trainer.session.runtime.states
    trainer.update = cursor["update"]
    trainer.fake_updates.restore(cursor["fake_updates"])
    trainer.health.restore(cursor["skipped"])
    moments: dict[str, dict[str, dict[str, Tensor]]] = {}
    for role, network in trainer.networks.items():
        blank = states.blank_moments(network, trainer.optimizers[role])
        unknown = sorted(set(cursor["moments"][role]) - set(blank))
        if unknown:
            raise ValueError(
                f"the checkpoint does not fit this run: its {role} trained {unknown[0]}, which "
                "this run does not; resume with the settings that it was written with, or start "
                "again"
            )
        moments[role] = {name: blank[name] for name in cursor["moments"][role]}
    tensors = _trainer_tensors(trainer, moments)
    trainer.session.checkpointer.load(tensors)
    for role, network in trainer.networks.items():
        states.load(network, _part(tensors, role))
        states.load_moments(network, trainer.optimizers[role], moments[role])
        trainer.rates[role].load_state_dict({"last_epoch": trainer.update})
    if trainer.ema.decay:
        states.load(trainer.ema.network, _part(tensors, "ema"))
    else:
        trainer.ema.update(trainer.networks["generator"], trainer.update)


def _expert_tensors(
    finished: Sequence[Expert], expert: Expert, states: StateLayout
) -> dict[str, Tensor]:
    """Returns the tensors of a finished expert; none if an earlier one has the same network."""
    first = next(one for one in finished if one.denoiser is expert.denoiser)
    return {} if first is not expert else _named("expert", states.tensors(expert.denoiser))


def _moments(trainer: PhaseTrainer, role: str) -> dict[str, dict[str, Tensor]]:
    states = trainer.session.runtime.states
    return states.moments(trainer.networks[role], trainer.optimizers[role])


def _trainer_tensors(
    trainer: PhaseTrainer, moments: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    states = trainer.session.runtime.states
    tensors: dict[str, Tensor] = {}
    for role, network in trainer.networks.items():
        tensors.update(_named(role, states.tensors(network)))
        for name, state in moments[role].items():
            for key, value in state.items():
                tensors[f"optimizer.{role}.{name}.{key}"] = value
    if trainer.ema.decay:  # otherwise it equals the generator
        tensors.update(_named("ema", states.tensors(trainer.ema.network)))
    return tensors


def _named(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}.{key}": value.detach() for key, value in tensors.items()}


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"network.{name}."
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
