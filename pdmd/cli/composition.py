"""Composition: objects from tables of registered names and arguments.

A parameter of a constructor that is annotated with a registered family (:data:`FAMILIES`) takes
a registered name, or a table with a ``name`` and the arguments of that object in turn::

    {name = "distribution_matching", weighting = "exact_kl", times = {name = "log_snr"}}

Parameters of plain types take TOML's values; any other parameter, for example a function, takes
the place of a Python object as text, ``"module:attribute"``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from pdmd.cli.values import short
from pdmd.diffusion.routers import Router, routers
from pdmd.objectives.adversarial import Penalty, penalties
from pdmd.objectives.base import Objective, objectives
from pdmd.objectives.critics import Critic, critics
from pdmd.objectives.distribution_matching import (
    ScoreDifferenceWeighting,
    score_difference_weightings,
)
from pdmd.objectives.divergences import Divergence, divergences
from pdmd.objectives.diversity import View, views
from pdmd.objectives.f_divergence import DensityRatio, density_ratios
from pdmd.objectives.fisher import FisherWeighting, fisher_weightings
from pdmd.objectives.real_samples import RealSamples, real_samples
from pdmd.objectives.regression import Distance, distances
from pdmd.objectives.time_samplers import TimeSampler, time_samplers
from pdmd.objectives.weightings import Weighting, weightings
from pdmd.registry import Registry
from pdmd.training.learning_rates import RateDecay, rate_decays

__all__ = ["FAMILIES", "Composer", "keys_of", "unknown_name"]

FAMILIES: Mapping[type, Registry[Any]] = {
    Objective: objectives,
    TimeSampler: time_samplers,
    ScoreDifferenceWeighting: score_difference_weightings,
    Weighting: weightings,
    Divergence: divergences,
    DensityRatio: density_ratios,
    FisherWeighting: fisher_weightings,
    Distance: distances,
    View: views,
    Critic: critics,
    Penalty: penalties,
    RealSamples: real_samples,
    Router: routers,
    RateDecay: rate_decays,
}
"""Base classes that a configuration builds by name, with their registries."""

NUMBERS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
LARGEST = 10**9
"""The largest whole number that an argument takes; the square of it for other numbers."""


class Composer:
    """Builds objects of the registered families from tables.

    Args:
        supplied: Objects for parameters of other types, by type: called with the parameter's
            table, ``None`` where there is none, and its key path.
        defaults: Values for parameters that a table leaves out, by the family of the object and
            the parameter's key.
    """

    def __init__(
        self,
        supplied: Mapping[type, Callable[[Any, str], Any]] | None = None,
        defaults: Mapping[type, Mapping[str, Any]] | None = None,
    ) -> None:
        self.supplied, self.defaults = supplied or {}, defaults or {}
        self.used: set[tuple[type, str]] = set()

    def build(self, family: type, table: Any, where: str, reserved: Collection[str] = ()) -> Any:
        """Builds an object.

        Args:
            family: The base class.
            table: A registered name, or a table with ``name`` and arguments.
            where: The key path, for errors.
            reserved: Keys that are the caller's, which no argument may have.

        Raises:
            ValueError: If a name, key or value is not one that the object takes.
        """
        make, arguments = self.read(family, table, where, reserved)
        missing = [
            key
            for key, parameter in keys_of(make, reserved).items()
            if parameter.default is parameter.empty and parameter.name not in arguments
        ]
        if missing:
            hint = _hints(make).get(keys_of(make, reserved)[missing[0]].name)
            known = _registry(hint)
            options = f", one of {', '.join(known)}" if known is not None else ""
            raise ValueError(f"{where} needs {missing[0]!r}{options}")
        try:
            return make(**arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where}: {error}") from error

    def read(
        self, family: type, table: Any, where: str, reserved: Collection[str] = ()
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Returns the registered class of a table and its arguments; see :meth:`build`."""
        registry = FAMILIES[family]
        if isinstance(table, str):
            table = {"name": table}
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise ValueError(
                f"{where} is the name of one {registry.noun}, or a table with its name and "
                f"arguments; got {short(table)}; known are {', '.join(registry)}"
            )
        name = table["name"]
        if name not in registry:
            raise unknown_name(registry, name, where)
        make = registry[name]
        keys, hints = keys_of(make, reserved), _hints(make)
        arguments = {}
        for key, value in table.items():
            if key == "name":
                continue
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(
                    f"unknown key '{where}.{key}': {hint}{name} takes "
                    f"{', '.join(keys) or 'no arguments'}"
                )
            parameter = keys[key].name
            arguments[parameter] = self._value(hints.get(parameter, Any), value, f"{where}.{key}")
        for key, parameter in keys.items():
            if parameter.name not in arguments:
                self._default(family, key, parameter, hints, where, arguments)
        return make, arguments

    def _default(
        self,
        family: type,
        key: str,
        parameter: inspect.Parameter,
        hints: Mapping[str, Any],
        where: str,
        arguments: dict[str, Any],
    ) -> None:
        hint = hints.get(parameter.name, Any)
        inner = _family(hint)  # one of the same family may be around the default, not in it
        for of, at in ((family, key), (None if inner is family else inner, "")):
            if of is not None and at in self.defaults.get(of, {}):
                self.used.add((of, at))
                value = self._value(hint, self.defaults[of][at], f"{where}.{key}")
                arguments[parameter.name] = value
                return
        supply = self._supplier(hint)
        if supply is not None and parameter.default is parameter.empty:
            arguments[parameter.name] = supply(None, f"{where}.{key}")

    def _supplier(self, hint: Any) -> Callable[[Any, str], Any] | None:
        return next((self.supplied[m] for m in _members(hint) if m in self.supplied), None)

    def _value(self, hint: Any, value: Any, where: str) -> Any:
        supply, family = self._supplier(hint), _family(hint)
        if supply is not None:
            return supply(value, where)
        if family is not None:
            return self.build(family, value, where)
        members = _members(hint)
        if Any in members:
            return value
        for member in members:
            if get_origin(member) in (tuple, list, Sequence) and isinstance(value, list | tuple):
                item = get_args(member)[0]
                return [self._value(item, v, f"{where}[{i + 1}]") for i, v in enumerate(value)]
            if member in NUMBERS and _fits(member, value):
                return float(value) if member is float else value
        nouns = [NUMBERS[m] for m in NUMBERS if m in members]
        nouns += ["a list" for m in members if get_origin(m) in (tuple, list, Sequence)]
        if nouns:
            raise ValueError(f"{where} is {' or '.join(nouns)}, got {short(value)}")
        return _import(value, where)


def keys_of(
    make: Callable[..., Any], reserved: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class or factory by their keys in a table.

    ``name`` is the registered name there, so that the name of a loss is ``loss_name``. A
    ``weight`` that is an object is ``weighting`` where ``weight`` is reserved for a factor.

    Args:
        make: The class or factory.
        reserved: Keys that stand for something else.
    """
    renamed = {"name": "loss_name"}
    if "weight" in reserved:
        renamed["weight"] = "weighting"
    return {
        renamed.get(name, name): parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def unknown_name(registry: Registry[Any], name: str, where: str) -> ValueError:
    """Returns the error for a name that is not registered."""
    near = difflib.get_close_matches(name, registry, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(
        f"unknown {registry.noun} {name!r} at {where}: {hint}known are {', '.join(registry)}"
    )


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(make.__init__ if isinstance(make, type) else make)
    except (NameError, TypeError):  # names that only a type checker imports
        return {}


def _members(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(m for m in get_args(hint) if m is not types.NoneType)
    return (hint,)


def _family(hint: Any) -> type | None:
    return next((m for m in _members(hint) if isinstance(m, type) and m in FAMILIES), None)


def _registry(hint: Any) -> Registry[Any] | None:
    family = _family(hint)
    return None if family is None else FAMILIES[family]


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < LARGEST**2
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, kind)


def _import(value: Any, where: str) -> Any:
    module, _, attribute = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not module or not attribute:
        raise ValueError(
            f"{where} is a Python object, written 'module:attribute'; got {short(value)}"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(f"{where} cannot be imported from {value!r}: {error}") from error
    return found
