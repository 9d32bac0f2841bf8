"""Bad arguments of public calls: every one raises an error that names the value."""

import inspect
import math

import pytest
import torch

import pdmd
from pdmd import (
    AdamRecipe,
    AdaptedDenoiser,
    AdaptiveUpdates,
    DistributionMatching,
    ExpertTraining,
    FakeScoreTraining,
    FromDenoiser,
    Guided,
    IntervalRouter,
    Joint,
    LowRank,
    LowRankRoles,
    MixtureTeacher,
    MlpDenoiser,
    OdeExpert,
    PerStep,
    Phase,
    PhaseInputBuffer,
    PhasePlan,
    Prediction,
    RectifiedFlow,
    Rollouts,
    RoutedDenoiser,
    Session,
    Shifted,
    Student,
    SubintervalScoreMatching,
    VarianceExploding,
    WeightedSum,
    randomness,
)
from pdmd import objectives as o
from pdmd.diffusion.schedules import Truncated
from pdmd.diffusion.solvers import diffuse
from pdmd.evaluation import metrics
from pdmd.planning import Degrees
from pdmd.teachers import RoutedTeacher, WithSchedule
from pdmd.training.ema import Ema
from pdmd.training.monitoring import detectors

SCHEDULE = RectifiedFlow()
TEACHER = MixtureTeacher.random(dim=2, modes=2, classes=2)
PLAN = PhasePlan.uniform(2)
X = torch.randn(4, 2)
NETWORK = MlpDenoiser(dim=2, schedule=SCHEDULE, classes=2)
EXPERTS = [OdeExpert(NETWORK, phase) for phase in PLAN]
STUDENT = Student(EXPERTS, encode=TEACHER.encode)
PREDICTION = Prediction(value=X, kind="velocity", x_t=X, t=0.5, schedule=SCHEDULE)
MATCHING = DistributionMatching()
ROUTER = IntervalRouter([1, 0.5, 0])

OBJECTS = ["x", 3, RectifiedFlow, [1]]
COUNTS = [2.5, True, "2", -1, 0, math.nan, None]
POSITIVE = ["a", True, math.nan, -1.0, 0.0, None]
NUMBERS = ["a", True, math.nan, None]
UNIT = ["a", True, math.nan, -0.1, 1.1]

CALLS = [
    (Shifted, {"base": SCHEDULE, "shift": 2.0}, {"base": OBJECTS, "shift": POSITIVE}),
    (Truncated, {"base": SCHEDULE, "t_max": 0.5}, {"base": OBJECTS, "t_max": [*POSITIVE, 1.1]}),
    (
        VarianceExploding,
        {},
        {"sigma_max": POSITIVE, "sigma_min": [*NUMBERS, -1.0, 90.0], "rho": [*POSITIVE, 0.5]},
    ),
    (pdmd.LinearVP, {}, {"beta_min": [*NUMBERS, -1.0], "beta_max": POSITIVE}),
    (IntervalRouter, {"boundaries": [1, 0]}, {"boundaries": ["10", 3, [1], [1, "a", 0], [0, 1]]}),
    (
        RoutedDenoiser,
        {"denoisers": [NETWORK, NETWORK], "router": ROUTER},
        {"denoisers": ["x", 3, [], ["a", "b"], [RectifiedFlow] * 2], "router": OBJECTS},
    ),
    (
        RoutedTeacher,
        {"teachers": [TEACHER, TEACHER], "router": ROUTER},
        {"teachers": ["x", 3, [], ["a", "b"]], "router": OBJECTS},
    ),
    (
        WithSchedule,
        {"teacher": TEACHER, "schedule": SCHEDULE},
        {"teacher": OBJECTS, "schedule": ["x", 3, RectifiedFlow], "kind": ["x_0", 3, None]},
    ),
    (Guided, {"teacher": TEACHER, "scale": 2.0}, {"teacher": OBJECTS, "scale": [*NUMBERS, "2"]}),
    (
        MlpDenoiser,
        {"dim": 2, "schedule": SCHEDULE},
        {
            "dim": COUNTS,
            "schedule": OBJECTS,
            "kind": ["x_0", 3],
            "classes": [2.5, True, -1],
            "width": COUNTS,
            "depth": [2.5, True, -1],
            "frequencies": [2.5, True, -1],
        },
    ),
    (
        Phase,
        {"index": 0, "timesteps": (1.0,), "t_end": 0.0, "score_range": (0.0, 1.0)},
        {
            "index": [2.5, True, -1, "0"],
            "timesteps": ["1", 3, (), (2.0,), ("a",), (math.nan,)],
            "t_end": ["0", True, math.nan, -0.1, 1.1],
            "score_range": ["01", 3, (0.0,), (0.5, 0.2), (0.0, 2.0), (math.nan, 1.0)],
        },
    ),
    (PhasePlan, {"phases": PLAN.phases}, {"phases": ["x", 3, (), ("a",)]}),
    (
        PhasePlan.uniform,
        {"phases": 2},
        {
            "phases": COUNTS,
            "steps": [*COUNTS, "22", [1, 2.5], [1], [1, -1]],
            "shift": POSITIVE,
            "score_range": ["nested", 3, pdmd.Nested],
        },
    ),
    (
        PhasePlan.from_timesteps,
        {"timesteps": [1, 0.5, 0]},
        {
            "timesteps": ["1", 3, [1], [0, 1], [1, math.nan, 0], [1, "a", 0], None],
            "steps": [*COUNTS, 3, [1, 2]],
            "shift": POSITIVE,
        },
    ),
    (
        PhasePlan.from_log_snr,
        {"log_snrs": [0.0], "schedule": SCHEDULE},
        {"log_snrs": ["0", 3, [1.0, 0.0], [math.nan], ["a"]], "schedule": OBJECTS},
    ),
    (OdeExpert, {"denoiser": NETWORK, "phase": PLAN[0]}, {"denoiser": OBJECTS, "phase": OBJECTS}),
    (LowRank, {}, {"rank": COUNTS, "alpha": POSITIVE, "targets": ["x", 3, (3,)]}),
    (
        AdaptedDenoiser,
        {"base": NETWORK, "spec": LowRank(rank=2), "seed": 0},
        {"base": OBJECTS, "spec": OBJECTS, "seed": [2.5, True, "0"]},
    ),
    (FromDenoiser, {"denoiser": NETWORK}, {"denoiser": OBJECTS}),
    (PerStep, {}, {"inner": OBJECTS}),
    (
        LowRankRoles,
        {},
        {"expert": OBJECTS, "fake": OBJECTS, "start": OBJECTS, "seed": [2.5, True]},
    ),
    (
        Student,
        {"experts": EXPERTS},
        {
            "experts": ["x", 3, [], ["a"], [OdeExpert]],
            "encode": ["x", 3],
            "router": OBJECTS,
        },
    ),
    (
        WeightedSum,
        {"terms": [(1.0, MATCHING)]},
        {"terms": ["x", 3, [], [("a", MATCHING)], [(1.0, "x")], [(math.nan, MATCHING)]]},
    ),
    (
        o.OnlyPhases,
        {"objective": MATCHING, "phases": [1]},
        {"objective": OBJECTS, "phases": ["1", 1, [], [0], [1.5], [True]]},
    ),
    (
        DistributionMatching,
        {},
        {"weighting": OBJECTS, "times": OBJECTS, "name": [3, None], "timestep_samples": COUNTS},
    ),
    (
        SubintervalScoreMatching,
        {},
        {"weighting": OBJECTS, "times": OBJECTS, "name": [3], "target": ["x", 3]},
    ),
    (
        o.FDivergence,
        {"ratio": o.ExactRatio(TEACHER, TEACHER)},
        {"ratio": ["x", 3], "divergence": OBJECTS, "weighting": OBJECTS, "times": OBJECTS},
    ),
    (o.FisherDivergence, {}, {"alpha": NUMBERS, "weighting": OBJECTS, "times": OBJECTS}),
    (o.ClampedWeighting, {}, {"limit": POSITIVE}),
    (o.InverseVarianceWeighting, {}, {"std": POSITIVE, "limit": POSITIVE}),
    (o.UniformTimes, {}, {"margin": [*POSITIVE, 0.5]}),
    (o.LogSnrTimes, {}, {"margin": [*POSITIVE, 0.5]}),
    (o.Normalised, {}, {"epsilon": [*NUMBERS, -1.0]}),
    (o.PseudoHuber, {}, {"c": POSITIVE}),
    (o.FiniteDifferenceR1, {}, {"delta": POSITIVE}),
    (o.TeacherSamples, {}, {"pool": COUNTS, "steps": COUNTS, "batch": COUNTS}),
    (o.TrajectoryRegression, {}, {"steps": COUNTS, "distance": OBJECTS, "name": [3]}),
    (
        o.VelocityRegression,
        {},
        {"anchor": ["a", True, math.nan, -0.1, 1.1], "steps": COUNTS, "distance": OBJECTS},
    ),
    (o.Repulsion, {}, {"view": OBJECTS, "min_bandwidth": POSITIVE, "name": [3]}),
    (
        o.MlpCritic,
        {"dim": 2},
        {"dim": COUNTS, "classes": [2.5, True, -1], "width": COUNTS, "depth": [2.5, True, -1]},
    ),
    (o.Bounded, {"ratio": o.ExactRatio(TEACHER, TEACHER)}, {"ratio": ["x", 3], "limit": POSITIVE}),
    (
        AdamRecipe,
        {},
        {
            "lr": POSITIVE,
            "betas": ["ab", 0.5, (0.5,), (0.5, 1.5), (-0.1, 0.5)],
            "weight_decay": [*NUMBERS, -1.0],
            "warmup": [2.5, True, -1],
            "decay": OBJECTS,
        },
    ),
    (
        AdaptiveUpdates,
        {},
        {"tolerance": POSITIVE, "least": [2.5, True, -1, 9], "most": COUNTS, "decay": UNIT},
    ),
    (Ema, {"network": NETWORK, "decay": 0.9}, {"decay": UNIT}),
    (
        ExpertTraining,
        {},
        {
            "initializer": [*OBJECTS, pdmd.FromTeacher],
            "expert": ["ode", 3, RectifiedFlow, EXPERTS[0]],
            "curriculum": OBJECTS,
            "optimizer": OBJECTS,
            "ema": UNIT,
            "max_grad_norm": POSITIVE,
            "accumulate": COUNTS,
        },
    ),
    (
        FakeScoreTraining,
        {},
        {
            "updates": [2.5, True, "5", -1, None],
            "updates_per_rollout": COUNTS,
            "scores": OBJECTS,
            "optimizer": OBJECTS,
            "max_grad_norm": POSITIVE,
        },
    ),
    (Rollouts, {}, {"batch_size": COUNTS, "truncation": OBJECTS, "phase_inputs": OBJECTS}),
    (
        PhaseInputBuffer,
        {},
        {"batches": COUNTS, "uses": COUNTS, "window": COUNTS, "together": COUNTS},
    ),
    (Joint, {}, {"shared": ["yes", 1]}),
    (
        Session,
        {},
        {
            "runtime": OBJECTS,
            "recorder": OBJECTS,
            "resume": ["yes", 3],
            "account": OBJECTS,
            "max_consecutive_skips": [2.5, True, -1],
        },
    ),
    (pdmd.ode_step, {"prediction": PREDICTION, "s": 0.2}, {"prediction": OBJECTS, "s": UNIT}),
    (
        pdmd.renoise_step,
        {"x_s": X, "s": 0.2, "t": 0.5, "schedule": SCHEDULE},
        {"x_s": ["x", 3], "s": UNIT, "t": UNIT, "schedule": OBJECTS},
    ),
    (pdmd.sample, {"student": STUDENT, "batch": 2}, {"student": OBJECTS, "batch": COUNTS[:-1]}),
    (
        pdmd.trajectory,
        {"student": STUDENT, "batch": 2},
        {"student": OBJECTS, "batch": COUNTS[:-1]},
    ),
    (
        pdmd.sample_ode,
        {"denoiser": NETWORK, "batch": 2, "steps": 2},
        {
            "denoiser": OBJECTS,
            "batch": COUNTS[:-1],
            "steps": COUNTS,
            "t_end": UNIT,
            "times": ["1", 3, [1], [0.5, 1.0], [1, "a"]],
        },
    ),
    (
        pdmd.sample_sde,
        {"denoiser": NETWORK, "batch": 2, "steps": 2},
        {
            "denoiser": OBJECTS,
            "batch": COUNTS[:-1],
            "steps": COUNTS,
            "t_end": UNIT,
            "times": ["1", 3, [1], [0.5, 1.0], [1, "a"]],
        },
    ),
    (
        pdmd.distill,
        {
            "teacher": TEACHER,
            "plan": PLAN,
            "updates": 1,
            "experts": ExpertTraining(initializer=FromDenoiser(NETWORK)),
        },
        {
            "teacher": OBJECTS,
            "plan": [*OBJECTS, PhasePlan],
            "prompts": ["a text", 3, []],
            "updates": [2.5, True, "5", -1, [1], [1, 2.5], None],
            "generator_objective": [*OBJECTS, DistributionMatching],
            "fake_objective": OBJECTS,
            "experts": [*OBJECTS, ExpertTraining],
            "rollouts": [*OBJECTS, Rollouts],
            "fake_scores": OBJECTS,
            "session": [*OBJECTS, Session],
            "seed": [2.5, True, "0", -1],
        },
    ),
]
BAD = [
    pytest.param(call, good, name, value, id=f"{call.__qualname__}-{name}-{value!r:.20}")
    for call, good, names in CALLS
    for name, values in names.items()
    for value in values
]


def words(value):
    """Returns what an error says of a value: itself, or its class."""
    if isinstance(value, type):
        return [value.__name__]
    found = [" ".join(repr(value).split())[:40], str(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        found += [f"{value:g}", str(float(value))]
    if isinstance(value, list | tuple):
        found += ["()", "[]", "at least", "no ", *(w for item in value for w in words(item))]
        found += [f"{len(value)} "]
    return found


@pytest.mark.parametrize(("call", "good"), [(call, good) for call, good, _ in CALLS])
def test_good_arguments_are_taken(call, good):
    if call is not pdmd.distill:
        call(**good)


@pytest.mark.parametrize(("call", "good", "name", "value"), BAD)
def test_a_bad_argument_is_named(call, good, name, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        call(**{**good, name: value})
    said = str(caught.value)
    assert any(word in said for word in words(value)), said
    assert len(said) < 600 and "\n" not in said


def test_signatures_stay_those_of_the_constructors():
    assert list(inspect.signature(Shifted).parameters) == ["base", "shift"]
    assert inspect.signature(PhasePlan.uniform).parameters["phases"].default == 4


ROLLOUT = o.Rollout(x_s=X, condition=None, phase=PLAN[0])
MODELS = o.Models(real=TEACHER, fake=NETWORK, expert=NETWORK)
ROWS = torch.randn(9, 2)
JUNK = ["x", b"x", 1j, object(), RectifiedFlow, {1}, {}, [[1]]]
METHODS = [
    (NETWORK, {"x_t": X, "t": 0.5, "condition": None}),
    (EXPERTS[0], {"x": X, "condition": None, "generator": None}),
    (MATCHING.losses, {"models": MODELS, "rollout": ROLLOUT, "generator": None}),
    (TEACHER.random, {"dim": 2, "classes": 2, "modes": 2, "seed": 0}),
    (diffuse, {"x_s": X, "epsilon": X, "s": 0.2, "t": 0.5}),
    (Student.load, {"folder": "nowhere", "template": NETWORK, "teacher": TEACHER}),
    (o.average_prediction, {"x_t": X, "x_r": X, "t": 0.5, "r": 0.2, "kind": "velocity"}),
    (metrics.frechet_distance, {"f": ROWS, "g": ROWS}),
    (metrics.sliced_wasserstein, {"x": ROWS, "y": ROWS, "projections": 3, "seed": 0}),
    (randomness.randn, {"shape": (4, 2), "generator": None, "dtype": None}),
    (randomness.randint, {"high": 4, "n": 4, "generator": None}),
    (detectors.Collapse, {"diversity": 0.4}),
    (Degrees, {"cp": 1, "tp": 1}),
]


@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("call", "good", "name"), [(call, good, name) for call, good in METHODS for name in good]
)
def test_methods_and_functions_name_a_bad_argument(call, good, name, value):
    if name == "folder" and isinstance(value, str):
        return
    more = {"schedule": SCHEDULE} if "schedule" in inspect.signature(call).parameters else {}
    with pytest.raises((ValueError, TypeError)) as caught:
        call(**{**good, **more, name: value})
    last = caught.traceback[-1]
    assert "/pdmd/" in str(last.path) and "raise " in str(last.statement)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, math.inf, 10**400, torch.tensor(-0.5)])
def test_a_network_is_evaluated_at_times_only(t):
    with pytest.raises(ValueError, match="0, 1"):
        NETWORK(X, t)
