"""A student as a pipeline's folder, of its teacher's own class.

The networks go where the pipeline looks for them: one stage as the stock transformer, two stages
of a family with two places as two stock transformers and their boundary, and anything else into
one transformer of ours that routes by time, whose code stands beside its weights. The scheduler
walks the student's grid: ours exactly, or a stock one, with an error that the model card states.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pdmd.diffusion.sampling import initial_noise
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.students import Student
from pdmd.export.atomic_export import check_place, drafted
from pdmd.export.bases import check_networks, open_base
from pdmd.export.card import Card
from pdmd.export.network_schedule import (
    Stage,
    bases,
    jumps,
    layout_of,
    midpoints,
    stages,
    weight_type,
)
from pdmd.export.schedulers import STOCK, StockScheduler, fit_stock
from pdmd.export.weights import size_of, write_weights
from pdmd.teachers.families.layouts import PipelineLayout
from pdmd.teachers.families.pipelines import dtype_of

__all__ = ["export_diffusers"]


def export_diffusers(
    student: Student,
    folder: str | Path,
    *,
    scheduler: Literal["exact", "stock"] = "exact",
    dtype: str = "",
    base: str = "",
    max_shard_size: str = "10GB",
    measure: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a student as a pipeline's folder that plain diffusers loads.

    Args:
        student: A student of a family with a layout, with the source that its folder has.
        folder: Where to write; it appears whole or not at all.
        scheduler: ``"exact"`` ships a scheduler that walks the student's grid and needs
            ``trust_remote_code=True``; ``"stock"`` takes one of diffusers.
        dtype: Type of the networks' weights; the student's own by default. Weights that the
            family keeps in float32 stay so.
        base: The pipeline whose other parts are taken over; by default the one that the student's
            teacher was loaded from.
        max_shard_size: The largest file of weights, such as ``"10GB"``.
        measure: Samples on which to measure a stock scheduler's error with the student's own
            networks, for the model card; none by default.
        overwrite: Whether to replace an earlier export.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: If the student has no pipeline in diffusers, its pipeline is missing or of
            another kind, the folder is in the way, or no stock scheduler asks every network at
            its own times.
    """
    folder = Path(folder)
    check_place(folder, overwrite=overwrite)
    shard = size_of(max_shard_size)
    found = stages(student)
    layout = layout_of(found)
    parts = _Parts(student, found, layout, scheduler)
    if measure:
        parts.check_measurable(measure)
    chosen = open_base(student, layout, base)
    check_networks(found, layout, chosen)
    chosen.fetch(layout)
    types = partial(_type_of, dtype_of(dtype) if dtype else None, found[0])
    card = Card(
        student=student,
        stages=found,
        layout=layout,
        base=chosen,
        stock=parts.stock,
        own_code=parts.own_code,
        renoises=parts.jumps is not None,
        measured=parts.measure(measure) if measure else None,
        dtype=str(dtype_of(dtype) if dtype else weight_type(found[0].network)),
    )
    size = sum(path.stat().st_size for path in chosen.files(layout)) + parts.size(types)
    with drafted(folder, overwrite=overwrite) as draft, _bar(size, progress) as tell:
        chosen.copy(layout, draft, tell)
        index = {**chosen.index, **parts.write(draft, types, shard, tell)}
        (draft / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        (draft / "README.md").write_text(card.text())
    return folder


@dataclass
class _Parts:
    """What an export brings itself: networks and scheduler."""

    student: Student
    stages: Sequence[Stage]
    layout: PipelineLayout
    scheduler: str

    def __post_init__(self) -> None:
        self.grid = self.student.plan.timesteps[:-1]
        self.jumps = jumps(self.student)
        self.stock: StockScheduler | None = None
        if self.scheduler not in ("exact", "stock"):
            raise ValueError(f"a scheduler is 'exact' or 'stock', got {self.scheduler!r}")
        if self.scheduler == "stock":
            self.stock = self._fit()

    @property
    def routed(self) -> bool:
        """Whether the networks are more than the pipeline has places for."""
        return len(self.stages) > len(self.layout.slots)

    @property
    def own_code(self) -> bool:
        """Whether the export ships code."""
        return self.routed or self.stock is None

    def size(self, types: Callable[[str, Tensor], torch.dtype]) -> int:
        """Returns the bytes of the networks' weights."""
        if self.routed:
            written = [self._routed_weights()]
        else:
            written = [stage.weights() for stage in self.stages]
        return sum(
            value.numel() * types(name, value).itemsize
            for weights in written
            for name, value in weights.items()
        )

    def _fit(self) -> StockScheduler:
        if self.jumps is not None:
            raise ValueError(
                "this student renoises between steps, which no stock scheduler does as it does; "
                "export with --scheduler exact"
            )
        if self.layout.takes_sigmas:
            return StockScheduler({"shift": 1.0}, tuple(self.grid), 0.0, 0.0)
        stock = fit_stock(self.grid, proposed=self.layout.proposes)
        cuts = midpoints(self.stages)
        for own, walked in zip(self.grid, stock.grid, strict=True):
            if any((own < cut) != (walked < cut) for cut in cuts):
                raise ValueError(
                    f"the nearest stock scheduler walks {_short(stock.grid)} in place of "
                    f"{_short(self.grid)}, and asks another network than the student at t = "
                    f"{own:.4g}; export with --scheduler exact"
                )
        return stock

    def check_measurable(self, samples: int) -> None:
        """Checks that a stock scheduler has an error, and that it can be measured.

        Raises:
            ValueError: If not.
        """
        if self.stock is None:
            raise ValueError("only a stock scheduler's error is measured; leave --measure out")
        if self.layout.takes_sigmas:
            raise ValueError(
                f"a call of a {self.layout.pipeline} is told the student's own times, so its "
                "stock scheduler has no error to measure; leave --measure out"
            )
        if samples < 1:
            raise ValueError(f"a measurement takes at least 1 sample, got {samples}")
        if all(prompt is None for prompt in self.student.prompts):
            raise ValueError(
                "there are no prompts to measure on; load the student with a teacher that has some"
            )

    def measure(self, samples: int) -> float:
        """Returns the stock scheduler's error, relative to the samples' deviation."""
        assert self.stock is not None
        prompts = list(islice(cycle(self.student.prompts), samples))
        condition = self.student.encode(prompts)
        noise = initial_noise(self.student, samples, torch.Generator().manual_seed(0))
        exact, walked = (self._walk(noise, condition, t) for t in (self.grid, self.stock.grid))
        return float((walked - exact).square().mean().sqrt() / exact.std())

    @torch.no_grad()
    def _walk(self, x: Tensor, condition: Any, times: Sequence[float]) -> Tensor:
        cuts = midpoints(self.stages)
        for t, s in zip(times, [*times[1:], 0.0], strict=True):
            stage = self.stages[sum(t < cut for cut in cuts)]
            x = ode_step((stage.adapter or stage.network)(x, t, condition), s)
        return x

    def write(
        self,
        draft: Path,
        types: Callable[[str, Tensor], torch.dtype],
        shard: int,
        tell: Callable[[int], object],
    ) -> dict[str, Any]:
        """Writes networks and scheduler; returns their entries of ``model_index.json``."""
        entries: dict[str, Any] = {"scheduler": self._write_scheduler(draft / "scheduler")}
        write = partial(write_weights, types=types, shard=shard, tell=tell)
        slots = self.layout.slots
        if self.routed:
            entries[slots[0]] = self._write_routed(draft / slots[0], write)
            entries.update(dict.fromkeys(slots[1:], [None, None]))
        else:
            for slot, stage in zip(slots, self.stages, strict=False):
                stage.network.backbone.save_config(draft / slot)
                write(draft / slot, stage.weights(), changes=stage.changes())
                entries[slot] = ["diffusers", self.layout.network]
            entries.update(dict.fromkeys(slots[len(self.stages) :], [None, None]))
        if len(slots) > 1:
            cuts = [] if self.routed else midpoints(self.stages)
            entries["boundary_ratio"] = cuts[0] if cuts else None
        return entries

    def _write_scheduler(self, folder: Path) -> list[str]:
        folder.mkdir()
        if self.stock is not None:
            self.stock.make().save_pretrained(folder)
            return ["diffusers", STOCK]
        content = {"grid": list(self.grid), "jumps": self.jumps, "num_train_timesteps": 1000}
        _write_config(folder / "scheduler_config.json", "PhasedScheduler", content)
        return _ship("phased_scheduler", "PhasedScheduler", folder)

    def _write_routed(self, folder: Path, write: Callable[..., None]) -> list[str]:
        folder.mkdir()
        transformer = self.stages[0].network.backbone
        known = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
        networks = bases(self.stages)
        adapters = [
            {
                path: [factors.lora_A.weight.shape[0], factors.scale]
                for path, factors in stage.factors().items()
            }
            for stage in self.stages
        ]
        content = {
            "network_class": self.layout.network,
            "network_config": known,
            "boundaries": midpoints(self.stages),
            "networks_of": [_place(networks, stage) for stage in self.stages],
            "time_scale": self.layout.time_scale,
            "time_offset": self.layout.time_offset,
            "time_argument": self.layout.time_argument,
            "adapters": adapters if any(adapters) else None,
        }
        _write_config(folder / "config.json", "PhasedTransformer", content)
        write(folder, self._routed_weights())
        return _ship("phased_transformer", "PhasedTransformer", folder)

    def _routed_weights(self) -> dict[str, Tensor]:
        networks = bases(self.stages)
        weights = {
            f"networks.{i}.{name}": value
            for i, network in enumerate(networks)
            for name, value in network.backbone.state_dict().items()
        }
        for phase, stage in enumerate(self.stages):
            at = f"networks.{_place(networks, stage)}"
            for path, factors in stage.factors().items():
                weights[f"{at}.{path}.lora_A.{phase}"] = factors.lora_A.weight
                weights[f"{at}.{path}.lora_B.{phase}"] = factors.lora_B.weight
        return weights


def _place(networks: Sequence[Any], stage: Stage) -> int:
    return [id(network) for network in networks].index(id(stage.network))


def _write_config(path: Path, name: str, content: Mapping[str, Any]) -> None:
    import diffusers

    whole = {"_class_name": name, "_diffusers_version": diffusers.__version__, **content}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def _ship(module: str, name: str, folder: Path) -> list[str]:
    source = resources.files("pdmd.export.modules").joinpath(f"{module}.py")
    with resources.as_file(source) as path:
        shutil.copyfile(path, folder / f"{module}.py")
    return [module, name]


def _type_of(dtype: torch.dtype | None, stage: Stage, name: str, value: Tensor) -> torch.dtype:
    if dtype is None or not value.is_floating_point():
        return value.dtype
    kept = {*(stage.network.backbone._keep_in_fp32_modules or ()), "lora_A", "lora_B"}
    return torch.float32 if kept & set(name.split(".")) else dtype


@contextmanager
def _bar(size: int, progress: bool) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(
        total=size, unit="B", unit_scale=True, desc="exporting", disable=not progress
    ) as bar:
        yield bar.update


def _short(grid: Sequence[float]) -> str:
    return "(" + ", ".join(f"{t:.4g}" for t in grid) + ")"
