"""The quality table, from the results file alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quality_measures import wilson
from quality_rows import FAMILIES, Row, named
from quality_store import Line, Results
from shared import interval, table

HEAD = ("row", "speed-up", "fastest", "FLOPs", "PSNR, dB", "against LSL, dB", "SSIM", "features",
        "all four right", "Fréchet", "change", "flicker", "clips")  # fmt: skip
NONE = "-"
Typical = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Point:
    """Where a row lies in the picture.

    Args:
        name: Of the row.
        family: Of the row.
        psnr: Mean PSNR to LLL, in dB.
        speed_up: How many times less time than LLL it took; None where it wasn't timed.
        savings: How many times fewer FLOPs than LLL it took.
    """

    name: str
    family: str
    psnr: float
    speed_up: float | None
    savings: float


class Table:
    """The rows that were measured, on the device on which most of them were.

    Args:
        results: What was measured.
        every: All rows, LLL among them.
    """

    def __init__(self, results: Results, every: Sequence[Row]) -> None:
        (self.reference,) = named(every, ["LLL"])
        self._results = results
        self.device = results.device()
        found = {row: results.quality(row, self.device or "") for row in every}
        self.lines: dict[Row, Line] = {row: line for row, line in found.items() if line}
        rounds = results.of_kind("round")
        self._machine = rounds[-1]["machine"] if rounds else ""
        lsl = [line for row, line in self.lines.items() if row.name == "LSL"]
        self._lsl: Line | None = lsl[0] if lsl else None

    @property
    def large(self) -> Line:
        """LLL's line."""
        return self.lines[self.reference]

    def speed_up(self, row: Row, typical: Typical = statistics.median) -> float | None:
        """Typical time of LLL over that of the row, in the same rounds; None without a round."""
        rounds = self._results.rounds(row, self.reference, self._machine)
        if not rounds:
            return None
        mine, large = (typical(column) for column in zip(*rounds, strict=True))
        return large / mine

    def repeats(self) -> int:
        """Most rounds that any row had."""
        return max(
            len(self._results.rounds(row, self.reference, self._machine)) for row in self.lines
        )

    def points(self) -> list[Point]:
        """Every row but LLL itself."""
        return [
            Point(
                row.name,
                row.family,
                statistics.fmean(line["psnr"]),
                self.speed_up(row, min),
                self.large["flops"] / line["flops"],
            )
            for row, line in self.lines.items()
            if row != self.reference
        ]

    def cells(self, row: Row) -> list[str]:
        """One line of the table."""
        line = self.lines[row]
        itself = row == self.reference
        return [
            row.name,
            *(
                NONE if times is None else f"{times:.2f}"
                for times in (self.speed_up(row), self.speed_up(row, min))
            ),
            f"{line['flops'] / self.large['flops']:.0%}",
            NONE if itself else plus_minus(line["psnr"]),
            NONE if itself else self._against_lsl(line),
            NONE if itself else f"{statistics.fmean(line['ssim']):.3f}",
            NONE if itself else f"{statistics.fmean(line['features']):.3f}",
            share(line["right"]),
            NONE if itself else frechet(self._results.frechet(row) or line),
            *(self._ratio(line, name) for name in ("change", "flicker")),
            str(line["prompts"]),
        ]

    def _against_lsl(self, line: Line) -> str:
        if self._lsl is None or line["key"] == self._lsl["key"]:
            return NONE
        pairs = zip(line["psnr"], self._lsl["psnr"], strict=False)  # those that both have
        return plus_minus([mine - theirs for mine, theirs in pairs], sign="+")

    def _ratio(self, line: Line, name: str) -> str:
        """Of sums, since a clip that stands still hardly changes."""
        large = self.large[name][: line["prompts"]]
        return f"{sum(line[name][: len(large)]) / sum(large):.3f}"


def plus_minus(values: Sequence[float], sign: str = "") -> str:
    """Mean and half of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:{sign}.1f}"
    mean, half = interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def share(right: Sequence[int]) -> str:
    """Share in percent, with its 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return f"{sum(right) / len(right):.0%} [{low:.0%}, {high:.0%}]".replace("%", "") + " %"


def frechet(line: Line) -> str:
    """By how much the distance exceeds LLL's on the same prompts, with its 95 % interval."""
    if line["frechet"] is None:
        return NONE
    if line["frechet_interval"] is None:
        return f"{line['frechet_excess']:+.0f}"
    low, high = line["frechet_interval"]
    return f"{line['frechet_excess']:+.0f} [{low:+.0f}, {high:+.0f}]"


def report(made: Table, picture: str) -> str:
    """Head, picture, and one table a family."""
    if made.reference not in made.lines:
        return "Nothing was measured yet."
    times = (
        f"Times: up to {made.repeats()} rounds, one clip at a time, {made._machine}."
        if made.repeats()
        else "Times weren't measured."
    )
    parts = [
        f"Quality on {made.device}, measured {made.large['measured']}. {times}",
        f"![PSNR to LLL against time and FLOPs saved, by method]({picture})",
    ]
    lines: list[list[str]] = []
    for family, what in FAMILIES.items():
        found = [row for row in made.lines if row.family == family]
        if found:
            lines += [[f"*{what}*", *[""] * (len(HEAD) - 1)], *map(made.cells, found)]
    return "\n\n".join([*parts, table(HEAD, lines)])
