"""The terms of an objective: what a sum combines."""

from __future__ import annotations

from pdmd.objectives.base import Objective, OnlyPhases, WeightedSum

__all__ = ["terms_of"]


def terms_of(objective: Objective) -> list[Objective]:
    """Returns the objectives that a sum combines, without their weights and phases.

    Args:
        objective: A sum, which may be limited to phases; another objective is its only term.
    """
    if isinstance(objective, OnlyPhases):
        return terms_of(objective.objective)
    if isinstance(objective, WeightedSum):
        return [found for _, term in objective.terms for found in terms_of(term)]
    return [objective]
