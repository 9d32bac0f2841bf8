"""Export of a student as a diffusers pipeline of its teacher's class.

One network becomes the pipeline's transformer. Two networks of a family with two transformers
become these, with their boundary. Any other number goes into one ``PhasedTransformer`` that routes
by time, whose code is exported beside its weights. The scheduler is a ``PhasedScheduler`` with the
student's exact timesteps, or a stock one, whose error the model card states.
"""

from __future__ import annotations

import json
import re
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

from pdmd.arguments import checked
from pdmd.diffusion.sampling import initial_noise
from pdmd.diffusion.schedules import RectifiedFlow
from pdmd.diffusion.solvers import ode_step
from pdmd.distillation.students import Student
from pdmd.documents import read_json
from pdmd.export.atomic_export import atomic_folder, check_destination
from pdmd.export.bases import check_networks, open_base_pipeline
from pdmd.export.card import Card
from pdmd.export.network_schedule import (
    NetworkInterval,
    base_networks,
    export_type,
    midpoints,
    network_intervals,
    pipeline_layout,
    renoise_times,
    weight_type,
)
from pdmd.export.schedulers import STOCK, StockScheduler, fit_stock
from pdmd.export.weights import parse_size, write_weights
from pdmd.extras import require
from pdmd.teachers.families.layouts import PipelineLayout

__all__ = ["export_diffusers"]


@checked
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
    """Writes a student as a pipeline folder that diffusers loads.

    Args:
        student: A student of a family with a pipeline layout, with its source.
        folder: The destination, written atomically.
        scheduler: ``"exact"`` exports a scheduler with the student's timesteps, which needs
            ``trust_remote_code=True``; ``"stock"`` uses one of diffusers.
        dtype: float32, bfloat16 or float16, the type of the networks' weights; the student's by
            default. Weights that the family keeps in float32 stay in float32.
        base: The pipeline whose other components are copied; by default the one that the
            student's teacher was loaded from.
        max_shard_size: The maximum size of a weights file, such as ``"10GB"``.
        measure: Samples on which to measure a stock scheduler's error with the student's
            networks, for the model card; 0 measures nothing.
        overwrite: Whether to replace an earlier export.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: If the student has no pipeline in diffusers, its base pipeline is missing or of
            another class, the folder cannot be replaced, the stock scheduler would evaluate a
            network outside its interval, or a weight is beyond the range of float16.
    """
    folder = Path(folder)
    check_destination(folder, overwrite=overwrite)
    shard, kept = parse_size(max_shard_size), export_type(dtype)
    intervals = network_intervals(student)
    layout = pipeline_layout(intervals)
    parts = _Components(student, intervals, layout, scheduler)
    if measure:
        parts.check_measurable(measure)
    chosen = open_base_pipeline(student, layout, base)
    if not _own_network(student):
        check_networks(intervals, layout, chosen)
    chosen.fetch(layout)
    types = partial(_dtype_of, kept, intervals[0])
    card = Card(
        student=student,
        intervals=intervals,
        layout=layout,
        base=chosen,
        stock=parts.stock,
        ships_code=parts.ships_code,
        renoises=parts.renoise_from is not None,
        measured=parts.measure(measure) if measure else None,
        dtype=str(kept or weight_type(intervals[0].network)),
    )
    size = sum(path.stat().st_size for path in chosen.files(layout)) + parts.size(types)
    with atomic_folder(folder, overwrite=overwrite) as draft, _bar(size, progress) as tell:
        chosen.copy(layout, draft, tell)
        _change(layout, draft)
        index = {**chosen.index, **parts.write(draft, types, shard, tell)}
        (draft / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        (draft / "README.md").write_text(card.text())
    return folder


def _change(layout: PipelineLayout, draft: Path) -> None:
    """Replaces values in the configurations of copied parts."""
    for path, values in layout.changes.items():
        content = read_json(draft / path)
        (draft / path).write_text(json.dumps({**content, **values}, indent=2) + "\n")


def _own_network(student: Student) -> bool:
    """Returns whether experts have another network than their teacher's, of its class.

    Raises:
        ValueError: If it is of another class.
    """
    source: Mapping[str, Any] = student.source or {}
    own = source.get("student")
    if own is not None and own["teacher"] != source["teacher"]:
        raise ValueError(
            f"the experts have the network of {own['teacher']!r} and take the texts of "
            f"{source['teacher']!r}, and diffusers has no pipeline of both; sample this student "
            "by pdmd, or distill into a network of the teacher's class"
        )
    return own is not None


@dataclass
class _Components:
    """The components that an export writes itself: networks and scheduler."""

    student: Student
    intervals: Sequence[NetworkInterval]
    layout: PipelineLayout
    scheduler: str

    def __post_init__(self) -> None:
        self.grid = self.student.plan.timesteps[:-1]
        self.renoise_from = renoise_times(self.student)
        self.stock: StockScheduler | None = None
        if self.scheduler not in ("exact", "stock"):
            raise ValueError(f"expected the scheduler 'exact' or 'stock', got {self.scheduler!r}")
        if self.scheduler == "stock":
            self.stock = self._fit()

    @property
    def routed(self) -> bool:
        """Whether there are more networks than the pipeline has transformers."""
        return len(self.intervals) > len(self.layout.slots)

    @property
    def ships_code(self) -> bool:
        """Whether the export contains code."""
        return self.routed or self.stock is None

    def size(self, types: Callable[[str, Tensor], torch.dtype]) -> int:
        """Returns the bytes of the networks' weights."""
        if self.routed:
            written = [self._routed_weights()]
        else:
            written = [interval.weights() for interval in self.intervals]
        return sum(
            value.numel() * types(name, value).itemsize
            for weights in written
            for name, value in weights.items()
        )

    def _fit(self) -> StockScheduler:
        if self.renoise_from is not None:
            raise ValueError(
                "this student renoises between steps, which no stock scheduler supports; export "
                "with --scheduler exact"
            )
        if not isinstance(self.student.schedule, RectifiedFlow):
            raise ValueError(
                "the stock scheduler is one of rectified flow, and this student is on "
                f"{self.student.schedule!r:.60}; export with --scheduler exact"
            )
        if self.layout.takes_sigmas:
            return StockScheduler({"shift": 1.0}, tuple(self.grid), 0.0, 0.0)
        stock = fit_stock(self.grid, proposed=self.layout.proposes)
        cuts = midpoints(self.intervals)
        for own, fitted in zip(self.grid, stock.grid, strict=True):
            if any((own < cut) != (fitted < cut) for cut in cuts):
                raise ValueError(
                    f"the nearest stock scheduler has timesteps {_short(stock.grid)} instead of "
                    f"{_short(self.grid)} and selects another network than the student at t = "
                    f"{own:.4g}; export with --scheduler exact"
                )
        return stock

    def check_measurable(self, samples: int) -> None:
        """Checks that a stock scheduler's error can be measured.

        Raises:
            ValueError: If the scheduler is exact, or there are no samples or prompts.
        """
        if self.stock is None:
            raise ValueError("the exact scheduler has no error to measure; remove --measure")
        if self.layout.takes_sigmas:
            raise ValueError(
                f"a {self.layout.pipeline} is called with the student's timesteps, so its stock "
                "scheduler has no error to measure; remove --measure"
            )
        if samples < 1:
            raise ValueError(f"expected --measure of at least 1 sample, got {samples}")
        if all(prompt is None for prompt in self.student.prompts):
            raise ValueError(
                "the student has no prompts to measure on; load it with a teacher that has prompts"
            )

    def measure(self, samples: int) -> float:
        """Returns the stock scheduler's error, relative to the samples' standard deviation."""
        assert self.stock is not None
        prompts = list(islice(cycle(self.student.prompts), samples))
        condition = self.student.encode(prompts)
        noise = initial_noise(self.student, samples, torch.Generator().manual_seed(0))
        exact, stock = (self._sample(noise, condition, t) for t in (self.grid, self.stock.grid))
        return float((stock - exact).square().mean().sqrt() / exact.std())

    @torch.no_grad()
    def _sample(self, x: Tensor, condition: Any, times: Sequence[float]) -> Tensor:
        cuts = midpoints(self.intervals)
        for t, s in zip(times, [*times[1:], 0.0], strict=True):
            interval = self.intervals[sum(t < cut for cut in cuts)]
            x = ode_step((interval.adapter or interval.network)(x, t, condition), s)
        return x

    def write(
        self,
        draft: Path,
        types: Callable[[str, Tensor], torch.dtype],
        shard: int,
        tell: Callable[[int], object],
    ) -> dict[str, Any]:
        """Writes networks and scheduler; returns their fields of ``model_index.json``."""
        fields: dict[str, Any] = {"scheduler": self._write_scheduler(draft / "scheduler")}
        write = partial(write_weights, types=types, shard=shard, tell=tell)
        slots = self.layout.slots
        if self.routed:
            fields[slots[0]] = self._write_routed(draft / slots[0], write)
            fields.update(dict.fromkeys(slots[1:], [None, None]))
        else:
            for slot, interval in zip(slots, self.intervals, strict=False):
                interval.network.backbone.save_config(draft / slot)
                write(
                    draft / slot,
                    interval.weights(),
                    changes=interval.changes(),
                    values=interval.values(),
                )
                fields[slot] = ["diffusers", self.layout.network]
            fields.update(dict.fromkeys(slots[len(self.intervals) :], [None, None]))
        if len(slots) > 1:
            cuts = [] if self.routed else midpoints(self.intervals)
            fields["boundary_ratio"] = cuts[0] if cuts else None
        return fields

    def _write_scheduler(self, folder: Path) -> list[str]:
        folder.mkdir()
        if self.stock is not None:
            self.stock.build().save_pretrained(folder)
            return ["diffusers", STOCK]
        content = {
            "grid": list(self.grid),
            "renoise_from": self.renoise_from,
            "num_train_timesteps": 1000,
            "unguided": dict(self.layout.unguided),
            **self._coefficients(),
        }
        _write_config(folder / "scheduler_config.json", "PhasedScheduler", content)
        return _copy_module("phased_scheduler", "PhasedScheduler", folder)

    def _coefficients(self) -> dict[str, Any]:
        """Returns what a scheduler states of a schedule that is not rectified flow."""
        schedule = self.student.schedule
        if isinstance(schedule, RectifiedFlow):
            return {}
        at = [[float(c) for c in schedule(t)] for t in (*self.grid, 0.0)]
        return {"time_offset": self.layout.time_offset, "coefficients": at}

    def _write_routed(self, folder: Path, write: Callable[..., None]) -> list[str]:
        folder.mkdir()
        transformer = self.intervals[0].network.backbone
        known = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
        networks = base_networks(self.intervals)
        adapters = [
            {
                path: [factors.lora_A.weight.shape[0], factors.scale]
                for path, factors in interval.factors().items()
            }
            for interval in self.intervals
        ]
        content = {
            "network_class": self.layout.network,
            "network_config": known,
            "boundaries": midpoints(self.intervals),
            "networks_of": [_network_index(networks, interval) for interval in self.intervals],
            "time_scale": self.layout.time_scale,
            "time_offset": self.layout.time_offset,
            "time_argument": self.layout.time_argument,
            "adapters": adapters if any(adapters) else None,
            "unguided": dict(self.layout.unguided) if self.stock is not None else None,
        }
        _write_config(folder / "config.json", "PhasedTransformer", content)
        values = {
            f"networks.{_network_index(networks, interval)}.{name}": read
            for interval in self.intervals
            for name, read in interval.values().items()
        }
        write(folder, self._routed_weights(), values=values)
        return _copy_module("phased_transformer", "PhasedTransformer", folder)

    def _routed_weights(self) -> dict[str, Tensor]:
        networks = base_networks(self.intervals)
        weights = {
            f"networks.{i}.{name}": value
            for i, network in enumerate(networks)
            for name, value in network.backbone.state_dict().items()
        }
        for phase, interval in enumerate(self.intervals):
            at = f"networks.{_network_index(networks, interval)}"
            for path, factors in interval.factors().items():
                weights[f"{at}.{path}.phase_{phase + 1}_down"] = factors.lora_A.weight
                weights[f"{at}.{path}.phase_{phase + 1}_up"] = factors.lora_B.weight
        return weights


def _network_index(networks: Sequence[Any], interval: NetworkInterval) -> int:
    return [id(network) for network in networks].index(id(interval.network))


def _write_config(path: Path, name: str, content: Mapping[str, Any]) -> None:
    require("diffusers", "diffusers")
    import diffusers

    whole = {"_class_name": name, "_diffusers_version": diffusers.__version__, **content}
    path.write_text(json.dumps(whole, indent=2) + "\n")


def _copy_module(module: str, name: str, folder: Path) -> list[str]:
    source = resources.files("pdmd.export.modules").joinpath(f"{module}.py")
    with resources.as_file(source) as path:
        shutil.copyfile(path, folder / f"{module}.py")
    return [module, name]


def _dtype_of(
    dtype: torch.dtype | None, interval: NetworkInterval, name: str, value: Tensor
) -> torch.dtype:
    if dtype is None or not value.is_floating_point():
        return value.dtype
    kept = set(interval.network.backbone._keep_in_fp32_modules or ())
    factor = re.search(r"\.phase_\d+_(down|up)$", name)
    return torch.float32 if factor or kept & set(name.split(".")) else dtype


@contextmanager
def _bar(size: int, progress: bool) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(total=size, unit="B", unit_scale=True, desc="export", disable=not progress) as bar:
        yield bar.update


def _short(grid: Sequence[float]) -> str:
    return "(" + ", ".join(f"{t:.4g}" for t in grid) + ")"
