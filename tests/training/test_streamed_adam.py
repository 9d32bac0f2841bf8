"""AdamW one parameter after the other: in float32 bit for bit torch's, in 8 bits close to it."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from pdmd import AdamRecipe
from pdmd.training.streamed_adam import StreamedAdam

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


def build(recipe, *, offload=False, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 48))
    return network, recipe.build(network.parameters(), offload=offload)


def train(network, optimizer, steps, start=0, skipped=()):
    for i in range(start, start + steps):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(i))
        loss = (network(x) - x[:, :48]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if i in skipped:
            for parameter in network.parameters():
                parameter.grad.fill_(float("nan"))
        optimizer.found_inf = torch.tensor(float(i in skipped))
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


RECIPE = AdamRecipe(lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1)


def test_offloaded_moments_update_bit_for_bit_as_those_on_the_device():
    expected = train(*build(RECIPE), 6, skipped=(0, 3))
    network, optimizer = build(RECIPE, offload=True)
    assert isinstance(optimizer, StreamedAdam)
    assert torch.equal(train(network, optimizer, 6, skipped=(0, 3)), expected)
    for state in optimizer.state.values():
        assert {value.device.type for value in state.values()} == {"cpu"}
        assert float(state["step"]) == 4  # skipped steps do not count


@needs_torchao
@pytest.mark.parametrize("offload", [False, True])
def test_moments_in_8_bits_take_a_quarter_and_train_alike(offload):
    exact = train(*build(RECIPE), 40)
    recipe = AdamRecipe(lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1, bits=8)
    network, optimizer = build(recipe, offload=offload)
    start = torch.cat([p.detach().flatten() for p in network.parameters()])
    got = train(network, optimizer, 40)
    assert float((got - exact).norm() / (exact - start).norm()) < 0.1
    weights = [p for p in network.parameters() if p.ndim == 2]
    states = [optimizer.state[p] for p in weights]
    assert {tuple(sorted(s)) for s in states} == {
        ("exp_avg.codes", "exp_avg.scale", "exp_avg_sq.codes", "exp_avg_sq.scale", "step")
    }
    size = sum(v.nbytes for s in states for k, v in s.items() if k != "step")
    assert size / sum(p.numel() for p in weights) == pytest.approx(2 * (1 + 4 / 100), rel=0.05)
    bias = optimizer.state[next(p for p in network.parameters() if p.ndim == 1)]
    assert bias["exp_avg"].dtype == torch.float32


@needs_torchao
def test_a_skipped_step_changes_no_code_and_states_resume_exactly():
    recipe = AdamRecipe(lr=1e-2, bits=8)
    network, optimizer = build(recipe)
    train(network, optimizer, 3)
    before = [v.clone() for s in optimizer.state.values() for v in s.values()]
    weights = train(network, optimizer, 1, start=3, skipped=(3,))
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.isfinite(weights).all()

    again, other = build(recipe, seed=1)
    again.load_state_dict(network.state_dict())
    for p, q in zip(network.parameters(), again.parameters(), strict=True):
        other.state[q] = {k: v.clone() for k, v in optimizer.state[p].items()}
    assert torch.equal(train(network, optimizer, 3, 4), train(again, other, 3, 4))


def test_8_bits_without_torchao_raise_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match=r"torchao.*pip install 'pdmd\[quantized\]'"):
        AdamRecipe(bits=8)
    with pytest.raises(ValueError, match="32 or 8 bits, got 4"):
        AdamRecipe(bits=4)
