"""Trackers: where the scalars and grids of a run are shown, by name in its configuration.

Other trackers are subclasses of :class:`Tracker`, registered in :data:`trackers` by a module of
``teacher.plugins``. One that fails is reported once and ends no training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdmd.extras import require
from pdmd.registry import Registry
from pdmd.training.monitoring.event_files import EventFile

__all__ = [
    "TensorBoardTracker",
    "TrackedRun",
    "Tracker",
    "TrackioTracker",
    "WandbTracker",
    "trackers",
]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run, as trackers show it.

    Attributes:
        folder: The run folder.
        project: The project in which runs are listed.
        config: The resolved configuration.
    """

    folder: Path
    project: str = "pdmd"
    config: Mapping[str, Any] = field(default_factory=dict)


class Tracker(ABC):
    """Shows the scalars of a run.

    Args:
        run: The run.
    """

    name = "the tracker"

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Shows scalars by name at a step of the run, counted over all phases."""

    @abstractmethod
    def close(self) -> None:
        """Called when the run ends or stops."""

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Shows a PNG file; by default it is not shown."""
        return

    def resume(self, step: int) -> None:
        """Called before the first step of a resumed run; those from it on are logged again."""
        return


class TensorBoardTracker(Tracker):
    """Event files of TensorBoard in ``tensorboard/``, of which a removed one is replaced."""

    name = "tensorboard/"

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self.writer: EventFile | None = None
        self.purge_step: int | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        try:
            writer = self._open()
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        except Exception:
            self.close()  # the next scalars open another file
            raise

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._open().add_picture(name, path, step)

    def resume(self, step: int) -> None:
        self.close()
        self.purge_step = step

    def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def _open(self) -> EventFile:
        if self.writer is not None and not self.writer.path.exists():
            self.close()  # its folder was removed
        if self.writer is None:
            folder = self.run.folder / "tensorboard"
            self.writer = EventFile(folder, purge_step=self.purge_step)
        return self.writer


class WandbTracker(Tracker):
    """Weights & Biases, which reads ``WANDB_*`` from the environment.

    A resumed run continues the run of the same folder: its id is kept in ``wandb_id``. Steps that
    were logged before stay there.

    Raises:
        MissingExtra: If the package is not installed.
    """

    name = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        require("wandb", "wandb", alternative="remove it from tracking.trackers")
        self._run: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._open().log(dict(values), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._open().log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _open(self) -> Any:
        if self._run is None:
            import wandb

            known = self.run.folder / "wandb_id"
            self.run.folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.run.project,
                name=self.run.folder.name,
                dir=str(self.run.folder),
                config=dict(self.run.config),
                id=known.read_text().strip() if known.is_file() else None,
                resume="allow",
            )
            known.write_text(f"{self._run.id}\n")
        return self._run


class TrackioTracker(Tracker):
    """Trackio of Hugging Face, which keeps runs locally, in ``TRACKIO_DIR``, unless told a space.

    Raises:
        MissingExtra: If the package is not installed.
    """

    name = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        require("trackio", "trackio", alternative="remove it from tracking.trackers")
        self._run: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._open().log(dict(values), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._open().log({name: trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _open(self) -> Any:
        if self._run is None:
            import trackio  # pyright: ignore[reportMissingImports]

            self._run = trackio.init(
                project=self.run.project,
                name=self.run.folder.name,
                config=dict(self.run.config),
                resume="allow",
            )
        return self._run


trackers: Registry[Any] = Registry(
    "tracker",
    {
        "tensorboard": "pdmd.training.monitoring.trackers:TensorBoardTracker",
        "wandb": "pdmd.training.monitoring.trackers:WandbTracker",
        "trackio": "pdmd.training.monitoring.trackers:TrackioTracker",
    },
)
"""Trackers by name, each called with the :class:`TrackedRun`."""
