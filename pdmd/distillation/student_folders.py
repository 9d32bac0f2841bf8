"""Student folders: writes and reads ``student.json``, and rebuilds networks from it.

A folder contains safetensors and JSON only: nothing is unpickled.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser, Router, routers
from pdmd.distillation.adapters import LowRank, adapt, adapted_parts, base_digest
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import Expert, experts
from pdmd.distillation.phases import Phase, PhasePlan
from pdmd.distillation.student_processes import check_process, describe_process, process_of
from pdmd.distillation.student_sizes import FolderSizes
from pdmd.distillation.student_sources import check_source
from pdmd.distillation.text_encoders import check_encoder
from pdmd.distributed.materialization import missing_sources
from pdmd.documents import read_json
from pdmd.files import is_url
from pdmd.registry import Registry
from pdmd.teachers.base import Teacher, outline_arguments, teachers
from pdmd.teachers.routed import with_router
from pdmd.teachers.with_schedule import on_schedule

__all__ = [
    "FORMAT",
    "adapter_of",
    "boundaries_of",
    "build",
    "check_places",
    "describe_expert",
    "describe_plan",
    "empty_network",
    "found_place",
    "plan_from_description",
    "read_description",
    "schedule_of",
    "source_teacher",
]

LOCAL = ("folder", "config", "embeddings", "prompts")
"""Arguments of teachers that may be local paths."""
FORMAT = 1
"""The folder format that this version writes and reads."""


def describe_plan(plan: PhasePlan) -> list[dict[str, Any]]:
    """Returns a plan as JSON values."""
    return [
        {
            "timesteps": list(phase.timesteps),
            "t_end": phase.t_end,
            "score_range": list(phase.score_range),
        }
        for phase in plan
    ]


def plan_from_description(description: Sequence[Mapping[str, Any]]) -> PhasePlan:
    """Builds a plan from the result of :func:`describe_plan`."""
    return PhasePlan(
        tuple(
            Phase(
                index=i,
                timesteps=tuple(entry["timesteps"]),
                t_end=entry["t_end"],
                score_range=(entry["score_range"][0], entry["score_range"][1]),
            )
            for i, entry in enumerate(description)
        )
    )


def source_teacher(
    folder: str | Path,
    arguments: Mapping[str, Any] | None = None,
    *,
    device: str = "",
    trust_source: bool = False,
    outlined: bool = False,
) -> Teacher:
    """Builds the registered teacher of a student's folder, on the student's schedule.

    Args:
        folder: A folder written by :meth:`~pdmd.distillation.students.Student.save`.
        arguments: Arguments that override or extend those in the folder.
        device: Device argument of the teacher, if it has one; by default that in the folder.
        trust_source: Whether to use the URLs and cache folders that the folder itself names.
        outlined: Whether to build an outline of a teacher that is loaded from a folder
            (:mod:`pdmd.distributed.weight_sources`), where it supports that.

    Raises:
        ValueError: If the folder is missing, damaged or names no registered teacher, or the
            teacher does not take the arguments, or the folder names places that are not trusted.
    """
    folder = Path(folder)
    content = read_description(folder)
    source = content["source"]
    if source is None:
        raise ValueError(
            f"{folder} names no registered teacher; load it in Python with teacher=..."
        )
    if not trust_source:
        check_places(source, folder, except_for=arguments or {})
    own = {k: v for k, v in source.get("arguments", {}).items() if k not in (arguments or {})}
    sizes = FolderSizes.read(folder, content)
    sizes.check_arguments(source["teacher"], own)
    own = {key: found_place(key, value, folder) for key, value in own.items()}
    merged = {**own, **(arguments or {})}
    if device and source["teacher"] in teachers and "device" not in (arguments or {}):
        parameters = inspect.signature(teachers[source["teacher"]]).parameters
        if {"device", "folder"} & parameters.keys():  # a factory with a folder passes it on
            merged["device"] = device
    if source["teacher"] in teachers and not merged.get("folder"):
        outline = outline_arguments(source["teacher"])
        if outline:  # random weights, as many as the arguments say
            sketch = build(teachers, source["teacher"], {**merged, **outline}, folder)
            sizes.check_outline(source["teacher"], sketch)
    meta: dict[str, bool] = {}
    if outlined and source["teacher"] in teachers and merged.get("folder"):
        meta = outline_arguments(source["teacher"])
    teacher = build(teachers, source["teacher"], {**merged, **meta}, folder)
    if meta and missing_sources(teacher):
        teacher = build(teachers, source["teacher"], merged, folder)
    check_encoder(source, merged)
    if source.get("router"):
        router = dict(source["router"])
        teacher = with_router(teacher, build(routers, router.pop("name"), router, folder))
    return on_schedule(teacher, *schedule_of(source)).eval()


def check_places(
    source: Mapping[str, Any], folder: str | Path, *, except_for: Collection[str] = ()
) -> None:
    """Checks that a student's source names no places that only its user should choose.

    These are URLs, which are connected to with the user's credentials; caches, which are written
    to; and plugins, which are code.

    Args:
        source: The ``source`` of a student.
        folder: The student's folder, for the error.
        except_for: Arguments of the teacher that the user gives instead.

    Raises:
        ValueError: If it does; each is named.
    """
    own = {k: v for k, v in source.get("arguments", {}).items() if k not in except_for}
    found = list(_places({**source, "arguments": own}))
    if not found:
        return
    named = ", ".join(f"{key} = {value:.120}" for key, value in found[:8])
    more = f" and {len(found) - 8} more" if found[8:] else ""
    raise ValueError(
        f"{folder} names places that are used only if you trust it: {named}{more}; pass "
        "--trust-source (trust_source=True in Python), or give others with --arguments NAME VALUE"
    )


def found_place(key: str, value: Any, folder: Path) -> Any:
    """Returns a relative path as it is found from a student's folder, if not from here."""
    if key not in LOCAL or not isinstance(value, str) or not value or Path(value).exists():
        return value
    if is_url(value) or Path(value).is_absolute() or ".." in Path(value).parts:
        return value
    places = (parent / value for parent in folder.resolve().parents)
    return next((str(place) for place in places if place.exists()), value)


def _places(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the places that a value of JSON names, with the keys that lead to them."""
    name = path.rsplit(".", 1)[-1].lower()
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            yield from _places(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _places(item, path)
    elif isinstance(value, str) and (is_url(value) or (value and re.search("cache|plugin", name))):
        yield path.removeprefix("arguments."), repr(value)


def schedule_of(source: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a source's schedule: the name and end that ``on_schedule`` takes."""
    schedule = source.get("schedule") or {}
    return schedule.get("name", ""), schedule.get("end", "noise")


def read_description(folder: Path) -> dict[str, Any]:
    """Reads and validates the ``student.json`` of a folder.

    Args:
        folder: A folder written by :meth:`~pdmd.distillation.students.Student.save`.

    Returns:
        The content of its ``student.json``.

    Raises:
        ValueError: If it is missing, damaged or of another format.
    """
    path = folder / "student.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a student folder: it has no student.json")
    try:
        content = read_json(path)
        number = content["format"]
        for key in ("plan", "experts", "source"):
            content[key]
        if number == FORMAT:
            plan = plan_from_description(content["plan"])
            if "buckets" in content:
                Buckets.read(content["buckets"]).plans(plan)
            for entry in content["experts"]:
                for key in ("file", "sha256"):
                    if not isinstance(entry[key], str):
                        raise ValueError(f"{key} must be a string, got {entry[key]!r}")
                if "boundaries" in entry:
                    IntervalRouter(entry["boundaries"])
                adapter_of(entry)
                process_of(entry)
                if not isinstance(entry.get("base", ""), str):
                    raise ValueError(f"base must be a digest, got {entry['base']!r}")
                experts[entry["expert"]]
            check_source(content["source"])
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}); distill again or "
            "restore it"
        ) from error
    if number != FORMAT:
        raise ValueError(
            f"{path} has format {number}, but this version reads {FORMAT}; upgrade pdmd"
        )
    return content


def build(registry: Registry[Any], name: str, arguments: Mapping[str, Any], folder: Path) -> Any:
    """Builds a registered object that a folder names.

    Args:
        registry: The registry.
        name: The registered name.
        arguments: Arguments of the registered function or class.
        folder: The folder, for error messages.

    Raises:
        ValueError: If the name is not registered or does not take the arguments.
    """
    if name not in registry:
        raise ValueError(
            f"{folder} needs the {registry.noun} {name[:80]!r}, which is not registered "
            f"({', '.join(registry)} are); import the module that registers it, on the command "
            "line with --plugins MODULE"
        )
    try:
        return registry[name](**arguments)
    except (TypeError, OverflowError, RuntimeError, MemoryError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"{folder / 'student.json'} is damaged: {name!r} does not take its arguments ({first})"
        ) from error


def empty_network(
    template: Denoiser,
    span: tuple[float, float],
    entry: Mapping[str, Any],
) -> Denoiser:
    """Builds a network into which an expert's weights are loaded.

    Args:
        template: A network with the architecture of the experts.
        span: The noisiest and the cleanest time of the expert.
        entry: The description of the expert.

    Raises:
        ValueError: If the template has another schedule or kind than the expert.
    """
    boundaries, adapter = entry.get("boundaries"), adapter_of(entry)
    check_process(template, entry)

    def build_one(network: Denoiser) -> Denoiser:
        return network.trainable_copy() if adapter is None else adapt(network, adapter, seed=0)

    part = template.part(*span)
    if boundaries is None:
        return build_one(part)
    if isinstance(part, RoutedDenoiser) and boundaries_of(part.router) == tuple(boundaries):
        networks = [cast(Denoiser, d) for d in part.denoisers]
    else:
        networks = [part for _ in boundaries[1:]]
    return RoutedDenoiser([build_one(network) for network in networks], IntervalRouter(boundaries))


def describe_expert(expert: Expert) -> dict[str, Any]:
    """Returns the description of an expert in ``student.json``, without its file.

    Raises:
        ValueError: If the expert cannot be saved.
    """
    entry: dict[str, Any] = {"expert": _name(expert)}
    entry["process"] = describe_process(expert.denoiser)
    if isinstance(expert.denoiser, RoutedDenoiser):
        entry["boundaries"] = list(boundaries_of(expert.denoiser.router))
    adapters = adapted_parts(expert.denoiser)
    if adapters:
        factors = sum(p.numel() for adapter in adapters for p in adapter.parameters())
        if factors != sum(p.numel() for p in expert.denoiser.parameters()) or any(
            adapter.spec != adapters[0].spec for adapter in adapters
        ):
            raise ValueError(
                "an expert with different adapters in its networks cannot be saved; use one spec "
                "for all of them, or save merged() copies"
            )
        spec = adapters[0].spec
        entry["adapter"] = {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "targets": list(spec.targets),
        }
        entry["base"] = base_digest(expert.denoiser)
    return entry


def adapter_of(entry: Mapping[str, Any]) -> LowRank | None:
    """Returns the adapter in the description of an expert, if any.

    Raises:
        ValueError: If the adapter is not valid.
    """
    if "adapter" not in entry:
        return None
    adapter = entry["adapter"]
    if not isinstance(adapter, dict) or adapter.keys() != {"rank", "alpha", "targets"}:
        raise ValueError(f"an adapter must have rank, alpha and targets, got {adapter!r}")
    if not isinstance(adapter["targets"], list):
        raise ValueError(f"targets must be a list of patterns, got {adapter['targets']!r}")
    return LowRank(**{**adapter, "targets": tuple(adapter["targets"])})


def boundaries_of(router: Router) -> tuple[float, ...]:
    """Returns a router's boundaries.

    Raises:
        ValueError: If it is not an :class:`~pdmd.diffusion.routers.IntervalRouter`.
    """
    if not isinstance(router, IntervalRouter):
        raise ValueError(
            f"a {type(router).__name__} cannot be saved; use an IntervalRouter, or keep the "
            "student in memory"
        )
    return router.boundaries


def _name(expert: Expert) -> str:
    for name in experts:
        if experts[name] is type(expert):
            return name
    raise ValueError(
        f"{type(expert).__name__} is not registered, so its student could not be loaded; "
        "decorate the class with @experts.register(name)"
    )
