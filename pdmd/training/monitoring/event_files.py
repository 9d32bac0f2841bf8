"""Event files: TensorBoard's format, written by the thread that calls.

The writers of TensorBoard have a thread of their own, whose errors end in a traceback and in no
more events. Here an event is in its file when the call returns, and an error is the caller's.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from pdmd.extras import require

__all__ = ["EventFile"]


class EventFile:
    """Appends events to a new file.

    Args:
        folder: The folder, created if it does not exist.
        purge_step: The step from which on TensorBoard drops the events of earlier files.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, folder: str | Path, *, purge_step: int | None = None) -> None:
        require("report", "tensorboard")
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        now, host = time.time(), socket.gethostname()
        name = f"events.out.tfevents.{int(now):010d}.{host}.{time.monotonic_ns()}"
        self.path = folder / name
        self._file = self.path.open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            messages: Any = event_pb2  # generated, without types
            status = messages.SessionLog.SessionStatus.Value("START")
            start = messages.SessionLog(status=status)
            self._write(session_log=start, step=purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes a scalar.

        Args:
            name: Its name.
            value: Its value.
            step: The step of the run.

        Raises:
            OSError: If the file cannot be written.
        """
        from torch.utils.tensorboard.summary import scalar

        self._write(summary=scalar(name, value), step=step)

    def add_picture(self, name: str, path: Path, step: int) -> None:
        """Writes the picture of a PNG file.

        Args:
            name: Its name.
            path: The file.
            step: The step of the run.

        Raises:
            OSError: If a file cannot be read or written.
        """
        require("report", "PIL")
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard.summary import image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._write(summary=image(name, pixels, dataformats="HWC"), step=step)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        messages: Any = event_pb2
        event = messages.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
