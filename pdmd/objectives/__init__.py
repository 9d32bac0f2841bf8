"""Objectives: what the generator and the fake score are trained on."""

from pdmd.objectives.base import (
    DrawConditions,
    LogSnrTimes,
    Objective,
    OnlyPhases,
    Players,
    Rollout,
    TimeSampler,
    UniformTimes,
    WeightedSum,
)
from pdmd.objectives.base import objectives as _registry
from pdmd.objectives.distribution_matching import (
    DistributionMatching,
    ExactKL,
    GapWeight,
    Normalised,
    PosteriorGap,
    gap_weights,
)
from pdmd.objectives.score_matching import SubintervalScoreMatching, subinterval_target
from pdmd.objectives.weightings import (
    ClampedWeighting,
    EpsilonWeighting,
    InverseVarianceWeighting,
    RatioWeighting,
    Unweighted,
    Weighting,
    weightings,
)

__all__ = [
    "ClampedWeighting",
    "DistributionMatching",
    "DrawConditions",
    "EpsilonWeighting",
    "ExactKL",
    "GapWeight",
    "InverseVarianceWeighting",
    "LogSnrTimes",
    "Normalised",
    "Objective",
    "OnlyPhases",
    "Players",
    "PosteriorGap",
    "RatioWeighting",
    "Rollout",
    "SubintervalScoreMatching",
    "TimeSampler",
    "UniformTimes",
    "Unweighted",
    "WeightedSum",
    "Weighting",
    "gap_weights",
    "get",
    "names",
    "register",
    "subinterval_target",
    "weightings",
]

register, get, names = _registry.register, _registry.get, _registry.names
