"""Memory of one rank, item by item, at the moment when it is highest.

A cycle has six moments at which memory may peak; gradients are released when the next update of
the same role begins, so that those of the other role are alive too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pdmd.distributed.degrees import Degrees
from pdmd.planning.evaluations import Work
from pdmd.planning.footprint import Footprint
from pdmd.planning.recording import Course
from pdmd.training.phase_inputs import PhaseInputBuffer

__all__ = ["Precision", "RankMemory", "Roles", "memory_of"]

_MASTER = 4  # bytes of a parameter that trains, of its gradient, its moments and its average
# Latents of a batch that are held beside the networks' own while scores are compared:
_COMPARED = 6  # the entry, noise, noisy latents, the fake score's answer; two in working them out
_LAST = 5  # of the last fake update: entry, output, noise, noisy latents, answer
_FIRST = 2  # where rollouts accumulate: entry and output of the first
_STEPPED = 2  # of the batches of a ring that pass through an expert together: before and after
_SHARED = 2  # entry and output of a rollout that both roles are served by


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
    """The footprints of the networks in a phase's training.

    Attributes:
        teacher: The teacher, without guidance.
        generator: The expert in training, measured through the steps that its gradient goes
            through.
        fake: The fake score.
        frozen: The experts of the phases before.
    """

    teacher: Footprint
    generator: Footprint
    fake: Footprint
    frozen: tuple[Footprint, ...] = ()


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


def memory_of(roles: Roles, work: Work, degrees: Degrees, precision: Precision) -> RankMemory:
    """Returns the memory of one rank in a phase, at its highest.

    Args:
        roles: The phase's networks.
        work: What the training does.
        degrees: How the ranks share it.
        precision: What is held and computed in how many bytes.
    """
    return max(_moments(roles, work, degrees, precision), key=lambda m: m.total)


def _moments(roles: Roles, work: Work, degrees: Degrees, precision: Precision) -> list[RankMemory]:
    teacher, own, fake = roles.teacher, roles.generator, roles.fake
    tp, shards = degrees.tp, degrees.shards
    batch = work.batch_size / degrees.batches

    def master(network: Footprint) -> float:
        return _MASTER * network.local(tp) / shards

    def held(network: Footprint) -> float:
        return precision.frozen.itemsize * network.local(tp) / shards + network.buffers

    learns = work.fake_updates > 0
    ring = work.phase_inputs if isinstance(work.phase_inputs, PhaseInputBuffer) else None
    phases = range(len(roles.frozen) + 1)
    stored = max(ring.held(work.updates_of(k) * work.rollouts) for k in phases) if ring else 0
    anchors = learns and work.fake_updates_per_rollout > 1
    alone = anchors and work.fake_updates <= work.fake_updates_per_rollout
    latents = _COMPARED + _LAST * learns + _FIRST * (work.accumulate > 1) - _SHARED * alone

    def data(latents: int) -> float:
        return batch * ((latents + stored) * own.latents + 2 * own.condition)

    base = RankMemory(
        teacher=held(teacher),
        frozen=sum(held(network) for network in roles.frozen),
        generator=master(own) + own.buffers,
        average=master(own) + own.buffers,
        fake=master(fake) + fake.buffers,
        generator_optimizer=2 * master(own),
        fake_optimizer=2 * master(fake) * learns,
        generator_gradients=master(own),
        fake_gradients=master(fake) * learns,
        activations=0.0,
        in_flight=0.0,
        data=data(latents),
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

    gathering = shards > 1 or precision.mixed
    # what lies under an adapter is the teacher's
    roots = sum(n.root.local(tp) for n in (teacher, own, fake, *roles.frozen))

    def in_flight(network: Footprint, *, backward: bool = False) -> float:
        """Gathered parameters, and gradients on their way to their shards."""
        if not gathering:
            return 0.0
        size, unit = precision.compute.itemsize, network.largest(tp)
        gathered = size * (roots + (2 if network.units or network.under else 1) * unit)
        together = network.reduced_at_once(tp)
        reduced = _MASTER * together  # held until the next gradients are reduced
        return gathered + reduced + (size * together if backward else 0.0)

    def backward(role: str, network: Footprint, *, added: bool = False) -> RankMemory:
        course = network.recorded
        gradients = np.full(len(course.fixed), master(network)) if added else made(course)
        activations = live(course, batch)
        best = course.turn + int((activations + gradients)[course.turn :].argmax())
        return moment(
            {"generator": "generator's backward", "fake": "fake score's backward"}[role],
            activations=float(activations[best]),
            in_flight=in_flight(network, backward=True),
            **{f"{role}_gradients": float(gradients[best])},
        )

    course = live(own.recorded, batch)[: own.recorded.turn + 1]
    kept = float(course[-1])
    rows = work.evaluations * batch
    asked = quiet(teacher, rows)
    if work.evaluations > 1:  # both evaluations run as one batch, which is put together
        asked += rows * teacher.condition
    together = ring.together * batch if ring else batch
    walk = max(quiet(own, batch), *(quiet(network, together) for network in roles.frozen), 0.0)
    # An anchor is kept through the fake updates it serves, and those that it does not.
    filling: dict[str, float] = {}
    if ring:
        amid = learns and ring.together % work.rollouts > 0  # not always at a cycle's start
        filling["data"] = data(_STEPPED * ring.together + _LAST * amid)
    anchor = kept if anchors else 0.0
    beside = 0.0 if alone else anchor
    # Gradients are released when their role's next update begins, after its rollout.
    released = {} if work.accumulate > 1 else {"generator_gradients": 0.0}
    moments = [
        moment(
            "rollout without gradient",
            activations=walk + beside,
            in_flight=in_flight(own),
            **filling,
        ),
        moment("recorded rollout", activations=float(course.max()), in_flight=in_flight(own)),
        moment(
            "teacher's scores",
            activations=kept + asked,
            in_flight=in_flight(teacher),
            **released,
        ),
        moment(
            "fake score's scores",
            activations=kept + quiet(fake, batch),
            in_flight=in_flight(fake),
            **released,
        ),
        backward("generator", own, added=work.accumulate > 1),
    ]
    if not learns:
        return moments
    last = backward("fake", fake)
    if anchors:
        last = dataclasses.replace(
            last,
            activations=last.activations + anchor,
            data=data(_LAST + _SHARED * (not alone)),
        )
    return [*moments, last]
