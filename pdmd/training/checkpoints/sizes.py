r"""Sizes of checkpoints, from the parameters in training.

For :math:`n_g` trained parameters of the expert and :math:`n_f` of the fake scores and of other
trainable networks, such as discriminators, a checkpoint within a phase holds, in bytes,

.. math:: (4 + 4 + m)\, n_g + (4 + m)\, n_f, \qquad m = 8 \text{ or about } 2.03,

the float32 masters, the expert's weight average (unless its decay is 0, when it equals the
masters) and both moments :math:`m` of Adam, in float32 or in 8 bits. Each is stored once; a frozen
base of adapters is not stored. A finished expert is written once, in float32, when its phase ends,
and not repeated in later checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckpointSize", "TrainedSize"]

_MASTER = 4
_MOMENTS = {32: 8.0, 8: 2 * (1 + 4 / 256)}  # 8 bits: one byte, and a float32 scale for 256 of them


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """A role's part of a checkpoint.

    Attributes:
        parameters: Trainable parameters, without a frozen base of adapters.
        average: Whether a weight average is stored too.
        bits: Bits of each moment of the optimizer, 32 or 8.

    Raises:
        ValueError: If the bits are others.
    """

    parameters: int
    average: bool = False
    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in _MOMENTS:
            raise ValueError(f"moments have 32 or 8 bits, got {self.bits}")

    @property
    def bytes(self) -> float:
        """The role's bytes in a checkpoint."""
        return self.parameters * (_MASTER * (1 + self.average) + _MOMENTS[self.bits])


@dataclass(frozen=True, kw_only=True)
class CheckpointSize:
    """The sizes of a run's checkpoints in one phase, in bytes.

    Attributes:
        generator: The expert in training.
        fake: The fake scores, and other networks that train with them.
        finished: Trained parameters of each finished expert.
        keep: How many checkpoints are kept.
    """

    generator: TrainedSize
    fake: TrainedSize
    finished: tuple[int, ...] = ()
    keep: int = 2

    @property
    def checkpoint(self) -> float:
        """Bytes of one checkpoint within the phase."""
        return self.generator.bytes + self.fake.bytes

    @property
    def experts(self) -> float:
        """Bytes of all finished experts, each of which is stored once."""
        return float(_MASTER * sum(self.finished))

    @property
    def store(self) -> float:
        """Largest size of the store, while one more checkpoint than are kept is written."""
        return (self.keep + 1) * self.checkpoint + self.experts
