import pytest
import torch

from pdmd import Guided, IntervalRouter, MlpDenoiser, RoutedDenoiser, teachers
from pdmd.diffusion.time_intervals import within
from pdmd.objectives import Models
from pdmd.objectives.adversarial import R1
from pdmd.objectives.critics import Critics, FeatureCritic, MlpCritic
from tests.helpers.small_runs import weights
from tests.objectives.test_adversarial import PLAN, pair


def test_a_feature_critic_maps_pooled_features_and_does_not_train_the_denoiser():
    teacher = teachers.get("digits")()
    condition = teacher.encode([1, 2, 3])
    critic = FeatureCritic(teacher, condition[:2])
    assert critic.layers == ("transformer.blocks.2",)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    t = torch.full((3,), 0.6, dtype=torch.float64)
    outputs = []
    handle = teacher.transformer.blocks[2].register_forward_hook(
        lambda m, a, out: outputs.append(out)
    )
    logits = critic(x, t, condition)
    handle.remove()
    torch.testing.assert_close(logits, critic.head(outputs[0].mean(1))[:, 0])
    teacher.requires_grad_(True)
    critic(x, t, condition).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in critic.head.parameters())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert not any("transformer" in name for name in critic.state_dict())
    # R1 backpropagates twice through the frozen denoiser.
    R1()(critic, x, t, condition, torch.Generator()).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_the_default_layer_is_not_the_output_layer():
    network = MlpDenoiser.rectified_flow(dim=2, width=8)
    critic = FeatureCritic(network)
    assert critic.layers == ("layers.5",)
    x, t = torch.randn(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    both = FeatureCritic(network, layers=("layers.1", "layers.5"))
    assert both.features(x, t, None).shape == (4, 16)


def test_features_behind_a_router_are_those_of_the_network_that_is_evaluated():
    torch.manual_seed(0)
    parts = [MlpDenoiser.rectified_flow(dim=2, width=8) for _ in range(2)]
    critic = FeatureCritic(RoutedDenoiser(parts, IntervalRouter([1, 0.6, 0])))
    assert critic.layers == ("denoisers.0.layers.5",)
    x = torch.randn(4, 2)
    for t, part in ((0.8, parts[0]), (0.3, parts[1])):
        times = within(torch.full((4,), t, dtype=torch.float64), t, t)
        expected = FeatureCritic(part).features(x, times, None)
        torch.testing.assert_close(critic.features(x, times, None), expected)


def test_unusable_layers_raise():
    network = MlpDenoiser.rectified_flow(dim=2, width=8)
    with pytest.raises(ValueError, match="no module 'layers.9'"):
        FeatureCritic(network, layers=("layers.9",))
    with pytest.raises(ValueError, match="use MlpCritic"):
        FeatureCritic(pair()[0])
    digits = teachers.get("digits")()
    with pytest.raises(ValueError, match="of a guided denoiser pass the one it wraps"):
        FeatureCritic(Guided(digits, 2.0), digits.encode([1, 2]))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        MlpCritic(2, width=0)


def test_critics_are_drawn_from_their_generator_alone():
    real, fake = pair()
    models = Models(real=real, fake=fake, expert=fake)

    def first(seed, noise):
        torch.manual_seed(noise)
        critics = Critics(lambda models, phase, example: MlpCritic(1))
        before = torch.get_rng_state()
        critics.create(models, PLAN[0], None, torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return weights(critics.of(PLAN[0]))

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))
