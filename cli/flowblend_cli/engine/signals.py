"""Stop politely: the first signal ends the batch after the present step, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopRequested(BaseException):
    """A signal asked to stop; raised between two steps, so that nothing is half done."""


class StopSignals:
    """Notes SIGINT and SIGTERM while a batch runs; a context manager.

    Args:
        tell: Called once with a message when the first signal arrives.
        also: Checked beside the signals; may raise ``StopRequested``, too.
    """

    def __init__(self, tell: Callable[[str], None], also: Callable[[], None] | None = None) -> None:
        self._tell = tell
        self._also = also
        self._former: dict[int, Any] = {}
        self.received: int | None = None

    @property
    def exit_code(self) -> int | None:
        """128 + the signal's number once one arrived, else None."""
        return None if self.received is None else 128 + self.received

    def check(self) -> None:
        """Raise if a signal has arrived, or what is checked beside them says so.

        Raises:
            StopRequested: It has.
        """
        self.check_signals()
        if self._also is not None:
            self._also()

    def check_signals(self) -> None:
        """Raise if a signal has arrived.

        Raises:
            StopRequested: It has.
        """
        if self.received is not None:
            raise StopRequested

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._former.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # Unwinding still removes temporary files on the way out.
            raise SystemExit(128 + number)
        self.received = number
        self._tell("stopping after this step; the same signal again stops at once")
