import pytest
import torch
from tensordict import TensorDict

from pdmd import Guided, MixtureTeacher, MlpDenoiser, teachers
from pdmd.objectives import Models, PhaseContext
from pdmd.objectives.adversarial import R1, DiscriminatorLoss
from pdmd.objectives.critics import Critics, FeatureCritic, MlpCritic
from pdmd.objectives.real_samples import DataSamples, TeacherSamples
from tests.helpers.small_runs import weights
from tests.objectives.test_adversarial import PLAN, pair


@pytest.mark.parametrize("phase", [0, 1])
def test_teacher_states_follow_the_teachers_law_and_their_labels(phase):
    means = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    teacher = MixtureTeacher(means, 0.3, labels=torch.tensor([0, 1]))
    models = Models(real=teacher, fake=teacher, expert=teacher)

    def conditions(n, generator):
        return teacher.encode(torch.randint(2, (n,), generator=generator).tolist())

    source = TeacherSamples(pool=2000, steps=250, batch=700)
    draw = source.prepare(
        PhaseContext(models=models, phase=PLAN[phase], draw_conditions=conditions),
        torch.Generator().manual_seed(0),
    )
    x_s, condition = draw(4000, torch.Generator().manual_seed(1))
    alpha_s, sigma_s = teacher.schedule(PLAN[phase].t_end)
    for label, mean in ((0, -2.0), (1, 2.0)):
        own = x_s[condition["label"] == label]
        assert abs(float(own.mean()) - float(alpha_s * mean)) < 0.06
        spread = float((alpha_s**2 * 0.09 + sigma_s**2).sqrt())
        assert abs(float(own.std()) / spread - 1) < 0.08
    again = source.prepare(
        PhaseContext(models=models, phase=PLAN[phase], draw_conditions=conditions),
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(again(4000, torch.Generator().manual_seed(1))[0], x_s)


def test_the_lowest_time_of_teacher_states_is_the_one_asked():
    asked = []
    teacher = pair()[0]
    teacher.register_forward_pre_hook(lambda module, args: asked.append(float(args[1])))
    models = Models(real=teacher, fake=teacher, expert=teacher)
    source = TeacherSamples(pool=2, steps=7)
    source.prepare(
        PhaseContext(models=models, phase=PLAN[0], draw_conditions=lambda n, g: None),
        torch.Generator(),
    )
    assert max(asked) == 1.0
    assert min(asked) == pytest.approx(source.lowest(PLAN[0]))
    side = DiscriminatorLoss(Critics(None), source)
    assert side.time_bounds(PLAN[0]) == (min(source.lowest(PLAN[0]), 0.51), 1.0)


def test_data_states_are_the_data_diffused():
    teacher = pair()[0]
    models = Models(real=teacher, fake=teacher, expert=teacher)
    clean = torch.linspace(-1, 1, 20_000, dtype=torch.float64)[:, None]
    label = TensorDict({"label": torch.arange(20_000)}, batch_size=[20_000])
    source = DataSamples(lambda n, generator: (clean[:n], label[:n]))
    draw = source.prepare(
        PhaseContext(models=models, phase=PLAN[0], draw_conditions=None), torch.Generator()
    )
    x_s, condition = draw(20_000, torch.Generator().manual_seed(0))
    noise = (x_s - 0.5 * clean) / 0.5
    assert abs(float(noise.mean())) < 4 / 20_000**0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / 20_000) ** 0.5
    assert torch.equal(condition["label"], label["label"])
    last = source.prepare(
        PhaseContext(models=models, phase=PLAN[1], draw_conditions=None), torch.Generator()
    )
    assert torch.equal(last(5, torch.Generator())[0], clean[:5])
    with pytest.raises(ValueError, match="as many as asked for"):
        draw(20_001, torch.Generator())


def test_a_feature_critic_judges_pooled_features_and_leaves_the_denoiser_alone():
    teacher = teachers.get("digits")()
    condition = teacher.encode([1, 2, 3])
    critic = FeatureCritic(teacher, condition[:2])
    assert critic.layers == ("transformer.blocks.2",)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    t = torch.full((3,), 0.6, dtype=torch.float64)
    seen = []
    handle = teacher.transformer.blocks[2].register_forward_hook(
        lambda m, a, out: seen.append(out)
    )
    logits = critic(x, t, condition)
    handle.remove()
    torch.testing.assert_close(logits, critic.head(seen[0].mean(1))[:, 0])
    teacher.requires_grad_(True)
    critic(x, t, condition).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in critic.head.parameters())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert not any("transformer" in name for name in critic.state_dict())
    # The penalty differentiates twice through the frozen denoiser.
    R1()(critic, x, t, condition, torch.Generator()).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_feature_critics_default_spares_the_output_layer():
    network = MlpDenoiser.rectified_flow(dim=2, width=8)
    critic = FeatureCritic(network)
    assert critic.layers == ("layers.5",)
    x, t = torch.randn(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    both = FeatureCritic(network, layers=("layers.1", "layers.5"))
    assert both.features(x, t, None).shape == (4, 16)


def test_layers_that_cannot_serve_are_named():
    network = MlpDenoiser.rectified_flow(dim=2, width=8)
    with pytest.raises(ValueError, match="no module 'layers.9'"):
        FeatureCritic(network, layers=("layers.9",))
    with pytest.raises(ValueError, match="use MlpCritic"):
        FeatureCritic(pair()[0])
    digits = teachers.get("digits")()
    with pytest.raises(ValueError, match="denoiser within a guided one"):
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
        critics.make(models, PLAN[0], None, torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), before)
        return weights(critics.of(PLAN[0]))

    assert torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))
