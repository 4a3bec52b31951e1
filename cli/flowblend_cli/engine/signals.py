"""StopSignals and StatusSignal: what SIGINT, SIGTERM, SIGHUP and SIGUSR1 do to a run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from flowblend_cli.errors import StopRequested

_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)
HANG_UP: int | None = getattr(signal, "SIGHUP", None)
STOPPING = [one for one in (signal.SIGINT, signal.SIGTERM, HANG_UP) if one is not None]
_THE_END = b"\0"  # no signal has this number


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP while a batch runs; a context manager.

    SIGHUP, which a terminal sends that is closed, stays ignored where it was, as under nohup. Shell
    and kernel may both send it, so it counts once however often it comes.

    Args:
        tell: Called once with a message when the first signal arrives.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._former: dict[int, Any] = {}
        self.received: int | None = None
        self._is_telling = False
        self._again: int | None = None  # a signal that came while the first one was told

    @property
    def exit_code(self) -> int | None:
        """128 + the signal's number once one arrived, else None."""
        return None if self.received is None else 128 + self.received

    def check(self) -> None:
        """Raise if a signal has arrived.

        Raises:
            StopRequested: It has.
        """
        if self.received is not None:
            raise StopRequested

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number != HANG_UP or signal.getsignal(number) is not signal.SIG_IGN:
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
        if self.received == number == HANG_UP:
            return
        if self._is_telling and self._again is None:
            self._again = number  # the word about the first one is said to its end
            return
        if self.received is not None:
            # Unwinding still removes temporary files on the way out.
            raise SystemExit(128 + number)
        self.received, self._is_telling = number, True
        try:
            self._tell("stopping after this step; the same signal again stops at once")
        finally:
            self._is_telling = False
        if self._again is not None:
            raise SystemExit(128 + self._again)


class StatusSignal:
    """Answers SIGUSR1 while a batch runs; a context manager that does nothing where there is none.

    The signal's handler does nothing: the interpreter writes the signal's number into a pipe at
    once, even in the middle of a long computation, and a thread that waits there answers. So the
    render isn't held up, and no lock can be wanted twice.

    Args:
        answer: Called in that thread, once a signal.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> StatusSignal:
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._listen, args=(reading, _SIGNAL), daemon=True)
        thread.start()
        former_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        former = signal.signal(_SIGNAL, _nothing)
        signal.siginterrupt(_SIGNAL, False)  # what the system does for the render goes on
        self._undo.callback(os.close, reading)
        self._undo.callback(os.close, writing)
        self._undo.callback(thread.join)
        self._undo.callback(os.write, writing, _THE_END)
        self._undo.callback(signal.set_wakeup_fd, former_pipe)
        self._undo.callback(signal.signal, _SIGNAL, former or signal.SIG_DFL)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _listen(self, pipe: int, number: int) -> None:
        while (read := os.read(pipe, 1)) not in (b"", _THE_END):
            if read[0] == number:
                self._answer()


def _nothing(*_: Any) -> None:
    """A handler, without which the signal would end the process."""
