"""Tensors to keep in checkpoints, and ways to damage files."""

import torch


def random_bits(dtype, shape, seed):
    """Any bits at all: NaNs with a payload, denormals, negative zeros."""
    high = 2 if dtype is torch.bool else 256
    size = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(
        high, (*shape, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return bits.view(dtype).reshape(shape)


def same_bits(a, b):
    def bits(value):
        return (
            value.detach()
            .clone(memory_format=torch.contiguous_format)
            .reshape(-1)
            .view(torch.uint8)
        )

    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "network.weight": torch.randn(8, 5, generator=generator),
        "network.half": torch.randn(3, generator=generator).bfloat16(),
        "optimizer.step": torch.tensor(7 + seed),
        "rng": generator.get_state(),
        "nothing": torch.empty(0, 4),
    }


def check_loads(store, name, tensors):
    store.verify(name)
    loaded = {key: torch.zeros_like(value) for key, value in tensors.items()}
    before = {key: value.data_ptr() for key, value in loaded.items()}
    store.load(name, loaded)
    assert {key: value.data_ptr() for key, value in loaded.items()} == before
    assert all(same_bits(tensors[key], loaded[key]) for key in tensors)


def one(seed):
    return {"w": torch.full((2,), float(seed))}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def extend(path):
    path.write_bytes(path.read_bytes() + b"x")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def fail(operation):
    raise OSError(f"no space left for {operation.split()[0]}")
