"""pdmd: distills diffusion and flow models into few-step mixtures of experts by Phased DMD."""

from pdmd import objectives, teachers
from pdmd.diffusion import routers
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.predictions import Prediction
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser, Router
from pdmd.diffusion.sampling import sample_ode, sample_sde
from pdmd.diffusion.schedules import RectifiedFlow, Schedule, Shifted, VarianceExploding
from pdmd.diffusion.solvers import ode_step, renoise_step
from pdmd.diffusion.variance_preserving import CosineVP, DiscreteVP, LinearVP, VariancePreserving
from pdmd.distillation import experts
from pdmd.distillation.adapters import AdaptedDenoiser, LowRank
from pdmd.distillation.distill import distill
from pdmd.distillation.experts import (
    Expert,
    FullGradient,
    OdeExpert,
    RenoisingExpert,
    StochasticTruncation,
    Truncation,
)
from pdmd.distillation.initializers import (
    FromDenoiser,
    FromPrevious,
    FromTeacher,
    Initializer,
    LowRankRoles,
    PerStep,
)
from pdmd.distillation.phases import Disjoint, Nested, Phase, PhasePlan
from pdmd.distillation.sampling import sample, trajectory
from pdmd.distillation.students import Student
from pdmd.objectives import (
    DistributionMatching,
    Models,
    Objective,
    PhaseContext,
    Rollout,
    SubintervalScoreMatching,
    WeightedSum,
    subinterval_target,
)
from pdmd.teachers import Guided, MixtureTeacher, MlpDenoiser, Teacher
from pdmd.training.curriculum import Joint, Progressive
from pdmd.training.expert_training import ExpertTraining
from pdmd.training.fake_scores import (
    AdaptiveUpdates,
    FakeScoreTraining,
    OneFakeScore,
    OneFakeScorePerExitStep,
)
from pdmd.training.optimizers import AdamRecipe
from pdmd.training.phase_inputs import PhaseInputBuffer
from pdmd.training.rollouts import Rollouts
from pdmd.training.session import Session

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
    "ExpertTraining",
    "FakeScoreTraining",
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
    "Models",
    "Nested",
    "Objective",
    "OdeExpert",
    "OneFakeScore",
    "OneFakeScorePerExitStep",
    "PerStep",
    "Phase",
    "PhaseContext",
    "PhaseInputBuffer",
    "PhasePlan",
    "Prediction",
    "Progressive",
    "RectifiedFlow",
    "RenoisingExpert",
    "Rollout",
    "Rollouts",
    "RoutedDenoiser",
    "Router",
    "Schedule",
    "Session",
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
    "sample_sde",
    "subinterval_target",
    "teachers",
    "trajectory",
]

_RENAMED = {"Players": "Models", "OneFakeScorePerStop": "OneFakeScorePerExitStep"}


def __getattr__(name: str) -> object:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import warnings

    new = _RENAMED[name]
    warnings.warn(f"pdmd.{name} is now pdmd.{new}", DeprecationWarning, stacklevel=2)
    return globals()[new]
