"""LogFile: the log of a render, for ``--log-file``: all detail, each line with its time in UTC."""

from __future__ import annotations

import contextlib
import logging
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path

from flowblend_cli.console.plain import Lines
from flowblend_cli.text import printable, utc_now
from flowblend_cli.utils.streams import without_waiting


class LogFile(Lines):
    """Lines of a log file, each with its time in UTC.

    The run says once that a line can't be written. That line is lost, and the next one is tried
    again: a full disk may have space by then. Where logrotate moves the file, a new one is begun.

    Args:
        path: The file; it is added to, and made anew where it was moved or deleted.
        complaints: Where the one line about a failure goes.
    """

    def __init__(self, path: Path, complaints: Lines) -> None:
        super().__init__(None, str(path), complaints)
        self._handler = _Handler(path.absolute(), encoding="utf-8", delay=True)
        self._complained = False

    def write(self, line: str) -> None:
        """Write a line; one of several lines as so many, each harmless to any terminal."""
        for part in line.split("\n"):
            text = f"{utc_now()} {printable(part)}".encode(errors="backslashreplace").decode()
            try:
                self._handler.emit(logging.makeLogRecord({"msg": text}))
            except (OSError, ValueError) as error:
                self._handler.forget()
                self._complain(error)
                return
            except RuntimeError:  # a signal's handler spoke in the middle of another line
                return

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError, ValueError):
            self._handler.close()

    def _complain(self, error: Exception) -> None:
        if self._complained or self._complaints is None:
            return
        self._complained = True
        reason = getattr(error, "strerror", None) or str(error)
        self._complaints.write(
            f"error: the log {printable(self._name)} can't be written ({reason}): the batch goes on"
        )


class _Handler(WatchedFileHandler):
    """The standard library's handler, with errors that are raised instead of printed."""

    def _open(self) -> TextIOWrapper:
        file = open(self.baseFilename, "ab", opener=without_waiting)  # noqa: SIM115 - the handler's
        return TextIOWrapper(file, encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        """Raise what ``emit`` caught."""
        raise

    def forget(self) -> None:
        """Drop what couldn't be written, so that it doesn't fail once more at the end."""
        stream, self.stream = self.stream, None
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
