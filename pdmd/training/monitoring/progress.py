"""Progress: a bar of a phase's updates with its losses, in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdmd.distillation.phases import Phase
from pdmd.training.monitoring.recorder import Recorder, bar_title, shown_losses

__all__ = ["ProgressRecorder"]


class ProgressRecorder(Recorder):
    """Shows a progress bar of each phase, and writes no files."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_phase_start(self, phase: Phase, phases: int, updates: int, done: int) -> None:
        """Opens the phase's progress bar."""
        from tqdm.auto import tqdm

        self.close()
        self.bar = tqdm(total=updates, initial=done, desc=bar_title(phase, phases), unit="update")

    def on_update(self, update: int) -> None:
        """Advances the progress bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_scalars(self, phase: Phase, update: int, values: Mapping[str, float]) -> None:
        """Shows the losses."""
        if self.bar is not None:
            self.bar.set_postfix(shown_losses(values), refresh=False)

    def close(self) -> None:
        """Closes the progress bar."""
        bar, self.bar = self.bar, None
        if bar is not None:
            bar.close()
