"""Recorders: progress bars, TensorBoard scalars, and the files of the report."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdmd.arguments import checked
from pdmd.distillation.phases import Phase
from pdmd.documents import parse_json, read_json, read_text
from pdmd.files import local_path, write_file
from pdmd.training.monitoring.bars import BETWEEN_LINES, in_terminal
from pdmd.training.monitoring.detectors import Finding, HealthRecord
from pdmd.training.monitoring.health_records import HealthFile
from pdmd.training.monitoring.outputs import Outputs, say
from pdmd.training.monitoring.trackers import TensorBoardTracker, TrackedRun, Tracker

__all__ = [
    "NullRecorder",
    "Recorder",
    "RunRecorder",
    "bar_title",
    "notify",
    "read_history",
    "shown_losses",
]

HISTORY = 1 << 30
"""Bytes of a history, at most."""


def read_history(path: Path) -> list[dict[str, Any]]:
    """Reads ``history.jsonl``, up to a line cut off by a kill.

    Raises:
        ValueError: If it is very large or not text.
    """
    rows: list[dict[str, Any]] = []
    for line in read_text(path, size=HISTORY).splitlines():
        try:
            row = parse_json(line, str(path))
            numbers = [row["phase"], row["update"], row["seconds"]]
            if not all(isinstance(n, int | float) for n in numbers) or not row["scalars"].items():
                break
        except (ValueError, TypeError, LookupError, AttributeError):
            break
        rows.append(row)
    return rows


def notify(folder: Path, notice: str) -> None:
    """Prints a notice, and adds it to the notices of a run, which its report lists.

    Args:
        folder: The run folder.
        notice: The line; nothing happens if it is empty.
    """
    if notice:
        say(f"pdmd: warning: {notice}")
        _add_notice(folder, notice)


def _add_notice(folder: Path, notice: str) -> None:
    path, notices = folder / "notices.json", []
    with contextlib.suppress(ValueError, OSError):  # none yet, or damaged
        found = read_json(path)
        notices = found if isinstance(found, list) else []
    if notice not in notices:
        write_file(path, json.dumps([*notices, notice], indent=2) + "\n")


def bar_title(phase: Phase, phases: int) -> str:
    """Returns what a phase's progress bar is named."""
    return f"phase {phase.number}/{phases}  t {phase.t_start:.3g} to {phase.t_end:.3g}"


def shown_losses(values: Mapping[str, float]) -> dict[str, str]:
    """Returns the scalars that a progress bar shows, as texts."""
    return {
        name.split("/")[0]: f"{value:.3g}"
        for name, value in values.items()
        if not name.endswith("gradient_norm") and not name.startswith("evaluations/")
    }


def shown_speed(values: Mapping[str, float]) -> list[str]:
    """Returns throughput and memory as texts, as a line shows them."""
    shown = {
        "throughput/samples_per_second": "{:.3g} samples/s",
        "throughput/tflops_per_device": "{:.3g} TFLOP/s",
        "throughput/utilisation": "{:.1%} of the peak",
        "memory/peak_gib": "{:.1f} GiB",
    }
    return [text.format(values[name]) for name, text in shown.items() if name in values]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a JSON value to a file, whose folder may have been removed.

    Args:
        path: The file.
        row: The value.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


class Recorder:
    """Base class of recorders: records nothing, and warns of skipped updates.

    Attributes:
        interval: Updates between calls of :meth:`on_scalars`.
        calibrations: Whether scores are calibrated at the end of each phase, by 20 evaluations of
            a batch. They draw from the training's generator: later phases differ without them.
    """

    interval = 10
    calibrations = True

    def on_phase_start(self, phase: Phase, phases: int, updates: int, done: int) -> None:
        """Called when a phase of ``updates`` updates starts, or resumes after ``done``."""

    def on_scalars(self, phase: Phase, update: int, values: Mapping[str, float]) -> None:
        """Called with the scalars of an update, every ``interval`` updates."""

    def on_update(self, update: int) -> None:
        """Called after every update."""

    def on_skipped_step(self, warning: str) -> None:
        """Called when an update was skipped; warns with the cause."""
        warnings.warn(warning, stacklevel=3)

    def on_warning(self, warning: str) -> None:
        """Called with what went wrong without ending the run; warns of it."""
        warnings.warn(warning, stacklevel=3)

    def on_health(self, record: HealthRecord, found: Sequence[Finding]) -> None:
        """Called with a measurement of the run's health; warns of what was found."""
        for finding in found:
            self.on_warning(finding.line())

    def on_validation(
        self, phase: Phase, update: int, values: Mapping[str, float], picture: Path
    ) -> None:
        """Called with the figures of a validation, and the grid that was drawn."""

    def on_throughput(self, phase: Phase, update: int, values: Mapping[str, float]) -> None:
        """Called with throughput, peak memory and time by role."""

    def health_records(self) -> Sequence[HealthRecord]:
        """Returns the measurements before a resumed update."""
        return ()

    def on_notice(self, notice: str) -> None:
        """Called with what a reader of the results should know of the inputs; warns of it."""
        self.on_warning(notice)

    def on_calibration(
        self, phase: Phase, times: Sequence[float], fake: Sequence[float], real: Sequence[float]
    ) -> None:
        """Called with the calibration slopes at the end of a phase."""

    def on_resume(self, phase: int, update: int) -> None:
        """Called when the run resumes from a checkpoint; later records are dropped."""

    def close(self) -> None:
        """Called when the run ends or stops."""


class NullRecorder(Recorder):
    """Records nothing, and does not warn: for all ranks but the main one."""

    def on_skipped_step(self, warning: str) -> None:
        return

    def on_warning(self, warning: str) -> None:
        return


@checked
class RunRecorder(Recorder):
    """Records to a run folder and the terminal.

    An output that fails is reported once, and the training goes on
    (:mod:`pdmd.training.monitoring.outputs`).

    Args:
        folder: The run folder; ``history.jsonl``, ``health.jsonl``, ``calibration.json`` and
            ``tensorboard/`` are written into it.
        progress: Whether to show progress: bars in a terminal, else lines.
        trackers: Where scalars and grids are shown; TensorBoard by default.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        progress: bool = True,
        trackers: Sequence[Tracker] | None = None,
    ) -> None:
        self.folder = local_path(folder, "a run")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress = progress
        self.outputs = Outputs()
        if trackers is None:
            trackers = [TensorBoardTracker(TrackedRun(folder=self.folder))]
        self.trackers = tuple(trackers)
        self.lines = progress and not in_terminal()
        self.throughput: Mapping[str, float] = {}
        self.title, self.said = "", -math.inf
        self.bar: Any = None
        self.updates = self.before = 0
        self.started = time.perf_counter()
        self.history = self.folder / "history.jsonl"
        self.curves: list[dict[str, Any]] = []
        self.health = HealthFile(self.folder / "health.jsonl")
        self.earlier: list[HealthRecord] = []
        self.now = (1, 0)  # phase and update
        self.outputs.attempt("history.jsonl", self.history.touch)

    def _track(self, act: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            self.outputs.attempt(tracker.name, functools.partial(act, tracker))

    def on_resume(self, phase: int, update: int) -> None:
        """Drops the records after the checkpoint."""
        rows = read_history(self.history) if self.history.exists() else []
        kept = [r for r in rows if (r["phase"], r["update"]) <= (phase, update)]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self.outputs.attempt("history.jsonl", lambda: write_file(self.history, text))
        self.outputs.attempt(
            "health.jsonl", lambda: self.earlier.extend(self.health.resume(phase, update))
        )
        if kept:
            self.started -= kept[-1]["seconds"]
        ends = {row["phase"]: row["update"] for row in kept if row["phase"] < phase}
        self.before = sum(ends.values())
        step = self.before + update + 1
        self._track(lambda tracker: tracker.resume(step))
        path = self.folder / "calibration.json"
        if path.exists():
            with contextlib.suppress(ValueError, TypeError, LookupError):  # of another version
                self.curves = [c for c in read_json(path) if c["phase"] < phase]

    def on_phase_start(self, phase: Phase, phases: int, updates: int, done: int) -> None:
        """Opens the phase's progress bar."""
        self.close_bar()
        self.now, self.title = (phase.number, done), bar_title(phase, phases)
        self.before += self.updates  # updates of earlier phases
        self.updates = updates

        def open_bar() -> None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=updates,
                initial=done,
                desc=self.title,
                disable=not self.progress or self.lines,
                dynamic_ncols=True,
                unit="update",
            )

        self.outputs.attempt("the progress bar", open_bar)

    def on_update(self, update: int) -> None:
        """Advances the progress bar."""
        self.now = (self.now[0], update)
        if self.bar is not None:
            self.outputs.attempt("the progress bar", lambda: self.bar.update(1))

    def on_scalars(self, phase: Phase, update: int, values: Mapping[str, float]) -> None:
        """Appends to the history and the trackers, and shows the losses."""
        step = self.before + update
        row = {
            "phase": phase.index + 1,
            "update": update,
            "seconds": round(time.perf_counter() - self.started, 3),
            "scalars": dict(values),
        }
        self.outputs.attempt("history.jsonl", lambda: self._append(row))
        self._track(lambda tracker: tracker.log(values, step))
        postfix = shown_losses(values)
        if self.lines:
            self._say_line(update, postfix)
        if self.bar is not None:
            self.outputs.attempt(
                "the progress bar", lambda: self.bar.set_postfix(postfix, refresh=False)
            )

    def _say_line(self, update: int, losses: Mapping[str, str]) -> None:
        """Prints where the run is, a few times a minute and at the end of a phase."""
        now = time.monotonic()
        if now - self.said < BETWEEN_LINES and update < self.updates:
            return
        self.said = now
        shown = [f"{name} {value}" for name, value in losses.items()] + shown_speed(
            self.throughput
        )
        say(f"{self.title}  update {update}/{self.updates}  " + "  ".join(shown))

    def _append(self, row: Mapping[str, Any]) -> None:
        append_row(self.history, row)

    def on_skipped_step(self, warning: str) -> None:
        """Prints the cause above the progress bar, and keeps it with the health records."""
        self.on_warning(warning)
        self.outputs.attempt("health.jsonl", lambda: self.health.add_warning(*self.now, warning))

    def on_health(self, record: HealthRecord, found: Sequence[Finding]) -> None:
        """Keeps the measurement in ``health.jsonl`` and the trackers; prints what was found."""
        super().on_health(record, found)
        self.outputs.attempt("health.jsonl", lambda: self.health.add(record, found))
        step = self.before + record.update
        self._track(lambda tracker: tracker.log(record.values, step))

    def on_validation(
        self, phase: Phase, update: int, values: Mapping[str, float], picture: Path
    ) -> None:
        """Shows figures and grid in the trackers."""
        step = self.before + update
        self._track(lambda tracker: tracker.log(values, step))
        if picture.is_file():
            name = next(iter(values), "validation").partition("/")[0]  # of the size
            self._track(lambda tracker: tracker.log_picture(name, picture, step))

    def on_throughput(self, phase: Phase, update: int, values: Mapping[str, float]) -> None:
        """Shows it in the trackers, and in lines where there are no bars."""
        step = self.before + update
        self.throughput = dict(values)
        row = {"phase": phase.number, "update": update, "values": self.throughput}
        path = self.folder / "throughput.jsonl"
        self.outputs.attempt("throughput.jsonl", lambda: append_row(path, row))
        self._track(lambda tracker: tracker.log(values, step))

    def health_records(self) -> Sequence[HealthRecord]:
        return self.earlier

    def on_warning(self, warning: str) -> None:
        """Prints the warning above the progress bar."""
        text = f"pdmd: warning: {warning}"
        if self.bar is None:
            say(text)
        else:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed
                self.bar.write(text, file=sys.stderr)

    def on_notice(self, notice: str) -> None:
        """Prints the notice, and adds it to ``notices.json``, which the report lists."""
        self.on_warning(notice)
        self.outputs.attempt("notices.json", lambda: _add_notice(self.folder, notice))

    def on_calibration(
        self, phase: Phase, times: Sequence[float], fake: Sequence[float], real: Sequence[float]
    ) -> None:
        """Adds the phase's curve to ``calibration.json``."""
        self.curves.append(
            {"phase": phase.index + 1, "t": list(times), "fake": list(fake), "real": list(real)}
        )
        text = json.dumps(self.curves, indent=2) + "\n"
        self.outputs.attempt(
            "calibration.json", lambda: write_file(self.folder / "calibration.json", text)
        )

    def close_bar(self) -> None:
        """Closes the progress bar."""
        bar, self.bar = self.bar, None
        if bar is not None:
            self.outputs.attempt("the progress bar", bar.close)

    def close(self) -> None:
        """Closes the progress bar and the trackers."""
        self.close_bar()
        self._track(lambda tracker: tracker.close())
