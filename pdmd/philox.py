r"""Random numbers by position: Philox words, and uniform and normal numbers from them.

Word :math:`i` of draw :math:`d` with seed :math:`k` is word :math:`i \bmod 4` of Philox4x64-10
for the key :math:`(k, 0)` and the counter :math:`(1 + \lfloor i / 4 \rfloor, d, 0, 0)`. Nothing is
carried from one number to the next: a part of a draw is computed without the rest of it.

A uniform number in [0, 1) is the upper bits of a word, 53 of them in float64. Both halves of a
word, as odd integers :math:`|w| < 2^{31}`, give a normal number

.. math:: z = -\operatorname{sign}(w) \, \Phi^{-1}(|w| \, 2^{-32}), \qquad |z| < 6.24,

whose law is symmetric. :math:`\Phi^{-1}` is linear between 1024 points per power of two, within
:math:`6 \cdot 10^{-7}`. There are no functions here but products and sums, which are rounded alike
everywhere, so that a CPU and an accelerator compute the same bits.

Few numbers are computed on the CPU, by the Philox of NumPy; many for an accelerator on itself.

References:
    Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import math
import threading
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdmd.typing import moved

__all__ = ["integers", "normal", "philox4x64", "uniform", "words"]

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_HALF, _WORD = 2**32 - 1, 2**64 - 1

_ON_DEVICE = 2**17  # fewer numbers are computed sooner on the CPU, and sent
_CHUNK = 2**13  # numbers computed at once, in a core's cache
_DEVICE_CHUNK = 2**21  # numbers computed at once, within 100 MB

_SHIFT = 13  # the bits of a float32 without its sign, exponent and 10 bits of its mantissa
_UPPER, _ODD = np.array(_SHIFT, np.uint32), np.array(1, np.int32)


def words(seed: int, draw: int, first: int, count: int) -> np.ndarray:
    """Returns Philox words on the CPU.

    Args:
        seed: The key, in [0, 2^64).
        draw: Index of the draw, in [0, 2^64).
        first: Index of the first word.
        count: Number of words.

    Returns:
        Words with dtype uint64 and shape :math:`(count)`.
    """
    source, state, key, counter = _sources.parts
    key[0] = seed
    counter[0], counter[1] = first >> 2, draw  # NumPy adds 1 before it computes a block
    source.state = state
    skipped = first & 3
    return source.random_raw(skipped + count)[skipped:]


def uniform(seed: int, draw: int, first: int, count: int, *, dtype: torch.dtype) -> Tensor:
    """Returns numbers uniform in [0, 1), one per word, on the CPU.

    Args:
        seed: The key, in [0, 2^64).
        draw: Index of the draw.
        first: Index of the first word.
        count: Number of words.
        dtype: The dtype; its significand says how many bits of a word are used.

    Returns:
        Numbers with shape :math:`(count)`.
    """
    numbers = torch.from_numpy(_fractions(seed, draw, first, count, dtype))
    return numbers if dtype == torch.float64 else numbers.to(dtype)


def integers(seed: int, draw: int, first: int, count: int, *, high: int) -> Tensor:
    """Returns integers uniform in [0, ``high``), one per word, on the CPU.

    Args:
        seed: The key, in [0, 2^64).
        draw: Index of the draw.
        first: Index of the first word.
        count: Number of words.
        high: Exclusive upper bound, in [1, 2^53].

    Returns:
        Integers with dtype int64 and shape :math:`(count)`.
    """
    u = _fractions(seed, draw, first, count, torch.float64)
    # Rounded down; below high, since u is at most 1 - 2^-53.
    return torch.from_numpy((u * high).astype(np.int64))


def normal(seed: int, draw: int, first: int, count: int, *, device: torch.device | str) -> Tensor:
    """Returns standard normal numbers, two per word.

    Args:
        seed: The key, in [0, 2^64).
        draw: Index of the draw.
        first: Index of the first word.
        count: Number of words.
        device: The device of the result. Large results are computed there.

    Returns:
        Numbers with dtype float32 and shape :math:`(2 count)`; the same bits on every device.
    """
    device = torch.device(device)
    if device.type == "cpu" or 2 * count < _ON_DEVICE:
        z = torch.from_numpy(_host_normal(seed, draw, first, count))
        return z if device.type == "cpu" else moved(z, device)
    z = torch.empty(2 * count, dtype=torch.float32, device=device)
    for start in range(0, count, _DEVICE_CHUNK // 2):
        n = min(_DEVICE_CHUNK // 2, count - start)
        word = _device_words(seed, draw, first + start, n, device)
        z[2 * start : 2 * (start + n)] = _device_normal(word.view(torch.int32))
    return z


def philox4x64(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Returns blocks of Philox4x64-10, on the device of their counters.

    Args:
        counter: Four 64-bit words per block, as int64, with shape :math:`(4, N)`.
        key: Two words, in [0, 2^64).

    Returns:
        Four words per block, as int64, with shape :math:`(4, N)`.
    """
    # Both products of a round are computed at once. The other two words are kept in reverse
    # order, in which the products leave them.
    even, odd = counter[0::2], counter[1::2].flip(0)
    low, high, whole = _multipliers(counter.device)
    keys = [[_signed(key[i] + n * _WEYL[i]) for i in (1, 0)] for n in range(10)]
    for k in moved(torch.tensor(keys, device="cpu"), counter.device).unsqueeze(2):
        even, odd = ((_upper(even, low, high) ^ odd) ^ k).flip(0), even * whole
    return torch.stack((even[0], odd[1], even[1], odd[0]))


def _upper(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns the upper 64 bits of unsigned products; int64 keeps the lower ones."""
    x_low, x_high = x & _HALF, (x >> 32) & _HALF
    lower, left, right = x_low * low, x_high * low, x_low * high
    middle = ((lower >> 32) & _HALF).add_(left & _HALF).add_(right & _HALF)
    carried = ((left >> 32) & _HALF).add_((right >> 32) & _HALF).add_(middle >> 32)
    return (x_high * high).add_(carried)


def _device_words(
    seed: int, draw: int, first: int, count: int, device: torch.device | str
) -> Tensor:
    """Returns what :func:`words` does, computed on a device, as int64."""
    skipped = first & 3
    blocks = (skipped + count + 3) // 4
    counter = torch.zeros(4, blocks, dtype=torch.int64, device=device)
    torch.arange(1 + (first >> 2), 1 + (first >> 2) + blocks, out=counter[0])
    counter[1].fill_(_signed(draw))
    return philox4x64(counter, (seed, 0)).t().flatten()[skipped : skipped + count]


def _host_normal(seed: int, draw: int, first: int, count: int) -> np.ndarray:
    slope, intercept = _host_lines()
    z = np.empty(2 * count, np.float32)
    for start in range(0, count, _CHUNK // 2):
        part = z[2 * start : 2 * start + _CHUNK]
        w = words(seed, draw, first + start, len(part) // 2).view(np.int32)
        np.bitwise_or(w, _ODD, out=w)
        part[:] = w
        index = (part.view(np.uint32) >> _UPPER).astype(np.intp)  # NumPy's own, for lookups
        part *= slope.take(index)
        part += intercept.take(index)
    return z


def _device_normal(w: Tensor) -> Tensor:
    """Returns a normal number per int32; the bits are those of :func:`_host_normal`."""
    slope, intercept = _lines(w.device)
    z = (w | 1).float()
    index = (z.view(torch.int32) >> _SHIFT) & (len(slope) - 1)
    return z.mul_(slope.index_select(0, index)).add_(intercept.index_select(0, index))


def _fractions(seed: int, draw: int, first: int, count: int, dtype: torch.dtype) -> np.ndarray:
    """Returns numbers in [0, 1) of a type's resolution, in float64."""
    dropped, unit = _resolution(dtype)
    return (words(seed, draw, first, count) >> dropped) * unit


@cache
def _resolution(dtype: torch.dtype) -> tuple[np.ndarray, float]:
    """Returns the bits of a word that a type does not resolve in [0, 1), and its unit there."""
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return np.array(64 - bits, np.uint64), 2.0**-bits


@cache
def _host_lines() -> tuple[np.ndarray, np.ndarray]:
    """Returns slopes and intercepts of the normal numbers by the upper bits of ``float(w)``."""
    lowest, highest = (int(np.float32(w).view(np.uint32)) >> _SHIFT for w in (1, 2**31))
    used = np.arange(lowest, highest + 1)
    edges = np.append(used, highest + 1).astype(np.uint32) << np.uint32(_SHIFT)
    w = edges.view(np.float32).astype(np.float64)
    middle = (w[:-1] + w[1:]) / 2
    z, z_middle = _quantiles(w), _quantiles(middle)
    slope, intercept = np.zeros((2, 2 ** (32 - _SHIFT)))
    slope[used] = np.diff(z) / np.diff(w)
    # A line halfway between the chord and the tangent has the least error.
    intercept[used] = (z[:-1] - slope[used] * w[:-1] + z_middle - slope[used] * middle) / 2
    half = len(slope) // 2  # from which on w is negative
    slope[half:], intercept[half:] = slope[:half], -intercept[:half]
    return slope.astype(np.float32), intercept.astype(np.float32)


@cache
def _lines(device: torch.device) -> tuple[Tensor, Tensor]:
    slope, intercept = (moved(torch.from_numpy(line), device) for line in _host_lines())
    return slope, intercept


def _quantiles(w: np.ndarray) -> np.ndarray:
    quantile = NormalDist().inv_cdf
    return np.array([-quantile(u) for u in w * 2.0**-32])


@cache
def _multipliers(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    parts = [
        [f(m) for m in _MULTIPLIERS] for f in (lambda m: m & _HALF, lambda m: m >> 32, _signed)
    ]
    low, high, whole = moved(torch.tensor(parts, device="cpu").unsqueeze(2), device)
    return low, high, whole


def _signed(word: int) -> int:
    """Returns the int64 with the bits of an unsigned word, of which higher bits are dropped."""
    return ((word + 2**63) & _WORD) - 2**63


class _Sources(threading.local):
    """NumPy's Philox, one in every thread, and a state to set it by."""

    def __init__(self) -> None:
        source = np.random.Philox(key=0)
        state: Any = dict(source.state)  # of which the buffer of computed words stays empty
        self.parts = source, state, state["state"]["key"], state["state"]["counter"]


_sources = _Sources()
