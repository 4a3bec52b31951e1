"""The results file of the quality table: JSON lines, only ever added to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from quality_rows import Row

Line = dict[str, Any]


class Results:
    """What was measured, line by line; a last line that was cut off counts as not there.

    Lines have a ``kind``: ``calibration``, ``quality`` (one row on one device) or ``round`` (one
    turn of the stopwatch over several rows).

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: A line other than the last is no JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number} is no JSON ({error}): remove the line"
                ) from error

    def append(self, line: Line) -> None:
        """Add one line, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with self.path.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a kill left of a line
            file.write(text)
        self.lines.append(json.loads(text))

    def of_kind(self, kind: str) -> list[Line]:
        """The lines of one kind, oldest first."""
        return [line for line in self.lines if line["kind"] == kind]

    def quality(self, row: Row, device: str, prompts: int = 1) -> Line | None:
        """What was measured of a row on at least so many prompts; on most, then last."""
        found = [
            line
            for line in self.of_kind("quality")
            if line["key"] == row.key and line["device"] == device and line["prompts"] >= prompts
        ]
        return max(reversed(found), key=lambda line: line["prompts"], default=None)

    def device(self) -> str | None:
        """The device on which most rows were measured."""
        counts = Counter(line["device"] for line in self.of_kind("quality"))
        return max(counts, key=lambda device: counts[device], default=None)

    def frechet(self, row: Row) -> Line | None:
        """What was measured of a row's Frechet distance, on any device, with its interval."""
        found = [
            line
            for line in self.of_kind("quality")
            if line["key"] == row.key and line["frechet_interval"] is not None
        ]
        return max(found, key=lambda line: line["prompts"], default=None)

    def rounds(self, row: Row, reference: Row, machine: str) -> list[tuple[float, float]]:
        """Seconds of a row and of the reference in each round that had both, on one machine."""
        return [
            (line["seconds"][row.key], line["seconds"][reference.key])
            for line in self.of_kind("round")
            if line["machine"] == machine and {row.key, reference.key} <= set(line["seconds"])
        ]
