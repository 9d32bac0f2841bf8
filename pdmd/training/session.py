"""Sessions: the devices, recorder and checkpoints of a distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from pdmd.arguments import checked
from pdmd.diffusion.modes import evaluation_mode
from pdmd.distributed.runtime import OneProcess, Runtime
from pdmd.training.checkpoints.checkpointer import NoCheckpoints
from pdmd.training.monitoring.accounting import Account
from pdmd.training.monitoring.health import Health, NonFiniteError
from pdmd.training.monitoring.monitors import Monitor
from pdmd.training.monitoring.progress import ProgressRecorder
from pdmd.training.monitoring.recorder import Recorder

__all__ = ["Session"]


@checked
@dataclass(frozen=True, kw_only=True)
class Session:
    """The devices, recorder and checkpoints of a distillation.

    Attributes:
        runtime: The device and ranks; by default this process, on CUDA's device where there is one
            and on the CPU otherwise. Ranks call :func:`~pdmd.distillation.distill.distill`
            together, with the same arguments.
        recorder: Records scalars and events; by default nothing is recorded, and
            :func:`~pdmd.distillation.distill.distill` shows progress bars.
        checkpointer: Writes checkpoints, and stops the run on request.
        resume: Whether to resume from the newest checkpoint.
        account: Counts network evaluations, by role.
        max_consecutive_skips: Updates of a role that may be skipped in a row, for a loss or
            gradient that is not finite, before the run stops.
        monitors: Observe the training after every update, such as
            :class:`~pdmd.training.monitoring.probes.HealthProbe`; none by default.
    """

    runtime: Runtime = field(default_factory=OneProcess)
    recorder: Recorder = field(default_factory=Recorder)
    checkpointer: NoCheckpoints = field(default_factory=NoCheckpoints)
    resume: bool = False
    account: Account = field(default_factory=Account)
    max_consecutive_skips: int = 3
    monitors: Sequence[Monitor] = ()

    def __post_init__(self) -> None:
        self.health()

    def health(self) -> Health:
        """Builds the counter of skipped updates.

        Raises:
            ValueError: If ``max_consecutive_skips`` is negative.
        """
        return Health(self.max_consecutive_skips)

    def check_new(self) -> None:
        """Checks that a run that starts from the beginning has a place for its checkpoints.

        Raises:
            ValueError: If there are checkpoints of an earlier run, and ``resume`` is false.
        """
        if not self.resume and self.checkpointer.exists():
            raise ValueError(
                f"there are checkpoints of an earlier run: {self.checkpointer.last_good()}; pass "
                "Session(resume=True) to go on from it, remove them by checkpointer.clear(), or "
                "use another folder"
            )

    def with_progress(self) -> Session:
        """Returns a session that shows progress bars, on the main rank, if it has no recorder."""
        if type(self.recorder) is not Recorder or not self.runtime.main:
            return self
        return replace(self, recorder=ProgressRecorder())

    def report_checkpoints(self) -> None:
        """Notifies the recorder of checkpoints that could not be written."""
        for warning in self.checkpointer.drain():
            self.recorder.on_warning(warning)

    @contextmanager
    def freezing(self, teacher: nn.Module) -> Iterator[None]:
        """Freezes a teacher within a block, in evaluation mode; then restores it.

        Account and recorder are closed at the end.

        Args:
            teacher: The teacher.

        Raises:
            NonFiniteError: If the block raised one; names the checkpoint to go back to.
        """
        trainable = {id(p) for p in teacher.parameters() if p.requires_grad}
        teacher.requires_grad_(False)
        try:
            with evaluation_mode(teacher):
                yield
        except NonFiniteError as error:
            hint = self.checkpointer.last_good()
            raise (NonFiniteError(f"{error} ({hint})") if hint else error) from error
        finally:
            self.account.close()
            self.recorder.close()
            self.runtime.placement.release(teacher)
            for parameter in teacher.parameters():
                parameter.requires_grad_(id(parameter) in trainable)
