"""Random numbers by position: known answers, laws, and independence of where they are computed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdmd import philox
from pdmd.philox import normal, philox4x64, uniform, words

WORD = 2**64 - 1

# The known answers of philox4x64-10 in Random123's kat_vectors: counter, key, block.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (WORD, WORD, WORD, WORD),
        (WORD, WORD),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]

keys = st.integers(0, WORD)
ranges = st.tuples(st.integers(0, 200), st.integers(0, 100))


def signed(unsigned):
    return torch.from_numpy(np.array(unsigned, np.uint64).view(np.int64))


def unsigned(tensor):
    return tensor.numpy().view(np.uint64)


def on_device(seed, draw, first, count):
    """Computes normal numbers as an accelerator does."""
    return philox._device_normal(
        philox._device_words(seed, draw, first, count, "cpu").view(torch.int32)
    )


def quantile(w):
    return -w.sign() * torch.special.ndtri(w.abs() * 2.0**-32)


def deviation(numbers, cdf):
    """Returns the Kolmogorov-Smirnov statistic; above 1.95 with probability 0.001."""
    u, n = cdf(numbers.double().flatten().sort().values), numbers.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * max(float((steps[1:] - u).max()), float((u - steps[:-1]).max()))


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_blocks_are_the_published_ones(counter, key, block):
    several = signed(counter).unsqueeze(1).expand(4, 3)
    got = unsigned(philox4x64(several, key).contiguous())
    assert np.array_equal(got, np.repeat(np.array(block, np.uint64)[:, None], 3, axis=1))


@given(seed=keys, draw=keys, part=ranges)
def test_words_are_blocks_of_counters_by_index_and_draw(seed, draw, part):
    first, count = part
    index = torch.arange(first, first + count)
    counter = torch.zeros(4, count, dtype=torch.int64)
    counter[0], counter[1] = 1 + index // 4, signed(draw)
    expected = philox4x64(counter, (seed, 0)).gather(0, (index % 4)[None])[0]
    assert np.array_equal(words(seed, draw, first, count), unsigned(expected))
    device = philox._device_words(seed, draw, first, count, "cpu")
    assert torch.equal(device, expected)


@given(seed=keys, draw=keys, part=ranges, chunk=st.sampled_from([2, 6, 64, 8192]))
def test_a_normal_number_depends_on_its_position_alone(seed, draw, part, chunk):
    """On neither the numbers computed with it, nor how many at once, nor where."""
    first, count = part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(philox, "_CHUNK", chunk)
        got = normal(seed, draw, first, count, device="cpu")
    whole = normal(seed, draw, 0, first + count, device="cpu")
    assert got.shape == (2 * count,) and torch.equal(got, whole[2 * first :])
    assert torch.equal(got, on_device(seed, draw, first, count))


def test_normal_numbers_are_quantiles_of_their_words():
    random = torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0))
    tail, ends = torch.arange(-5000, 5000), torch.tensor([-(2**31), 2**31 - 1])
    powers = 2 ** torch.arange(31)
    w = torch.cat((random, tail, ends, powers, -powers, powers - 1)).int()
    z = philox._device_normal(w).double()
    assert (z - quantile((w | 1).double())).abs().max() < 6e-7
    assert torch.equal(philox._device_normal(-(w | 1)).double(), -z)
    assert 6.2 < z.max() < 6.24


def test_numbers_follow_their_laws():
    z = normal(1, 2, 0, 2**19, device="cpu")
    assert deviation(z, torch.special.ndtr) < 1.95
    z = z.double()
    moments = [float((z**k).mean()) for k in (1, 2, 3, 4)]
    spread = [math.sqrt(v / z.numel()) for v in (1, 2, 15, 96)]
    for got, expected, sigma in zip(moments, (0, 1, 0, 3), spread, strict=True):
        assert abs(got - expected) < 4 * sigma
    for dtype in (torch.float32, torch.float64):
        assert deviation(uniform(3, 4, 0, 2**18, dtype=dtype), lambda u: u) < 1.95


@pytest.mark.parametrize("vary", ["seed", "draw", "row"])
def test_numbers_of_neighbouring_seeds_draws_and_rows_are_independent(vary):
    n, rows = 2**15, 12
    seed, draw, first = {"seed": (1, 0, 0), "draw": (0, 1, 0), "row": (0, 0, n // 2)}[vary]
    z = torch.stack(
        [normal(i * seed, i * draw, i * first, n // 2, device="cpu") for i in range(rows)]
    ).double()
    for x in (z, z**2 - 1, z.sign()):  # also of sizes and signs
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
        correlation = (x @ x.T / n - torch.eye(rows)).abs().max()
        assert correlation < 4.5 / math.sqrt(n)
        for lag in range(1, 9):  # both halves of a word, words of a block, and blocks
            assert (x[:, lag:] * x[:, :-lag]).mean(1).abs().max() < 4.5 / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uniform_numbers_are_the_upper_bits_of_words_and_below_one(dtype, monkeypatch):
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    got, source = uniform(5, 6, 7, 50, dtype=dtype), words(5, 6, 7, 50)
    expected = [int(word) // 2 ** (64 - bits) / 2**bits for word in source]
    assert got.dtype == dtype and got.tolist() == expected
    monkeypatch.setattr(philox, "words", lambda *_: np.array([0, WORD], np.uint64))
    assert uniform(0, 0, 0, 2, dtype=dtype).tolist() == [0, 1 - 2.0**-bits]


def test_an_accelerator_computes_many_numbers_itself(monkeypatch):
    """The meta device stands for one: reading any of its numbers would raise."""
    used = []
    monkeypatch.setattr(philox, "words", lambda *parts: used.append(parts))
    z = normal(1, 2, 3, philox._DEVICE_CHUNK + 5, device="meta")
    assert z.shape == (2 * philox._DEVICE_CHUNK + 10,) and z.is_meta and not used


@pytest.mark.gpu
@pytest.mark.parametrize("count", [5, 2**17, 2**21 + 3])
def test_an_accelerator_computes_the_bits_of_the_cpu_without_waiting(count):
    normal(0, 0, 0, 2**17, device="cuda")  # fills the tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        z = normal(1, 2, 3, count, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(z.cpu(), normal(1, 2, 3, count, device="cpu"))
