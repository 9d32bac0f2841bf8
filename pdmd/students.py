"""Students: the experts of all phases with their router.

A student is itself a denoiser that knows its prompts, so it can be distilled again. Its folder is
safetensors and JSON: nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pdmd.adapters import LowRank, adapt, adapted_parts, base_digest
from pdmd.denoisers import Denoiser
from pdmd.experts import Expert, experts
from pdmd.phases import Phase, PhasePlan
from pdmd.registry import Registry
from pdmd.routers import IntervalRouter, RoutedDenoiser, Router
from pdmd.teachers.base import Teacher, networks, teachers
from pdmd.teachers.rebased import ENDS, rebased
from pdmd.typing import Condition, Latents

__all__ = [
    "Student",
    "checksum",
    "describe_plan",
    "plan_from_description",
    "schedule_of",
    "source_teacher",
]

FORMAT = 1


class Student(Teacher):
    """A few-step mixture of experts.

    Args:
        experts: One frozen expert per phase, noisiest first; their phases make the plan.
        encode: Turns prompts into conditions, usually the teacher's own.
        prompts: What to draw prompts from where the student teaches; usually the teacher's own.
        router: Chooses the expert of a time; by the plan's boundaries by default.
        source: How to build the networks again: ``{"teacher": name, "arguments": {...}}`` of a
            registered teacher, and ``"network": {"name": ..., "arguments": {...}}`` of a
            registered network where the experts are not copies of the teacher, and
            ``"schedule": {"name": ..., "end": ...}`` of a teacher on another schedule than its own
            (:func:`~pdmd.teachers.rebased.rebased`); written into the folder so that loading needs
            no objects. Other entries, such as ``"guidance"``, are
            kept.

    Raises:
        ValueError: If there are no experts, or their phases do not make a plan.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        *,
        encode: Callable[[Sequence[Any]], Condition] | None = None,
        prompts: Sequence[Any] = (None,),
        router: Router | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        plan = PhasePlan(tuple(expert.phase for expert in experts))
        denoiser = experts[0].denoiser
        ranges = [expert.denoiser.time_range for expert in experts]
        super().__init__(
            schedule=denoiser.schedule,
            kind=denoiser.kind,
            latent_shape=denoiser.latent_shape,
            time_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        )
        self.plan = plan
        self.experts = nn.ModuleList(experts)
        self.router = router or IntervalRouter(plan.boundaries)
        self.source = dict(source) if source is not None else None
        self._encode = encode
        self._prompts = tuple(prompts) if isinstance(prompts, list) else prompts

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates each sample with the expert of its time."""
        return self._routed().network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts as the teacher does.

        Raises:
            ValueError: If the student was made without an encoder.
        """
        if self._encode is None:
            raise ValueError(
                "this student has no prompt encoder; pass a condition from the teacher's "
                "encode(), or load it with Student.load(folder, teacher=teacher)"
            )
        return self._encode(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of its teacher."""
        return self._prompts

    def trainable_copy(self) -> Denoiser:
        """Returns a routed denoiser of trainable copies of the experts' networks."""
        return self._routed().trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the one expert's network between two times, the routed one if several."""
        return self._routed().part(t_start, t_end)

    def _routed(self) -> RoutedDenoiser:
        return RoutedDenoiser([expert.denoiser for expert in self._experts()], self.router)

    def _experts(self) -> list[Expert]:
        return cast(list[Expert], list(self.experts))

    def save(self, folder: str | Path) -> None:
        """Writes ``student.json`` and one safetensors file per expert.

        A new folder appears whole or not at all. In one that exists, a student is replaced, and
        every other file stays.

        Args:
            folder: Where to write.

        Raises:
            ValueError: If the student routes by something else than its plan's boundaries, or an
                expert's class is not registered.
        """
        from safetensors.torch import save_file

        if _boundaries(self.router) != self.plan.boundaries:
            raise ValueError(
                f"the router's boundaries {self.router} are not the plan's "
                f"{list(self.plan.boundaries)}; only the plan is saved"
            )
        folder = Path(folder)
        draft = folder.with_name(folder.name + ".partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        entries = []
        names: dict[int, str] = {}
        for i, expert in enumerate(self._experts()):
            shared = id(expert.denoiser) in names
            name = names.setdefault(id(expert.denoiser), f"expert_{i + 1}.safetensors")
            if not shared:
                state = expert.denoiser.state_dict()
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in state.items()}, draft / name
                )
            entries.append({"file": name, "sha256": checksum(draft / name), **_entry(expert)})
        content = {
            "format": FORMAT,
            "source": self.source,
            "plan": describe_plan(self.plan),
            "experts": entries,
        }
        (draft / "student.json").write_text(json.dumps(content, indent=2) + "\n")
        if not folder.exists():
            draft.rename(folder)
            return
        (folder / "student.json").unlink(missing_ok=True)  # no student while files change
        for path in folder.glob("expert_*.safetensors"):
            path.unlink()
        for path in (*draft.glob("*.safetensors"), draft / "student.json"):
            path.rename(folder / path.name)
        draft.rmdir()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        template: Denoiser | None = None,
        teacher: Teacher | None = None,
    ) -> Student:
        """Reads a student from a folder.

        Args:
            folder: What :meth:`save` wrote.
            template: A network of the experts' shape; by default the registered teacher named in
                the folder provides it.
            teacher: Provides the prompt encoder, and the template unless one is given. Experts
                that are adapters share its networks, which are frozen.

        Returns:
            The student, frozen; its prompts are the teacher's own.

        Raises:
            ValueError: If the folder is missing, damaged, of a newer format, or names no teacher
                and neither ``template`` nor ``teacher`` is given; or if its experts are adapters
                over other weights.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        content = _read_description(folder)
        source = content["source"]
        if teacher is None and source is not None:
            teacher = source_teacher(folder)
        if template is None:
            if teacher is None:
                raise ValueError(
                    f"{folder} names no registered teacher; pass template=network or "
                    "teacher=teacher to Student.load"
                )
            network = (source or {}).get("network")
            if network is not None:
                arguments = {**network.get("arguments", {}), "schedule": teacher.schedule}
                template = _build(networks, network["name"], arguments, folder)
            else:
                template = teacher
        assert template is not None
        plan = plan_from_description(content["plan"])
        if len(plan) != len(content["experts"]):
            raise ValueError(
                f"{folder / 'student.json'} is damaged: {len(plan)} phases but "
                f"{len(content['experts'])} experts"
            )
        loaded, read = [], {}
        for phase, entry in zip(plan, content["experts"], strict=True):
            path = folder / Path(entry["file"]).name
            if not path.is_file():
                raise ValueError(f"{path} is missing; distill again or restore the file")
            if checksum(path) != entry["sha256"]:
                raise ValueError(
                    f"{path} is damaged: its checksum is not the one in student.json; distill "
                    "again or restore the file"
                )
            denoiser = read.get(path)
            if denoiser is None:
                served = [p for p, e in zip(plan, content["experts"], strict=True) if e == entry]
                span = (phase.t_start, served[-1].t_end)
                boundaries, adapter = entry.get("boundaries"), _adapter(entry)
                denoiser = read[path] = _like(template, span, boundaries, adapter)
                if "base" in entry and base_digest(denoiser) != entry["base"]:
                    raise ValueError(
                        f"{path} adapts other weights than those of the "
                        f"{type(template).__name__} at hand; pass teacher= or template= with the "
                        "weights that the student was distilled from, in float32 or bfloat16"
                    )
                try:
                    denoiser.load_state_dict(load_file(path))
                except (RuntimeError, SafetensorError) as error:
                    first = str(error).strip().splitlines()[-1].strip()[:300]
                    raise ValueError(f"{path} does not fit the network: {first}") from error
            loaded.append(experts[entry["expert"]](denoiser, phase))
        known: dict[str, Any] = {}
        if teacher is not None:
            known["encode"] = teacher.encode
            with contextlib.suppress(ValueError):  # a text encoder alone, for prompts to come
                known["prompts"] = teacher.prompts
        student = cls(loaded, source=source, **known)
        return student.eval().requires_grad_(False)


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
    """Returns the plan that :func:`describe_plan` described."""
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
    folder: str | Path, arguments: Mapping[str, Any] | None = None, *, device: str = ""
) -> Teacher:
    """Builds the registered teacher of a student's folder, on the student's schedule.

    Args:
        folder: What :meth:`Student.save` wrote.
        arguments: Arguments in the place of those of the folder, or beside them.
        device: Where its parts go, if it is one that is told; by default where they were.

    Raises:
        ValueError: If the folder is missing, damaged or names no registered teacher, or the
            teacher does not take the arguments.
    """
    folder = Path(folder)
    source = _read_description(folder)["source"]
    if source is None:
        raise ValueError(
            f"{folder} names no registered teacher; load it in Python with teacher=..."
        )
    together = {**source.get("arguments", {}), **(arguments or {})}
    if device and source["teacher"] in teachers and "device" not in (arguments or {}):
        told = inspect.signature(teachers[source["teacher"]]).parameters
        if {"device", "folder"} & told.keys():  # a folder's factory passes it on
            together["device"] = device
    teacher = _build(teachers, source["teacher"], together, folder)
    return rebased(teacher, *schedule_of(source))


def schedule_of(source: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the name and the end of the schedule that a source puts its teacher on.

    Both are as :func:`~pdmd.teachers.rebased.rebased` takes them.
    """
    schedule = source.get("schedule") or {}
    return schedule.get("name", ""), schedule.get("end", "noise")


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "student.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a student folder: it has no student.json")
    try:
        content = json.loads(path.read_text())
        number = content["format"]
        for key in ("plan", "experts", "source"):
            content[key]
        if number == FORMAT:
            plan_from_description(content["plan"])
            for entry in content["experts"]:
                for key in ("file", "sha256"):
                    if not isinstance(entry[key], str):
                        raise ValueError(f"{key} is text, got {entry[key]!r}")
                if "boundaries" in entry:
                    IntervalRouter(entry["boundaries"])
                _adapter(entry)
                if not isinstance(entry.get("base", ""), str):
                    raise ValueError(f"base is a digest, got {entry['base']!r}")
                experts[entry["expert"]]
            _check_source(content["source"])
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
        raise ValueError(f"{path} has format {number}, this version reads {FORMAT}; upgrade pdmd")
    return content


def _check_source(source: Any) -> None:
    if source is None:
        return
    guidance = source.get("guidance", 1.0)
    for scale in guidance if isinstance(guidance, list) else [guidance]:
        if isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"guidance is finite numbers, got {guidance!r}")
    schedule = source.get("schedule")
    if schedule is not None and not (
        isinstance(schedule.get("name"), str) and schedule.get("end", "noise") in ENDS
    ):
        raise ValueError(f"schedule has a name and an end, got {schedule!r}")
    for part, key in ((source, "teacher"), (source.get("network"), "name")):
        if part is not None and not (
            isinstance(part[key], str) and isinstance(part.get("arguments", {}), dict)
        ):
            raise ValueError(f"source names a {key} and its arguments, got {part!r}")


def _build(registry: Registry[Any], name: str, arguments: Mapping[str, Any], folder: Path) -> Any:
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


def _like(
    template: Denoiser,
    span: tuple[float, float],
    boundaries: Sequence[float] | None,
    adapter: LowRank | None,
) -> Denoiser:
    def made(network: Denoiser) -> Denoiser:
        return network.trainable_copy() if adapter is None else adapt(network, adapter, seed=0)

    part = template.part(*span)
    if boundaries is None:
        return made(part)
    if isinstance(part, RoutedDenoiser) and _boundaries(part.router) == tuple(boundaries):
        networks = [cast(Denoiser, d) for d in part.denoisers]
    else:
        networks = [part for _ in boundaries[1:]]
    return RoutedDenoiser([made(network) for network in networks], IntervalRouter(boundaries))


def _entry(expert: Expert) -> dict[str, Any]:
    entry: dict[str, Any] = {"expert": _name(expert)}
    if isinstance(expert.denoiser, RoutedDenoiser):
        entry["boundaries"] = list(_boundaries(expert.denoiser.router))
    adapters = adapted_parts(expert.denoiser)
    if adapters:
        own = sum(p.numel() for adapter in adapters for p in adapter.parameters())
        if own != sum(p.numel() for p in expert.denoiser.parameters()) or any(
            adapter.spec != adapters[0].spec for adapter in adapters
        ):
            raise ValueError(
                "an expert whose networks are adapted differently cannot be saved; adapt all of "
                "them alike, or save merged() copies"
            )
        spec = adapters[0].spec
        entry["adapter"] = {
            "rank": spec.rank,
            "alpha": spec.alpha,
            "targets": list(spec.targets),
        }
        entry["base"] = base_digest(expert.denoiser)
    return entry


def _adapter(entry: Mapping[str, Any]) -> LowRank | None:
    """Reads the adapter that an entry describes, if any."""
    if "adapter" not in entry:
        return None
    adapter = entry["adapter"]
    if not isinstance(adapter, dict) or adapter.keys() != {"rank", "alpha", "targets"}:
        raise ValueError(f"an adapter has rank, alpha and targets, got {adapter!r}")
    if not isinstance(adapter["targets"], list):
        raise ValueError(f"targets are a list of patterns, got {adapter['targets']!r}")
    return LowRank(**{**adapter, "targets": tuple(adapter["targets"])})


def _boundaries(router: Router) -> tuple[float, ...]:
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
        f"{type(expert).__name__} is not registered, so its student cannot be loaded again; "
        "decorate the class with @experts.register(name)"
    )


def checksum(path: Path) -> str:
    """Returns a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
