"""Objectives: what the generator and the fake score are trained on."""

from pdmd.objectives.base import (
    LogSnrTimes,
    Objective,
    Players,
    Rollout,
    TimeSampler,
    UniformTimes,
    WeightedSum,
    objectives,
)
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
    "EpsilonWeighting",
    "ExactKL",
    "GapWeight",
    "InverseVarianceWeighting",
    "LogSnrTimes",
    "Normalised",
    "Objective",
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
    "objectives",
    "subinterval_target",
    "weightings",
]
