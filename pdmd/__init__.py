"""pdmd: distills diffusion and flow models into few-step mixtures of experts by Phased DMD."""

from pdmd import experts, objectives, routers, teachers
from pdmd.adapters import AdaptedDenoiser, LowRank
from pdmd.denoisers import Denoiser
from pdmd.distill import distill
from pdmd.experts import (
    Expert,
    FullGradient,
    OdeExpert,
    RenoisingExpert,
    StochasticTruncation,
    Truncation,
)
from pdmd.objectives import (
    DistributionMatching,
    Objective,
    Players,
    Rollout,
    SubintervalScoreMatching,
    WeightedSum,
    subinterval_target,
)
from pdmd.phases import Disjoint, Nested, Phase, PhasePlan
from pdmd.predictions import Prediction
from pdmd.routers import IntervalRouter, RoutedDenoiser, Router
from pdmd.sampling import sample, sample_ode, trajectory
from pdmd.schedules import RectifiedFlow, Schedule, Shifted, VarianceExploding
from pdmd.solvers import ode_step, renoise_step
from pdmd.students import Student
from pdmd.teachers import Guided, MixtureTeacher, MlpDenoiser, Teacher
from pdmd.training.fakes import AdaptiveUpdates, OneFakeScore, OneFakeScorePerStop
from pdmd.training.initializers import (
    FromDenoiser,
    FromPrevious,
    FromTeacher,
    Initializer,
    LowRankRoles,
    PerStep,
)
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.orders import Joint, Progressive
from pdmd.variance_preserving import CosineVP, DiscreteVP, LinearVP, VariancePreserving

__version__ = "0.1.0"

__all__ = [
    "AdamRecipe",
    "AdaptedDenoiser",
    "AdaptiveUpdates",
    "CosineVP",
    "Denoiser",
    "DiscreteVP",
    "Disjoint",
    "DistributionMatching",
    "Expert",
    "FromDenoiser",
    "FromPrevious",
    "FromTeacher",
    "FullGradient",
    "Guided",
    "Initializer",
    "IntervalRouter",
    "Joint",
    "LinearVP",
    "LowRank",
    "LowRankRoles",
    "MixtureTeacher",
    "MlpDenoiser",
    "Nested",
    "Objective",
    "OdeExpert",
    "OneFakeScore",
    "OneFakeScorePerStop",
    "PerStep",
    "Phase",
    "PhasePlan",
    "Players",
    "Prediction",
    "Progressive",
    "RectifiedFlow",
    "RenoisingExpert",
    "Rollout",
    "RoutedDenoiser",
    "Router",
    "Schedule",
    "Shifted",
    "StochasticTruncation",
    "Student",
    "SubintervalScoreMatching",
    "Teacher",
    "Truncation",
    "VarianceExploding",
    "VariancePreserving",
    "WeightedSum",
    "distill",
    "experts",
    "objectives",
    "ode_step",
    "renoise_step",
    "routers",
    "sample",
    "sample_ode",
    "subinterval_target",
    "teachers",
    "trajectory",
]
