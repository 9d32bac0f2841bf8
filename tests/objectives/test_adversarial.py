import pytest
import torch
from torch.nn.functional import softplus

from pdmd import (
    DistributionMatching,
    FromDenoiser,
    MixtureTeacher,
    MlpDenoiser,
    PhasePlan,
    RectifiedFlow,
    SubintervalScoreMatching,
)
from pdmd.diffusion.solvers import diffuse
from pdmd.objectives import ExactKL, Models, PhaseContext, Rollout, TimeSampler
from pdmd.objectives.adversarial import (
    R1,
    Adversarial,
    DiscriminatorLoss,
    FiniteDifferenceR1,
    logistic_loss,
)
from pdmd.objectives.critics import Critic, Critics, FeatureCritic, MlpCritic
from pdmd.objectives.distribution_matching import distribution_matching_gradient
from pdmd.objectives.diversity import NoiseSensitivity, Repulsion
from pdmd.objectives.real_samples import RealSamples, TeacherSamples
from pdmd.objectives.regression import TrajectoryRegression, VelocityRegression
from pdmd.training.checkpoints.checkpointer import Checkpointer, Interrupted
from pdmd.training.monitoring.recorder import Recorder
from tests.helpers.distilling import distill
from tests.helpers.small_runs import StopAt, small, weights

PLAN = PhasePlan.uniform(2)
S = 0.5


class At(TimeSampler):
    """Samples one time only."""

    def __init__(self, t):
        self.t = t

    def from_uniform(self, u, phase, schedule):
        return torch.full_like(u, self.t)

    def __call__(self, n, phase, schedule, generator):  # without random numbers
        return torch.full((n,), self.t, dtype=torch.float64)

    def bounds(self, phase):
        return self.t, self.t


class LogRatio(Critic):
    """The exact log-ratio of two teachers plus test functions, whose weights are zero."""

    def __init__(self, real, fake):
        super().__init__()
        self._pair = (real, fake)
        self.theta = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def tests(self, x_t):
        x = x_t[:, 0].double()
        return torch.stack([torch.ones_like(x), x, x.square(), (3 * x).sin()], 1)

    def forward(self, x_t, t, condition=None):
        real, fake = self._pair
        time = float(t[0])
        return real.log_prob(x_t, time) - fake.log_prob(x_t, time) + self.tests(x_t) @ self.theta


class Exact(RealSamples):
    """Exact samples of a mixture at the phase's end."""

    def __init__(self, teacher):
        self.teacher = teacher

    def prepare(self, context, generator):
        s = context.phase.t_end
        return lambda n, g: (samples(self.teacher, n, s, g), None)


def samples(teacher, n, s, generator):
    x_0 = teacher.sample(n, generator=generator).double()
    return diffuse(
        x_0, torch.randn(x_0.shape, generator=generator).double(), 0.0, s, teacher.schedule
    )


def pair():
    means = torch.tensor([[-1.0], [1.5]], dtype=torch.float64)
    return MixtureTeacher(means, 0.4), MixtureTeacher(torch.tensor([[0.3]]).double(), 0.8)


def setup(critic, samples, models, **settings):
    critics = Critics(lambda models, phase, example: critic)
    discriminator = DiscriminatorLoss(critics, samples, **settings)
    discriminator.on_phase_start(
        PhaseContext(models=models, phase=PLAN[0], draw_conditions=lambda n, g: None),
        torch.Generator().manual_seed(0),
    )
    return critics, discriminator


def rollout_of(x_s, condition=None, phase=PLAN[0]):
    return Rollout(x_s=x_s, condition=condition, phase=phase)


def test_the_exact_log_ratio_is_stationary_pointwise():
    """At every point, the gradients of real and student samples in the logit cancel."""
    real, fake = pair()
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]
    p_real, p_fake = (p.log_prob(x, 0.7).exp() for p in (real, fake))
    h = (p_real / p_fake).log().requires_grad_(True)
    (of_real,) = torch.autograd.grad(logistic_loss(h, torch.zeros_like(h)).sum(), h)
    (of_fake,) = torch.autograd.grad(logistic_loss(torch.zeros_like(h), h).sum(), h)
    scale = p_real * p_fake / (p_real + p_fake)
    torch.testing.assert_close(p_fake * of_fake, scale)
    torch.testing.assert_close(p_real * of_real, -scale)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_exact_log_ratio_is_stationary_in_every_direction(shift):
    """Gradients of four test functions have mean zero to four standard errors, only there."""
    real, fake = pair()
    critic = LogRatio(real, fake)
    with torch.no_grad():
        critic.theta[0] = shift
    models = Models(real=real, fake=fake, expert=fake)
    _, discriminator = setup(critic, Exact(real), models, penalty_weight=0, times=At(0.7))
    generator = torch.Generator().manual_seed(1)
    gradients = []
    for _ in range(40):
        x_s = samples(fake, 2000, S, generator)
        (loss,) = discriminator.losses(models, rollout_of(x_s), generator).values()
        gradients += torch.autograd.grad(loss, critic.theta)
    gradients = torch.stack(gradients)
    z = gradients.mean(0) / (gradients.std(0) / 40**0.5)
    assert (float(z.abs().max()) < 4) == (shift == 0)


def test_at_the_optimum_the_generator_descends_the_kl_weighted_by_the_critic():
    """The gradient in x_s is sigmoid(-h) times a (S_fake - S_real)."""
    real, fake = pair()
    critic = LogRatio(real, fake)
    models = Models(real=real, fake=fake, expert=fake)
    critics, _ = setup(critic, Exact(real), models)
    x_s = samples(fake, 50, S, torch.Generator().manual_seed(3)).requires_grad_(True)
    critic.requires_grad_(False)
    objective = Adversarial(critics, times=At(0.7))
    generator = torch.Generator().manual_seed(4)
    state = generator.get_state()
    losses = objective.losses(models, rollout_of(x_s), generator)
    assert losses["adversarial"].dtype == torch.float32
    losses["adversarial"].backward()
    generator.set_state(state)
    epsilon = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    t = At(0.7)(50, None, None, None)
    g = distribution_matching_gradient(models, rollout_of(x_s), t, epsilon, ExactKL())
    with torch.no_grad():
        h = critic(diffuse(x_s, epsilon, S, t, RectifiedFlow()), t)
    torch.testing.assert_close(x_s.grad, torch.sigmoid(-h)[:, None] * g / 50)
    assert critic.theta.grad is None


def test_the_discriminators_gradient_is_its_finite_difference_and_reaches_critics_alone():
    torch.manual_seed(0)
    real, fake = pair()
    critic = MlpCritic(1, width=8).double()
    models = Models(real=real, fake=fake, expert=fake)
    _, discriminator = setup(critic, Exact(real), models, penalty_weight=0.5)
    x_s = samples(fake, 16, S, torch.Generator().manual_seed(3)).requires_grad_(True)

    def reference():
        generator = torch.Generator().manual_seed(5)
        x_real, _ = Exact(real).prepare(
            PhaseContext(models=models, phase=PLAN[0], draw_conditions=None), None
        )(16, generator)
        t = discriminator.times(16, PLAN[0], RectifiedFlow(), generator)
        real_t, fake_t = (
            diffuse(
                x,
                torch.randn(16, 1, generator=generator, dtype=torch.float64),
                S,
                t,
                RectifiedFlow(),
            )
            for x in (x_real, x_s.detach())
        )
        inputs = real_t.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(inputs, t).sum(), inputs)
        loss = softplus(-critic(real_t, t)).mean() + softplus(critic(fake_t, t)).mean()
        return loss + 0.25 * slope.square().sum(1).mean()

    losses = discriminator.losses(models, rollout_of(x_s), torch.Generator().manual_seed(5))
    assert set(losses) == {"discriminator", "discriminator_penalty"}
    sum(losses.values()).backward()
    assert x_s.grad is None
    torch.testing.assert_close(sum(losses.values()), reference().float())
    step = 1e-5
    for parameter in critic.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, len(flat), 5):
            flat[i] += step
            up = reference()
            flat[i] -= 2 * step
            down = reference()
            flat[i] += step
            slope = (up - down).detach() / (2 * step)
            torch.testing.assert_close(gradient[i], slope, rtol=1e-5, atol=1e-9)


class Quadratic(Critic):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        self.a = torch.nn.Parameter(a + a.T)
        self.b = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))

    def forward(self, x_t, t, condition=None):
        return 0.5 * ((x_t @ self.a) * x_t).sum(1) + x_t @ self.b


def test_r1_is_the_squared_slope_and_trains_the_critic():
    critic, t = Quadratic(), torch.full((5,), 0.5).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = x @ critic.a + critic.b
    penalty = R1()(critic, x, t, None, torch.Generator())
    torch.testing.assert_close(penalty, slope.square().sum(1))
    (gradient,) = torch.autograd.grad(penalty.sum(), critic.b)
    torch.testing.assert_close(gradient, 2 * slope.detach().sum(0))


def test_the_finite_difference_has_r1_as_its_mean():
    """To four standard errors; the bias is of second order in delta."""
    critic, n = Quadratic(), 20_000
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.full((n,), 0.5).double()
    values = FiniteDifferenceR1(1e-3)(
        critic, x.expand(n, 3), t, None, torch.Generator().manual_seed(2)
    ).detach()
    exact = R1()(critic, x, t[:1], None, torch.Generator()).detach()
    error = float(values.std()) / n**0.5
    assert abs(float(values.mean() - exact)) < 4 * error
    assert error < 0.02 * float(exact)


def test_every_phase_has_a_critic():
    real, fake = pair()
    models = Models(real=real, fake=fake, expert=fake)
    critics = Critics(lambda models, phase, example: MlpCritic(1).double())
    discriminator = DiscriminatorLoss(critics, Exact(real))
    discriminator.on_phase_start(
        PhaseContext(models=models, phase=PLAN[1], draw_conditions=lambda n, g: None),
        torch.Generator(),
    )
    assert set(discriminator.networks(PLAN[1])) == {"discriminator_1"}
    assert discriminator.only(2).networks(PLAN[0]) == {}
    x_s = samples(fake, 4, S, torch.Generator())
    with pytest.raises(ValueError, match="phase 1 has no critic.*with the same Critics"):
        Adversarial(critics).losses(models, rollout_of(x_s), torch.Generator())


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="pool must be at least 1, got 0"):
        TeacherSamples(pool=0)
    with pytest.raises(ValueError, match="got -1"):
        DiscriminatorLoss(Critics(len), penalty_weight=-1)
    with pytest.raises(ValueError, match="got 0"):
        FiniteDifferenceR1(0)


def composed(factory=None, **changes):
    torch.manual_seed(0)
    teacher = MixtureTeacher.random(dim=2, classes=2, modes=2)
    network = MlpDenoiser.rectified_flow(dim=2, classes=2, width=8)
    critics = Critics(factory or (lambda models, phase, example: MlpCritic(2, 2, width=8)))
    settings = dict(
        generator_objective=DistributionMatching()
        + 0.05 * Adversarial(critics)
        + 0.2 * TrajectoryRegression(2)
        + 0.05 * VelocityRegression(steps=2).only(1)
        + 0.01 * Repulsion()
        + 0.01 * NoiseSensitivity(),
        fake_objective=SubintervalScoreMatching()
        + DiscriminatorLoss(critics, TeacherSamples(pool=32, steps=4)),
        init=FromDenoiser(network),
        updates=4,
        fake_updates=2,
        batch_size=12,
    )
    return distill(teacher, PhasePlan.uniform(2, steps=2), **{**settings, **changes})


@pytest.mark.parametrize("after", [2, 6])
def test_a_resumed_run_of_all_objectives_is_bit_identical(tmp_path, after):
    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        composed(checkpointer=checkpointer, recorder=StopAt(checkpointer, after))
    resumed = composed(checkpointer=Checkpointer(tmp_path / "c", every=100), resume=True)
    assert torch.equal(weights(resumed), weights(composed()))


def test_a_run_resumes_in_a_phase_without_critics(tmp_path):
    def once(**changes):
        critics = Critics(lambda models, phase, example: MlpCritic(2, 2, width=8))
        return composed(
            generator_objective=DistributionMatching() + 0.05 * Adversarial(critics).only(1),
            fake_objective=SubintervalScoreMatching()
            + DiscriminatorLoss(critics, TeacherSamples(pool=32, steps=4)).only(1),
            **changes,
        )

    checkpointer = Checkpointer(tmp_path / "c", every=100)
    with pytest.raises(Interrupted):
        once(checkpointer=checkpointer, recorder=StopAt(checkpointer, 6))
    resumed = once(checkpointer=Checkpointer(tmp_path / "c", every=100), resume=True)
    assert torch.equal(weights(resumed), weights(once()))


class Names(Recorder):
    """Records the names of scalars by phase."""

    interval = 1

    def __init__(self):
        self.seen = {}

    def on_scalars(self, phase, update, values):
        self.seen.setdefault(phase.number, set()).update(values)


def test_a_discriminator_trains_in_the_phases_of_its_adversarial_term():
    created, names = [], Names()

    def factory(models, phase, example):
        created.append(phase.number)
        return MlpCritic(2, 2, width=8)

    critics = Critics(factory)
    generator = DistributionMatching() + 0.05 * Adversarial(critics).only(2)
    discriminator = DiscriminatorLoss(critics, TeacherSamples(pool=32, steps=4))
    fake = SubintervalScoreMatching() + discriminator
    settings = dict(generator_objective=generator, fake_objective=fake, updates=1)
    small(plan=PLAN, recorder=names, **settings)
    assert created == [2] and discriminator.covers(PLAN) == {2}
    assert [{"fake/discriminator", "generator/adversarial"} & s for s in names.seen.values()] == [
        set(),
        {"fake/discriminator", "generator/adversarial"},
    ]
    first = critics.of(PLAN[1])
    small(plan=PLAN, **{**settings, "generator_objective": generator.terms[0][1]})
    assert created == [2, 1, 2] and critics.of(PLAN[1]) is not first  # new, and in all phases
    for other in (SubintervalScoreMatching(), SubintervalScoreMatching() + discriminator.only(1)):
        with pytest.raises(ValueError, match=r"evaluates Critics\(.*in phase 2, but no term"):
            small(plan=PLAN, **{**settings, "fake_objective": other})


def test_critics_on_the_fake_scores_features_train_in_a_run():
    created = []

    def factory(models, phase, example):
        critic = FeatureCritic(models.fake, example, width=8)
        created.append((critic, weights(critic).clone()))
        return critic

    composed(factory)
    assert len(created) == 2
    assert not any(torch.equal(weights(critic), start) for critic, start in created)
