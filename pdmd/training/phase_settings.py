"""Settings of phases: one value for all of them, or one per phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from pdmd.distillation.phases import Phase, PhasePlan

__all__ = ["check_settings", "setting_of"]

T = TypeVar("T")


def check_settings(setting: object, plan: PhasePlan, name: str) -> None:
    """Checks that a setting is one value, or has one per phase.

    Args:
        setting: The setting; a list or tuple has one value per phase.
        plan: The phases.
        name: The setting's name, for errors.

    Raises:
        ValueError: If there is another number of values.
    """
    if isinstance(setting, list | tuple):
        number = len(cast("Sequence[object]", setting))
        if number != len(plan):
            raise ValueError(
                f"{name} has {number} values, but the plan has {len(plan)} phases; give one for "
                "all, or one per phase"
            )


def setting_of(setting: T | Sequence[T], phases: Sequence[Phase], name: str) -> T:
    """Returns a setting's value in phases that train together.

    Args:
        setting: One value for all phases, or a list or tuple of one per phase.
        phases: The phases.
        name: The setting's name, for errors.

    Raises:
        ValueError: If the phases have different values, so that no single one applies.
    """
    if not isinstance(setting, list | tuple):
        return cast("T", setting)
    values = cast("Sequence[T]", setting)
    first = values[phases[0].index]
    for phase in phases[1:]:
        if values[phase.index] != first:
            raise ValueError(
                f"{name} differs between phases {phases[0].number} and {phase.number}, which "
                "train together; give one value for all, or train one phase after the other "
                "(the progressive curriculum)"
            )
    return first
