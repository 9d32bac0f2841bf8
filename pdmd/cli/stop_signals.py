"""Stop signals: the first one ends a training after its current update, a second one at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["stop_on"]


@contextlib.contextmanager
def stop_on(numbers: Sequence[int], request: Callable[[], bool]) -> Iterator[None]:
    """Requests a stop on a signal within a block.

    Args:
        numbers: The signals. Outside of the main thread, which alone may set handlers, they are
            handled as before.
        request: Requests the stop. Returns whether it will be followed; if not,
            ``KeyboardInterrupt`` is raised.
    """

    def handle(number: int, frame: Any) -> None:
        if not request():
            raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in numbers:
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
