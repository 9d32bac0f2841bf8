"""Memory of one rank, item by item, at the moment when it is highest.

A cycle has six moments at which memory may peak; gradients are released when the next update of
the same role begins, so that those of the other role are alive too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pdmd.planning.evaluations import Work
from pdmd.planning.footprint import Footprint
from pdmd.planning.recording import Course

__all__ = ["Degrees", "Precision", "RankMemory", "Roles", "memory_of"]

_MASTER = 4  # bytes of a parameter that trains, of its gradient, its moments and its average
_HELD = 11  # latents of a batch that objectives and rollouts hold beside the networks'


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How many ranks share the work in each way.

    Attributes:
        dp_replicate: Copies of the shards, each with its part of the batch.
        dp_shard: Ranks that share parameters, each with its part of the batch.
        cp: Ranks that share a sequence (context parallelism); they share parameters too.
        tp: Ranks that share every layer (tensor parallelism).
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def gpus(self) -> int:
        """The number of ranks."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def shards(self) -> int:
        """Ranks over which parameters, gradients and optimizer states are sharded."""
        return self.dp_shard * self.cp

    @property
    def batches(self) -> int:
        """Ranks over which the batch is divided."""
        return self.dp_replicate * self.dp_shard


@dataclass(frozen=True, kw_only=True)
class Precision:
    """In how many bytes parameters are held and computed with.

    Attributes:
        compute: What networks compute in, and parameters are gathered in.
        frozen: What frozen networks are held in.
    """

    compute: torch.dtype = torch.float32
    frozen: torch.dtype = torch.float32

    @property
    def mixed(self) -> bool:
        """Whether parameters are held in more bytes than they are computed in."""
        return self.compute.itemsize < _MASTER


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """The footprints of the networks in training.

    Attributes:
        teacher: The teacher, without guidance.
        student: The generator, which has the fake score's and the frozen experts' shape, measured
            through the steps that its gradient goes through.
        fake: The fake score, measured through one step.
    """

    teacher: Footprint
    student: Footprint
    fake: Footprint


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank when its memory is highest.

    Attributes:
        teacher: The teacher's parameters and buffers.
        frozen: Those of the experts of earlier phases.
        generator: The generator's parameters.
        average: The average of its weights.
        fake: The fake score's parameters.
        generator_optimizer: The two moments of the generator's parameters.
        fake_optimizer: Those of the fake score's.
        generator_gradients: The generator's gradients.
        fake_gradients: The fake score's.
        activations: What the networks' computation keeps.
        in_flight: Parameters that are gathered, and gradients that are being reduced.
        data: Latents and conditions.
        moment: When this is.
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

    @property
    def items(self) -> dict[str, float]:
        """The bytes by item."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "moment"}

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.items.values())


def memory_of(
    roles: Roles, work: Work, index: int, degrees: Degrees, precision: Precision
) -> RankMemory:
    """Returns the memory of one rank in a phase, at its highest.

    Args:
        roles: The networks.
        work: What the training does.
        index: The phase, from 0.
        degrees: How the ranks share it.
        precision: What is held and computed in how many bytes.
    """
    return max(_moments(roles, work, index, degrees, precision), key=lambda m: m.total)


def _moments(
    roles: Roles, work: Work, index: int, degrees: Degrees, precision: Precision
) -> list[RankMemory]:
    teacher, student, fake = roles.teacher, roles.student, roles.fake
    tp, shards = degrees.tp, degrees.shards
    batch = work.batch_size / degrees.batches
    trained = _MASTER * student.local(tp) / shards
    held = precision.frozen.itemsize / shards

    def frozen(network: Footprint) -> float:
        return held * network.local(tp) + network.buffers

    conditions = batch * student.condition
    base = RankMemory(
        teacher=frozen(teacher),
        frozen=index * frozen(student),
        generator=trained + student.buffers,
        average=trained + student.buffers,
        fake=trained + student.buffers,
        generator_optimizer=2 * trained,
        fake_optimizer=2 * trained if work.fake_updates else 0.0,
        generator_gradients=trained,
        fake_gradients=trained if work.fake_updates else 0.0,
        activations=0.0,
        in_flight=0.0,
        data=_HELD * batch * student.latents + 2 * conditions,
        moment="",
    )

    def live(course: Course, rows: float) -> np.ndarray:
        cp = degrees.cp
        return course.bytes(rows, (1, 1 / cp, 1 / cp / tp, 0, 0))

    def made(course: Course) -> np.ndarray:
        """The bytes of gradients that a backward pass has made so far, held as masters."""
        scale = _MASTER / precision.compute.itemsize / shards
        return course.bytes(0, (0, 0, 0, scale, scale / tp))

    def quiet(network: Footprint, rows: float) -> float:
        return float(live(network.quiet, rows).max())

    def moment(name: str, **changes: float) -> RankMemory:
        return dataclasses.replace(base, moment=name, **changes)

    def highest(
        name: str, course: Course, role: str, *, over: float = 0.0, added: bool = False
    ) -> RankMemory:
        gradients = np.full(len(course.fixed), trained) if added else made(course)
        activations = live(course, batch) + over
        at = slice(course.turn, None)
        best = int((activations + gradients)[at].argmax()) + course.turn
        return moment(
            name,
            activations=float(activations[best]),
            in_flight=_in_flight(student, degrees, precision, backward=True),
            **{f"{role}_gradients": float(gradients[best])},
        )

    passing = _in_flight(student, degrees, precision, backward=False)
    own, other = student.recorded, fake.recorded
    kept = float(live(own, batch)[own.turn])
    forward = float(live(own, batch)[: own.turn + 1].max())
    pair = work.evaluations * batch
    asked = quiet(teacher, pair)
    if work.evaluations > 1:  # both evaluations run as one batch, which is put together
        asked += pair * (teacher.latents + teacher.condition)
    guided = _in_flight(teacher, degrees, precision, backward=False)
    again = {} if work.accumulate > 1 else {"generator_gradients": 0.0}
    moments = [
        moment("rollout for the fake score", activations=quiet(student, batch), in_flight=passing),
        moment("recorded rollout", activations=forward, in_flight=passing),
        moment("teacher's scores", activations=kept + asked, in_flight=guided, **again),
        moment(
            "fake score's scores",
            activations=kept + quiet(student, batch),
            in_flight=passing,
            **again,
        ),
        highest("generator's backward", own, "generator", added=work.accumulate > 1),
    ]
    if work.fake_updates:
        moments.append(highest("fake score's backward", other, "fake"))
    return moments


def _in_flight(
    network: Footprint, degrees: Degrees, precision: Precision, *, backward: bool
) -> float:
    """Bytes of gathered parameters and of gradients on their way to their shards."""
    if degrees.shards == 1 and not precision.mixed:
        return 0.0
    unit, root = network.largest(degrees.tp), network.root.local(degrees.tp)
    size = precision.compute.itemsize
    if not network.units:
        gathered, reduced = size * 2 * root, (size + _MASTER) * root
    else:
        gathered = size * (root + 2 * unit)
        reduced = (size + _MASTER) * max(unit, root)
    return gathered + (reduced if backward else 0.0)
