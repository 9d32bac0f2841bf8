"""Students: the experts of all phases with their router.

A student is itself a teacher: a denoiser with prompts, which can be distilled again. Its folder
contains safetensors and JSON only: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pdmd.arguments import checked
from pdmd.diffusion.denoisers import Denoiser
from pdmd.diffusion.routers import IntervalRouter, RoutedDenoiser, Router
from pdmd.distillation.adapters import adapted_parts, base_digest
from pdmd.distillation.buckets import Buckets
from pdmd.distillation.experts import Expert, experts
from pdmd.distillation.hub_students import fetch_student
from pdmd.distillation.phases import PhasePlan
from pdmd.distillation.student_folders import (
    FORMAT,
    boundaries_of,
    describe_expert,
    describe_plan,
    empty_network,
    plan_from_description,
    read_description,
    source_teacher,
)
from pdmd.distillation.student_sizes import checksum
from pdmd.distillation.student_sources import check_source
from pdmd.distillation.student_templates import student_template
from pdmd.distillation.text_encoders import with_encoder
from pdmd.distributed.materialization import materialize
from pdmd.distributed.weight_files import (
    WeightFiles,
    load_weights,
    whole_tensors,
    write_tensors,
)
from pdmd.distributed.weight_sources import is_outline
from pdmd.files import local_path, own_digest
from pdmd.tables import Table
from pdmd.teachers.base import Teacher
from pdmd.teachers.conditioning.prompts import check_prompts
from pdmd.typing import Condition, Latents

__all__ = ["Student"]

EXPERT = re.compile(r"expert_\d+\.safetensors")
"""The name of an expert's file."""


@checked
class Student(Teacher):
    """A few-step mixture of experts.

    Args:
        experts: One frozen expert per phase, noisiest first; their phases form the plan.
        encode: Encodes prompts to conditions, usually by the teacher.
        prompts: Prompts to sample from when the student is the teacher; usually the teacher's.
        router: Selects the expert of a time; by the plan's boundaries by default.
        source: How to rebuild the networks: ``{"teacher": name, "arguments": {...}}`` of a
            registered teacher, and ``"network": {"name": ..., "arguments": {...}}`` of a
            registered network if the experts are not copies of the teacher, ``"student"`` in
            place of it if they are copies of another registered teacher, with its name as
            ``"teacher"`` and its ``"arguments"``, and
            ``"schedule": {"name": ..., "end": ...}`` of a teacher on another schedule
            (:func:`~pdmd.teachers.with_schedule.on_schedule`); written into the folder so that
            loading needs no objects. Other keys, such as ``"guidance"`` and
            ``"negative_prompt"``, are kept.
        buckets: The sizes that it was trained on; by default the networks' own.

    Raises:
        ValueError: If there are no experts, or their phases do not form a plan.
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        *,
        encode: Callable[[Sequence[Any]], Condition] | None = None,
        prompts: Sequence[Any] = (None,),
        router: Router | None = None,
        source: Mapping[str, Any] | None = None,
        buckets: Buckets | None = None,
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
        self.buckets = buckets or Buckets.of_shape(denoiser.latent_shape)
        self.router = router or IntervalRouter(plan.boundaries)
        self.source = dict(source) if source is not None else None
        self._encode = encode
        self._prompts = tuple(prompts) if isinstance(prompts, list) else prompts

    @property
    def device(self) -> torch.device:
        """The device on which the first expert computes; its weights may be offloaded."""
        return self._experts()[0].denoiser.device

    def network(self, x_t: Latents, t: Tensor, condition: Condition) -> Latents:
        """Evaluates each sample by the expert of its time."""
        return self._routed().network(x_t, t, condition)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        """Encodes prompts as the teacher does.

        Raises:
            ValueError: If the student has no encoder.
        """
        check_prompts(prompts)
        if self._encode is None:
            raise ValueError(
                "this student has no prompt encoder; load it with Student.load(folder, teacher=)"
            )
        return self._encode(prompts)

    @property
    def prompts(self) -> Sequence[Any]:
        """The prompts of its teacher."""
        return self._prompts

    def table(self) -> Table:
        """Returns the student as a table, an expert a row; ``print(student)`` shows it.

        Parameters are those of an expert's network. One that several experts share is counted for
        each of them, and once in the sum below.
        """
        plan = self.plan.table(self.schedule)
        sizes = [sum(p.numel() for p in expert.parameters()) for expert in self.experts]
        rows = [
            [*row, type(expert.denoiser).__name__, f"{size:,}"]
            for row, expert, size in zip(plan.rows, self._experts(), sizes, strict=True)
        ]
        total = sum(p.numel() for p in self.parameters())
        return Table(
            heading=(*plan.heading, "network", "parameters"),
            rows=rows,
            caption=f"{plan.caption}; {total:,} parameters in all",
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def trainable_copy(self) -> Denoiser:
        """Returns a routed denoiser of trainable copies of the experts' networks."""
        return self._routed().trainable_copy()

    def part(self, t_start: float, t_end: float) -> Denoiser:
        """Returns the expert's network between two times; a routed one if there are several."""
        return self._routed().part(t_start, t_end)

    def _routed(self) -> RoutedDenoiser:
        return RoutedDenoiser([expert.denoiser for expert in self._experts()], self.router)

    def _experts(self) -> list[Expert]:
        return cast(list[Expert], list(self.experts))

    @checked
    def save(self, folder: str | Path) -> None:
        """Writes ``student.json`` and one safetensors file per expert.

        A new folder is created atomically. In an existing one, a student is replaced, and other
        files are kept. A student over sharded networks is saved by all ranks together: each of its
        tensors in turn is gathered and written by the first rank.

        Args:
            folder: Where to write.

        Raises:
            ValueError: If the router's boundaries are not those of the plan, or an expert's class
                is not registered, or the source is no JSON, or the folder is a URL.
            OSError: If it could not be written, on all ranks.
        """
        if boundaries_of(self.router) != self.plan.boundaries:
            raise ValueError(
                f"the router's boundaries {self.router} are not the plan's "
                f"{list(self.plan.boundaries)}; only the plan is saved"
            )
        check_source(self.source)
        folder = local_path(folder, "a student").absolute()
        described = [describe_expert(expert) for expert in self._experts()]
        draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
        collective = any(isinstance(p, DTensor) for p in self.parameters())
        first = not collective or dist.get_rank() == 0
        errors: list[OSError] = []

        def attempt(step: Callable[[], object]) -> None:
            try:
                step()
            except OSError as error:  # the other ranks wait for this one meanwhile
                errors.append(error)

        try:
            if first:
                attempt(lambda: draft.mkdir(parents=True))
            files = self._files()
            for name, expert in {f: e for e, f in reversed(files)}.items():
                path = draft / name if first and not errors else None
                attempt(partial(write_tensors, path, whole_tensors(expert.denoiser)))
            if first and not errors:
                attempt(lambda: self._describe(draft, [name for _, name in files], described))
            if first and not errors:
                attempt(lambda: self._place(draft, folder))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        failed = [str(error) for error in errors[:1]]
        if collective:
            dist.broadcast_object_list(told := [failed])
            (failed,) = told
        if failed:
            raise OSError(f"the student could not be written to {folder} ({failed[0]})") from next(
                iter(errors), None
            )

    def _files(self) -> list[tuple[Expert, str]]:
        """Returns the experts and the names of their files, one for those of one network."""
        names: dict[int, str] = {}
        return [
            (expert, names.setdefault(id(expert.denoiser), f"expert_{i + 1}.safetensors"))
            for i, expert in enumerate(self._experts())
        ]

    def _describe(self, draft: Path, files: list[str], described: list[dict[str, Any]]) -> None:
        entries = [
            {"file": name, "sha256": checksum(draft / name), **entry}
            for name, entry in zip(files, described, strict=True)
        ]
        content = {
            "format": FORMAT,
            "source": with_encoder(self.source),
            "plan": describe_plan(self.plan),
            "experts": entries,
        }
        if len(self.buckets) > 1:
            content["buckets"] = self.buckets.describe()
        content["sha256"] = own_digest(json.loads(json.dumps(content)))
        (draft / "student.json").write_text(json.dumps(content, indent=2) + "\n")

    @staticmethod
    def _place(draft: Path, folder: Path) -> None:
        """Moves the files of a draft into a folder."""
        if not folder.exists():
            draft.rename(folder)
            return
        (folder / "student.json").unlink(missing_ok=True)  # no student while files change
        for path in folder.iterdir():
            if EXPERT.fullmatch(path.name):
                path.unlink()
        for path in (*draft.glob("*.safetensors"), draft / "student.json"):
            path.rename(folder / path.name)

    @classmethod
    @checked
    def load(
        cls,
        folder: str | Path,
        *,
        template: Denoiser | None = None,
        teacher: Teacher | None = None,
        trust_source: bool = False,
    ) -> Student:
        """Reads a student from a folder.

        Args:
            folder: A folder written by :meth:`save`.
            template: A network with the architecture of the experts; by default the registered
                teacher named in the folder provides it.
            teacher: Provides the prompt encoder, and the template unless one is given. Experts
                that are adapters share its networks, which are frozen. If it is an outline
                (:mod:`pdmd.distributed.weight_sources`), so is the student: its weights are read
                from the files when it is sharded or exported.
            trust_source: Whether to use the URLs and cache folders that the folder itself names
                for its teacher.

        Returns:
            The student, frozen, with the teacher's prompts. If it was trained on several sizes,
            and the template's is one of them, its plan has the times of that size.

        Raises:
            ValueError: If the folder is missing, damaged, of another format, or names no teacher
                and neither ``template`` nor ``teacher`` is given; or if its experts have another
                schedule or kind, or are adapters over other weights; or if it names places that
                are not trusted.
        """
        from safetensors import SafetensorError

        folder = Path(folder)
        content = read_description(folder)
        source = content["source"]
        if teacher is None and source is not None:
            teacher = source_teacher(folder, trust_source=trust_source)
        if template is None:
            if teacher is None:
                raise ValueError(
                    f"{folder} names no registered teacher; pass template=network or "
                    "teacher=teacher to Student.load"
                )
            template = student_template(folder, content, teacher)
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
                denoiser = read[path] = empty_network(template, span, entry)
                if "base" in entry and base_digest(denoiser) != entry["base"]:
                    raise ValueError(
                        f"{path} adapts other weights than those of the "
                        f"{type(template).__name__} at hand; pass teacher= or template= with the "
                        "weights that the student was distilled from, in float32 or bfloat16"
                    )
                try:
                    load_weights(denoiser, WeightFiles(partial(_one, path)))
                    for part in adapted_parts(denoiser) if is_outline(denoiser) else ():
                        materialize(part, torch.device("cpu"))  # factors are small
                except (RuntimeError, ValueError, SafetensorError) as error:
                    first = str(error).strip().splitlines()[-1].strip()[:300]
                    raise ValueError(f"{path} does not fit the network: {first}") from error
            loaded.append(experts[entry["expert"]](denoiser, phase))
        known: dict[str, Any] = {}
        if "buckets" in content:
            sizes = Buckets.read(content["buckets"])
            known["buckets"], loaded = sizes.seen_at(template.latent_shape, loaded)
        if teacher is not None:
            known["encode"] = teacher.encode
            with contextlib.suppress(ValueError):  # a teacher with a text encoder, but no prompts
                known["prompts"] = teacher.prompts
        student = cls(loaded, source=source, **known)
        return student.eval().requires_grad_(False)

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        template: Denoiser | None = None,
        teacher: Teacher | None = None,
        trust_source: bool = False,
    ) -> Student:
        """Reads a student of the model hub, or of a folder.

        Args:
            name: Its name on the hub, ``user/name``, or a folder, which comes first.
            revision: A branch, tag or commit of the hub.
            template: As for :meth:`load`.
            teacher: As for :meth:`load`.
            trust_source: As for :meth:`load`.

        Raises:
            ValueError: As :meth:`load`, or if the hub has no student of the name.
            OSError: If the hub cannot be reached.
        """
        local = (Path(name) / "student.json").is_file()
        folder = Path(name) if local else fetch_student(str(name), revision)
        return cls.load(folder, template=template, teacher=teacher, trust_source=trust_source)


def _one(path: Path) -> list[Path]:
    return [path]
