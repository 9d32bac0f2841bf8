"""That routers partition time is in ``tests/properties/test_phases.py``."""

import pytest
import torch

from pdmd import IntervalRouter, LinearVP, MixtureTeacher, MlpDenoiser, RoutedDenoiser
from pdmd.diffusion.routers import Router
from pdmd.diffusion.time_intervals import within
from pdmd.diffusion.variance_preserving import CosineVP
from pdmd.teachers.with_schedule import DenoiserWithSchedule


def mixtures(*means):
    return [MixtureTeacher(torch.full((1, 2), float(m)), 0.5) for m in means]


def on_cosine(denoiser):
    return DenoiserWithSchedule(denoiser, CosineVP(), kind="x0")


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_times_outside_raise(t):
    with pytest.raises(ValueError, match="outside"):
        IntervalRouter([1, 0.5, 0])(t)


def test_each_sample_is_evaluated_by_the_denoiser_of_its_time():
    experts = [MixtureTeacher(torch.full((1, 2), float(m)), 0.5) for m in (0, 3, 5)]
    routed = RoutedDenoiser(experts, IntervalRouter([1, 0.6, 0.3, 0]))
    x = torch.randn(7, 2)
    t = torch.tensor([0.0, 0.1, 0.3, 0.4, 0.6, 0.61, 1.0], dtype=torch.float64)
    value = routed(x, t).value
    for i, expert in enumerate((2, 2, 2, 1, 1, 0, 0)):
        torch.testing.assert_close(
            value[i : i + 1], experts[expert](x[i : i + 1], t[i : i + 1]).value
        )


def counted(routed):
    """Returns the list of the networks that a routed denoiser evaluates from now on."""
    calls = []
    for i, denoiser in enumerate(routed.denoisers):
        denoiser.register_forward_hook(lambda *_, i=i: calls.append(i))
    return calls


def test_a_padding_row_changes_no_value():
    routed = RoutedDenoiser(mixtures(0, 3), IntervalRouter([1, 0.5, 0]))
    calls = counted(routed)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.7, 0.8, 0.9], dtype=torch.float64)
    alone = routed(x, t).value
    assert calls == [0]
    calls.clear()
    routed.collective = True
    torch.testing.assert_close(routed(x, t).value, alone)
    assert calls == [0, 1] and not routed.padded


def test_a_padding_row_has_zero_gradients():
    torch.manual_seed(0)
    networks = [MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(2)]
    routed = RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0]))
    routed.collective = True
    routed(torch.randn(3, 2), torch.tensor([0.7, 0.8, 0.9])).value.sum().backward()
    assert any(bool(p.grad.any()) for p in networks[0].parameters())
    assert all(not p.grad.any() for p in networks[1].parameters())
    assert routed.padded


@pytest.mark.parametrize("wrap", [lambda d: d, on_cosine], ids=["plain", "on another schedule"])
@pytest.mark.parametrize("collective", [False, True])
def test_times_in_a_known_interval_evaluate_one_network(wrap, collective):
    routed = RoutedDenoiser(mixtures(0, 3), IntervalRouter([1, 0.5, 0]))
    routed.collective = collective
    denoiser, calls = wrap(routed), counted(routed)
    (switch,) = denoiser.switches
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for low, high, index in ((1.001 * switch, 1.0, 0), (0.0, switch, 1)):
        t = torch.linspace(low + 1e-6, high - 1e-3, 3, dtype=torch.float64)
        expected = denoiser(x, t).value
        calls.clear()
        value = denoiser(x, within(t, low, high)).value
        assert calls == [index]
        torch.testing.assert_close(value, expected)
    for t, index in ((switch, 1), (1.001 * switch, 0), (torch.tensor(0.3), 1)):
        calls.clear()
        denoiser(x, t)
        assert calls == [index]


def test_switches_include_those_of_nested_networks_within_their_interval():
    inner = RoutedDenoiser(mixtures(0, 3), IntervalRouter([1, 0.3, 0]))
    outer, (plain,) = IntervalRouter([1, 0.5, 0]), mixtures(0)
    assert RoutedDenoiser([plain, inner], outer).switches == (0.5, 0.3)
    assert RoutedDenoiser([inner, plain], outer).switches == (0.5,)


@pytest.mark.parametrize(
    ("start", "end", "index"),
    [(1.0, 0.6, 0), (0.8, 0.7, 0), (0.6, 0.0, 1), (0.6000001, 0.3, 1), (0.7, 0.3, None)],
)
def test_intervals_are_served_by_one_expert_or_none(start, end, index):
    denoisers = mixtures(0, 3)
    router = IntervalRouter([1, 0.6, 0])
    assert router.serves(start, end) == index
    routed = RoutedDenoiser(denoisers, router)
    part = routed if index is None else denoisers[index]
    assert routed.part(start, end) is part


def test_a_custom_router_implements_the_index_alone():
    class Alternating(Router):
        def __call__(self, t):
            return (torch.as_tensor(t) * 10).long() % 2

    routed = RoutedDenoiser(mixtures(0, 3), Alternating())
    assert routed.router.serves(1.0, 0.0) is None and routed.part(1.0, 0.0) is routed
    x, t = torch.zeros(2, 2), torch.tensor([0.15, 0.25], dtype=torch.float64)
    value = routed(x, t).to("x0")
    for i, expert in enumerate((1, 0)):
        expected = routed.denoisers[expert](x[i : i + 1], t[i : i + 1]).to("x0")
        torch.testing.assert_close(value[i : i + 1], expected)


def test_a_trainable_copy_copies_every_denoiser():
    networks = [MlpDenoiser.rectified_flow(dim=2, width=8).requires_grad_(False) for _ in range(2)]
    copy = RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0])).trainable_copy()
    assert all(p.requires_grad for p in copy.parameters())
    assert not any(p.requires_grad for network in networks for p in network.parameters())


def test_denoisers_that_do_not_match_raise():
    networks = [MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(2)]
    with pytest.raises(ValueError, match="3 boundaries"):
        RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0.2, 0]))
    networks[1].schedule = LinearVP()
    with pytest.raises(ValueError, match="must share one schedule"):
        RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0]))


@pytest.mark.parametrize("boundaries", [[1], [0.9, 0], [1, 0.1], [1, 0.5, 0.5, 0]])
def test_boundaries_that_do_not_decrease_from_1_to_0_raise(boundaries):
    with pytest.raises(ValueError, match="boundaries must"):
        IntervalRouter(boundaries)
    with pytest.raises(ValueError, match="at least one denoiser"):
        RoutedDenoiser([], IntervalRouter([1, 0]))


def test_a_padding_row_doubles_the_activations_that_a_known_interval_saves():
    torch.manual_seed(0)
    networks = [MlpDenoiser.rectified_flow(dim=2, width=64) for _ in range(2)]
    routed = RoutedDenoiser(networks, IntervalRouter([1, 0.5, 0]))
    routed.collective = True

    def saved(t):
        parameters = {p.untyped_storage().data_ptr() for p in routed.parameters()}
        storages = {}

        def keep(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            routed(torch.randn(1, 2), t)
        return sum(x.untyped_storage().nbytes() for x in storages.values())

    t = torch.tensor([0.8], dtype=torch.float64)
    both, one = saved(t), saved(within(t, 0.51, 1.0))
    assert both == pytest.approx(2 * one, rel=0.05)
