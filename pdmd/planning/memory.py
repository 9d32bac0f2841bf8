"""Peak memory of one rank, by item.

Memory may peak at six moments of a cycle. A role's gradients are released after its update, and
are alive in the rollouts between which they are accumulated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pdmd.arguments import checked
from pdmd.distributed.degrees import Degrees
from pdmd.distributed.offload import Offload
from pdmd.planning.evaluations import Workload
from pdmd.planning.footprint import Footprint
from pdmd.planning.recording import MemoryTimeline
from pdmd.training.phase_inputs import PhaseInputBuffer

__all__ = ["EIGHT_BIT", "MASTER", "Precision", "PhaseFootprints", "RankMemory", "memory_of"]

EIGHT_BIT = 1 + 4 / 256
"""Bytes of a moment in 8 bits: its code, and its share of a scale in float32 for every 256."""

MASTER = 4
"""Bytes of a trained parameter, its gradient and its average."""

# Latents of a batch that are alive, beside those that networks keep:
_SCORED = 4  # while a network scores: phase input, noise, noisy latents, the other's prediction
_COMPARED = 9  # the same, both predictions, their means, the difference and its quotient
_TARGET = 6  # a fake score's target: phase input, noise, noisy latents, three temporaries
_LEARNED = 3  # in a fake score's backward pass: phase input, noise, target
_LAST = 3  # of the last fake update: noise, noisy latents, prediction
_FIRST = 2  # of a reused rollout, to which others are added: phase input and x_s
_SHARED = 2  # phase input and x_s of a rollout that both roles reuse
_STEPPED = 5  # of a buffer's step: before it, prediction, two products, their sum


@checked
@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of computation and storage.

    Attributes:
        compute: The dtype of computation and of gathered parameters, of roles without their own.
        frozen: The dtype in which frozen networks and finished experts are stored.
        moment_bytes: Bytes of each of a parameter's two moments: 4, or :data:`EIGHT_BIT`.
        generator: The dtype in which experts compute; ``compute`` by default.
        fake: The dtype in which fake scores compute; ``compute`` by default.
        average: The dtype in which averages and finished experts are stored.
    """

    compute: torch.dtype = torch.float32
    frozen: torch.dtype = torch.float32
    moment_bytes: float = 4.0
    generator: torch.dtype | None = None
    fake: torch.dtype | None = None
    average: torch.dtype = torch.float32

    def of(self, role: str) -> torch.dtype:
        """Returns the dtype in which a role computes: teacher, generator, frozen or fake."""
        own = {"generator": self.generator, "frozen": self.generator, "fake": self.fake}
        return own.get(role) or self.compute

    @property
    def mixed(self) -> bool:
        """Whether a role computes in a narrower dtype than the master weights."""
        return any(self.of(role).itemsize < MASTER for role in ("teacher", "generator", "fake"))


@checked
@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseFootprints:
    """The footprints of the networks that train one phase.

    Attributes:
        teacher: The teacher, without guidance.
        generator: The expert in training, measured through all steps with gradient.
        fake: The fake score.
        frozen: The experts of earlier phases.
    """

    teacher: Footprint
    generator: Footprint
    fake: Footprint
    frozen: tuple[Footprint, ...] = ()


@checked
@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank at its peak memory.

    Attributes:
        teacher: The teacher's parameters and buffers.
        frozen: Parameters and buffers of the experts of earlier phases.
        generator: The generator's parameters.
        average: The EMA of its weights.
        fake: The fake score's parameters.
        generator_optimizer: The two moments of the generator's parameters.
        fake_optimizer: The two moments of the fake score's parameters.
        generator_gradients: The generator's gradients.
        fake_gradients: The fake score's gradients.
        activations: Activations of the networks.
        in_flight: Gathered parameters, and gradients being reduced.
        data: Latents and conditions.
        moment: When in the cycle memory peaks.
        host: Bytes of CPU memory that offloaded roles take, which are not in the total.
    """

    teacher: float
    frozen: float
    generator: float
    average: float
    fake: float
    generator_optimizer: float
    fake_optimizer: float
    generator_gradients: float
    fake_gradients: float
    activations: float
    in_flight: float
    data: float
    moment: str
    host: float = 0.0

    @property
    def items(self) -> dict[str, float]:
        """The bytes on the GPU by item."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("moment", "host")}

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.items.values())


@checked
def memory_of(
    roles: PhaseFootprints,
    work: Workload,
    degrees: Degrees,
    precision: Precision,
    offload: Offload | None = None,
) -> RankMemory:
    """Returns the peak memory of one rank in a phase.

    Args:
        roles: The phase's networks.
        work: The settings of the cycle.
        degrees: The degrees of parallelism.
        precision: The dtypes of computation and storage.
        offload: The roles in CPU memory; none by default.
    """
    moments = _moments(roles, work, degrees, precision, offload or Offload())
    return max(moments, key=lambda m: m.total)


def _moments(
    roles: PhaseFootprints,
    work: Workload,
    degrees: Degrees,
    precision: Precision,
    offload: Offload,
) -> list[RankMemory]:
    teacher, own, fake = roles.teacher, roles.generator, roles.fake
    tp, shards = degrees.tp, degrees.shards
    batch = work.batch_size / degrees.batches

    def master(network: Footprint) -> float:
        return MASTER * network.local(tp) / shards

    def averaged(network: Footprint) -> float:
        return precision.average.itemsize * network.local(tp) / shards

    def stored_frozen(network: Footprint) -> float:
        return precision.frozen.itemsize * network.local(tp) / shards + network.buffers

    def optimizer(network: Footprint) -> float:
        return 2 * precision.moment_bytes * network.local(tp) / shards

    index = len(roles.frozen)
    fake_updates = work.fake_updates_of(index)
    learns = fake_updates > 0
    buffer = work.phase_inputs if isinstance(work.phase_inputs, PhaseInputBuffer) else None
    stored = (
        max(
            buffer.batches_in_memory(work.updates_of(k) * work.rollouts(k))
            for k in range(index + 1)
        )
        if buffer
        else 0
    )
    reused = learns and work.fake_updates_per_rollout > 1
    one_rollout = reused and fake_updates <= work.fake_updates_per_rollout
    beside = _LAST * learns + _FIRST * (reused and work.accumulate > 1)
    beside -= buffer is not None  # its phase input is one of the stored batches

    def data(latents: int) -> float:
        return batch * ((latents + stored) * own.latents + 2 * own.condition)

    base = RankMemory(
        teacher=stored_frozen(teacher),
        # a finished expert is the average of its weights, in the type in which it was trained
        frozen=sum(averaged(network) + network.buffers for network in roles.frozen),
        generator=master(own) + own.buffers,
        average=averaged(own) + own.buffers,
        fake=master(fake) + fake.buffers,
        generator_optimizer=optimizer(own),
        fake_optimizer=optimizer(fake) * learns,
        generator_gradients=0.0,
        fake_gradients=0.0,
        activations=0.0,
        in_flight=0.0,
        data=data(_SCORED + beside),
        moment="",
    )

    base = _offloaded(base, offload)

    def live(timeline: MemoryTimeline, rows: float) -> np.ndarray:
        cp = degrees.cp
        return timeline.bytes(rows, (1, 1 / cp, 1 / cp / tp, 0, 0))

    def gradients_of(timeline: MemoryTimeline, role: str) -> np.ndarray:
        """The bytes of the gradients computed so far, in float32."""
        scale = MASTER / precision.of(role).itemsize / shards
        return timeline.bytes(0, (0, 0, 0, scale, scale / tp))

    def inference(network: Footprint, rows: float) -> float:
        return float(live(network.inference_memory, rows).max())

    def moment(name: str, **changes: float) -> RankMemory:
        return dataclasses.replace(base, moment=name, **changes)

    gathering = shards > 1 or precision.mixed or offload.teacher or offload.experts
    # an adapter's base network is the teacher's
    placed = [("teacher", teacher), ("generator", own), ("fake", fake)]
    placed += [("frozen", network) for network in roles.frozen]
    roots = sum(precision.of(role).itemsize * n.root.local(tp) for role, n in placed)

    def in_flight(role: str, network: Footprint, *, backward: bool = False) -> float:
        """Gathered parameters, and gradients on their way to their shards."""
        if not gathering:
            return 0.0
        size, unit = precision.of(role).itemsize, network.largest(tp)
        gathered = roots + size * (2 if network.units or network.base_units else 1) * unit
        # inputs of a reduction are alive until the next one of the same backward pass
        together = network.reduced_together(tp)
        return gathered + ((MASTER + size) * together if backward else 0.0)

    def backward(role: str, network: Footprint, *, added: bool = False) -> RankMemory:
        timeline = network.training_memory
        gradients = gradients_of(timeline, role)
        if added:
            gradients = np.full(len(timeline.fixed), master(network))
        activations = live(timeline, batch)
        end = timeline.forward_end
        best = end + int((activations + gradients)[end:].argmax())
        return moment(
            {"generator": "generator's backward", "fake": "fake score's backward"}[role],
            activations=float(activations[best]),
            in_flight=in_flight(role, network, backward=True),
            **{f"{role}_gradients": float(gradients[best])},
        )

    timeline = live(own.training_memory, batch)[: own.training_memory.forward_end + 1]
    kept = float(timeline[-1])
    calls = work.teacher_calls(batch, sharded=degrees.ranks > 1)
    rows = work.evaluations * batch / calls
    scored = inference(teacher, rows)
    if calls > 1:  # the first output is kept
        scored += batch * own.latents
    elif work.evaluations > 1:  # both evaluations run as one concatenated batch
        scored += rows * teacher.condition
    together = buffer.together * batch if buffer else batch
    frozen = (inference(network, together) for network in roles.frozen)
    rollout = max(inference(own, batch), *frozen, 0.0)
    # The activations of a reused rollout are kept through all fake updates.
    shared = kept if reused else 0.0
    waiting = 0.0 if one_rollout else shared
    # Gradients are released after their role's update, and are there while more are added to them.
    added = {"generator_gradients": master(own)} if work.accumulate > 1 else {}
    fake_added = {"fake_gradients": master(fake)} if work.fake_accumulate > 1 and learns else {}
    moments = [
        moment(
            "rollout without gradient",
            activations=rollout + waiting,
            in_flight=in_flight("generator", own),
            data=data(buffer.together + _LAST * learns) if buffer else base.data,
            **fake_added,
        ),
        moment(
            "recorded rollout",
            activations=float(timeline.max()),
            in_flight=in_flight("generator", own),
            **added,
        ),
        moment(
            "teacher's scores",
            activations=kept + scored,
            in_flight=in_flight("teacher", teacher),
            **added,
        ),
        moment(
            "fake score's scores",
            activations=kept + inference(fake, batch),
            in_flight=in_flight("fake", fake),
            **added,
        ),
        moment("comparison of scores", activations=kept, data=data(_COMPARED + beside), **added),
        backward("generator", own, added=work.accumulate > 1),
    ]
    if buffer:
        step = data(_STEPPED * buffer.together + _LAST * learns)
        moments.append(
            moment("step of phase inputs", activations=waiting, data=step, **fake_added)
        )
    if not learns:
        return moments
    # x_s of a reused rollout is among its activations
    others = _LAST + (_SHARED * (not one_rollout) if reused else 1)
    forward = fake.training_memory
    target = moment(
        "fake score's target",
        activations=float(live(forward, batch)[forward.forward_end]) + shared,
        data=data(_TARGET + others),
        **fake_added,
    )
    last = backward("fake", fake, added=work.fake_accumulate > 1)
    last = dataclasses.replace(
        last,
        activations=last.activations + shared,
        data=data(_LEARNED + others),
    )
    return [*moments, target, last]


def _offloaded(memory: RankMemory, offload: Offload) -> RankMemory:
    """Moves the items of offloaded roles to the CPU's memory."""
    moved = {
        name: 0.0 for role, names in _OFFLOADED.items() if getattr(offload, role) for name in names
    }
    host = sum(getattr(memory, name) for name in moved)
    return dataclasses.replace(memory, **moved, host=memory.host + host)


_OFFLOADED = {
    "teacher": ("teacher",),
    "experts": ("frozen",),
    "averages": ("average",),
    "optimizers": ("generator_optimizer", "fake_optimizer"),
}
