"""Composition: every registered object is expressible in TOML, and is what Python builds."""

import tomllib

import pytest
import torch

from pdmd import Models, PhasePlan, RectifiedFlow, Rollout
from pdmd.cli.composition import FAMILIES, Composer
from pdmd.cli.config import ObjectiveConfig
from pdmd.cli.config_files import read_config
from pdmd.objectives import (
    R1,
    Adversarial,
    BalancedTimes,
    BatchNormalised,
    Bounded,
    ClampedWeighting,
    CriticRatio,
    DataSamples,
    DiscriminatorLoss,
    DistributionMatching,
    ExactKL,
    ExactRatio,
    FDivergence,
    FeatureCritic,
    FiniteDifferenceR1,
    FisherDivergence,
    ForwardKL,
    LogSnrTimes,
    MlpCritic,
    NoiseSensitivity,
    Outputs,
    PosteriorUnits,
    PseudoHuber,
    Repulsion,
    SubintervalScoreMatching,
    TeacherSamples,
    TrajectoryRegression,
    UniformTimes,
    VelocityRegression,
)
from pdmd.objectives.base import PhaseContext, objectives
from pdmd.teachers import MixtureTeacher, MlpDenoiser

DENSITY = MixtureTeacher(torch.zeros(1, 2), 1.0)


def paired_source(n, generator):
    return torch.randn(n, 2, generator=generator), None


def composed(text):
    return read_config(tomllib.loads(text)).objective.compose()


GENERATORS = {
    "distribution_matching": (
        """
        weight = 0.5
        weighting = "exact_kl"
        times = { name = "log_snr", margin = 0.1 }
        timestep_samples = 3
        """,
        lambda: 0.5 * DistributionMatching(ExactKL(), LogSnrTimes(0.1), timestep_samples=3),
    ),
    "score_matching": (
        """
        weighting = { name = "clamped", limit = 5 }
        target = "pdmd.objectives.score_matching:subinterval_target"
        """,
        lambda: SubintervalScoreMatching(ClampedWeighting(5.0)),
    ),
    "f_divergence": (
        """
        divergence = { name = "batch_normalised", divergence = "forward_kl" }
        [objective.generator.ratio]
        name = "bounded"
        limit = 5.0
        [objective.generator.ratio.ratio]
        name = "exact"
        real = "tests.cli.test_composition:DENSITY"
        fake = "tests.cli.test_composition:DENSITY"
        """,
        lambda: FDivergence(
            Bounded(ExactRatio(DENSITY, DENSITY), 5.0), BatchNormalised(ForwardKL())
        ),
    ),
    "fisher_divergence": (
        """
        alpha = 1
        weighting = "posterior"
        loss_name = "sid"
        """,
        lambda: FisherDivergence(1.0, PosteriorUnits(), name="sid"),
    ),
    "trajectory_regression": (
        """
        steps = 2
        distance = { name = "pseudo_huber", c = 0.1 }
        """,
        lambda: TrajectoryRegression(2, PseudoHuber(0.1)),
    ),
    "velocity_regression": (
        """
        anchor = 0.75
        distance = "squared"
        """,
        lambda: VelocityRegression(0.75),
    ),
    "repulsion": ("view = 'outputs'\nmin_bandwidth = 1e-3", lambda: Repulsion(Outputs(), 1e-3)),
    "noise_sensitivity": ("", NoiseSensitivity),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_an_objective_in_toml_is_the_one_of_python(name):
    keys, python = GENERATORS[name]
    toml = composed(f"[[objective.generator]]\nname = '{name}'\n{keys}").generator
    assert repr(toml) == repr(python()) and toml.names == python().names
    losses = [evaluate(objective) for objective in (toml, python())]
    assert losses[0].keys() == losses[1].keys() and losses[0]
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


def evaluate(objective):
    """Evaluates losses of one phase at fixed seeds."""
    teacher = MixtureTeacher.random(dim=2, classes=0, modes=2)
    torch.manual_seed(0)
    network = MlpDenoiser(dim=2, schedule=RectifiedFlow(), width=8)
    phase = PhasePlan.uniform(2)[0]
    generator = torch.Generator().manual_seed(0)
    phase_input = torch.randn(6, 2, generator=generator)
    models = Models(real=teacher, fake=network, expert=network)
    context = PhaseContext(models=models, phase=phase, draw_conditions=lambda n, generator: None)
    objective.on_phase_start(context, generator)
    rollout = Rollout(x_s=0.5 * phase_input, condition=None, phase=phase, phase_input=phase_input)
    return objective.losses(models, rollout, generator)


def test_the_adversarial_terms_share_their_critics():
    text = """
    [objective.critic]
    name = "mlp"
    width = 16
    [[objective.generator]]
    name = "adversarial"
    [[objective.fake]]
    name = "discriminator"
    real_samples = { name = "teacher", pool = 32, steps = 2 }
    penalty = { name = "finite_difference_r1", delta = 0.1 }
    penalty_weight = 0.5
    [[objective.fake]]
    name = "discriminator"
    loss_name = "other"
    penalty = "r1"
    real_samples = { name = "data", source = "tests.cli.test_composition:paired_source" }
    critics = { name = "features", layers = ["layers.0"], denoiser = "fake" }
    """
    built = composed(text)
    (_, first), (_, second) = built.fake.terms
    assert isinstance(built.generator, Adversarial) and isinstance(first, DiscriminatorLoss)
    assert built.generator.critics is first.critics is not second.critics
    assert repr(first.real_samples) == repr(TeacherSamples(pool=32, steps=2))
    assert repr(first.penalty) == repr(FiniteDifferenceR1(0.1)) and first.penalty_weight == 0.5
    assert repr(second.penalty) == repr(R1())
    assert repr(second.real_samples) == repr(DataSamples(paired_source))
    losses = evaluate(built.fake)
    assert losses.keys() == {"discriminator", "discriminator_penalty", "other", "other_penalty"}
    phase = PhasePlan.uniform(2)[0]
    mlp, features = first.critics.of(phase), second.critics.of(phase)
    assert isinstance(mlp, MlpCritic) and mlp.layers[0].out_features == 16
    assert isinstance(features, FeatureCritic) and features.layers == ("layers.0",)


def test_a_ratio_follows_the_critic_of_its_phase():
    text = """
    [objective]
    critic = { name = "mlp" }
    generator = [{ name = "f_divergence", ratio = "critic", divergence = "jensen_shannon" }]
    [[objective.fake]]
    name = "score_matching"
    [[objective.fake]]
    name = "discriminator"
    real_samples = { name = "teacher", pool = 8 }
    """
    built = composed(text)
    assert built.follows_phase and isinstance(built.generator.ratio, CriticRatio)
    x, t = torch.randn(4, 2), torch.full((4,), 0.7, dtype=torch.float64)
    with pytest.raises(ValueError, match="no term trains the critic"):
        built.generator.ratio(x, t, None)
    evaluate(built.fake)
    critic = built.fake.terms[1][1].critics.of(PhasePlan.uniform(2)[0])
    assert torch.equal(built.generator.ratio(x, t, None), critic(x, t, None).detach())


def test_every_registered_objective_is_covered():
    assert {*GENERATORS, "adversarial", "discriminator"} == {*objectives}


@pytest.mark.parametrize(
    ("family", "name"),
    [(f, n) for f, registry in FAMILIES.items() for n in registry],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_registered_name_is_a_member_of_its_family(family, name):
    make, _ = Composer().read(family, name, "key")
    assert issubclass(make, family)


def test_phases_are_counted_from_1_and_weights_multiply():
    text = """
    [[objective.generator]]
    name = "velocity_regression"
    phases = [1]
    [[objective.generator]]
    name = "distribution_matching"
    phases = [2, 3]
    weight = 2
    [[objective.generator]]
    name = "repulsion"
    weight = 0.25
    """
    built = composed(text)
    plan = PhasePlan.uniform(3)
    (_, velocity), (two, matching), (quarter, _) = built.generator.terms
    assert (two, quarter) == (2, 0.25)
    assert velocity.covers(plan) == {1} and matching.covers(plan) == {2, 3}
    built.check(plan)
    losses = evaluate(built.generator)
    assert losses.keys() == {"velocity_regression", "repulsion"}
    assert torch.equal(losses["repulsion"], 0.25 * evaluate(Repulsion())["repulsion"])


def test_the_sections_keys_are_defaults_of_terms():
    text = """
    [objective]
    weight = "posterior"
    weighting = "ratio"
    times = "log_snr"
    margin = 0.1
    timestep_samples = 2
    [[objective.generator]]
    name = "distribution_matching"
    [[objective.generator]]
    name = "fisher_divergence"
    times = "uniform"
    """
    built = composed(text)
    (_, matching), (_, fisher) = built.generator.terms
    assert repr(matching.weighting) == "PosteriorDifference()" and matching.timestep_samples == 2
    assert repr(matching.times) == repr(built.fake.times) == repr(LogSnrTimes(0.1))
    assert repr(fisher.times) == repr(UniformTimes(0.1))
    assert repr(built.fake.weighting) == "RatioWeighting()"


def test_the_default_objectives_are_the_papers():
    generator, fake = ObjectiveConfig().build()
    assert repr(generator) == repr(DistributionMatching())
    assert repr(fake) == repr(SubintervalScoreMatching())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("generator = []", "objective.generator is a list of terms, at least one, got ()"),
        ("generator = ['repulson']", "'repulson' at objective.generator[1]: did you mean"),
        ("generator = [{ weight = 2 }]", "objective.generator[1] is the name of one objective"),
        (
            "generator = ['repulsion', { name = 'distribution_matching', draws = 2 }]",
            "unknown key 'objective.generator[2].draws': distribution_matching takes weighting, "
            "times, loss_name, timestep_samples",
        ),
        (
            "fake = [{ name = 'score_matching', times = { name = 'log_snr', margn = 0.1 } }]",
            "unknown key 'objective.fake[1].times.margn': did you mean 'margin'?",
        ),
        (
            "fake = [{ name = 'score_matching', times = { name = 'log_snr', margin = 0.7 } }]",
            "objective.fake[1].times: a time margin must be in (0, 0.5), got 0.7",
        ),
        ("fake = [{ name = 'score_matching', weighting = 3 }]", "known are none, clamped"),
        (
            "generator = [{ name = 'f_divergence' }]",
            "needs 'ratio', one of critic, exact, bounded",
        ),
        (
            "generator = [{ name = 'trajectory_regression', steps = 1.5 }]",
            "objective.generator[1].steps is a whole number, got 1.5",
        ),
        (
            "generator = [{ name = 'trajectory_regression', steps = true }]",
            "objective.generator[1].steps is a whole number, got True",
        ),
        (
            "generator = [{ name = 'repulsion', min_bandwidth = inf }]",
            "min_bandwidth is a number, got inf",
        ),
        ("generator = [{ name = 'repulsion', phases = [0] }]", "whole numbers from 1, got [0]"),
        ("generator = [{ name = 'repulsion', weight = 'x' }]", "weight is a number, got x"),
        ("generator = [{ name = 'repulsion', weight = nan }]", "use a finite number"),
        ("generator = ['repulsion', 'repulsion']", "generator[2] is named 'repulsion' as a term"),
        ("critic = { name = 'cat' }\ngenerator = ['adversarial']", "'cat' at objective.critic"),
        ("critic = { name = 'mlp' }", "objective.critic = {'name': 'mlp'} has no effect"),
        ("margin = 0.1\ngenerator = ['repulsion']\nfake = ['repulsion']", "margin = 0.1 has no"),
        (
            "critic = { name = 'features', denoiser = 'real' }\ngenerator = ['adversarial']",
            "objective.critic.denoiser is 'teacher' or 'fake', got real",
        ),
        (
            "fake = [{ name = 'score_matching', target = 'math' }]",
            "objective.fake[1].target is a Python object, written 'module:attribute'",
        ),
        (
            "fake = [{ name = 'score_matching', target = 'math:cat' }]",
            "objective.fake[1].target cannot be imported from 'math:cat'",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(text, named):
    with pytest.raises(ValueError) as caught:
        composed(f"[objective]\n{text}")
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_balanced_times_are_built_around_the_distribution_they_are_given():
    plain = ObjectiveConfig(times={"name": "balanced"}).compose()
    assert repr(plain.fake.times) == repr(BalancedTimes(UniformTimes()))
    times = {"name": "balanced", "times": "log_snr"}
    term = {"name": "score_matching", "times": times}
    built = ObjectiveConfig(fake=(term,), margin=0.1).compose()
    assert repr(built.fake.times) == repr(BalancedTimes(LogSnrTimes(0.1)))
