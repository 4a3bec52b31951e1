"""The quality table: blending on sprites against everything else that saves time.

``python benchmarks/quality.py [--results FILE] [--prompts 128] [--few 32] [--device cpu|cuda]
[--processes N] [--only REGEX]`` measures quality and FLOPs, ``--times REPEATS`` only the time that
the rows take, ``--report`` nothing; all of them then print the table of what the results file
holds. ``--write`` puts it, with its picture, into docs/; ``--quick`` measures a few rows on a few
prompts, and their times, and keeps nothing.

Every row is compared with all-large clips of the same prompts and noise. Headline rows take
``--prompts`` prompts, the others ``--few``. The results file is only ever added to: what it holds
isn't measured again, and quality and times may come from different machines. Beside it lie the
all-large clips, ``*.reference.pt``, which are rendered again where they are missing.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quality_boundaries import rendered_boundaries
from quality_measures import held_out
from quality_plot import draw
from quality_render import Pool, Renderer
from quality_report import Table, report
from quality_rows import STEPS, Row, RowInputs, missing, named, rows
from quality_store import Results
from shared import ROOT, Sprites, machine, parse, publish, undated

RESULTS = ROOT / "benchmarks" / "quality.jsonl"
PICTURE = ROOT / "docs" / "quality.svg"
QUICK = ("LLL", "SSS", "LSL", "LSS", "Euler 25", "UniPC 20", "taylorseer 3", "sea 0.4",
         "LSL UniPC 20")  # fmt: skip


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def row_inputs(results: Results, *, anew: bool) -> RowInputs:
    """The row inputs that the results file holds, or measured anew and then held by it."""
    found = results.of_kind("calibration")
    if not found and not anew:
        return RowInputs(mag_ratios=())
    if not found:
        # Imported here: benchmarks/caches.py is a script of its own.
        from caches import ratios

        say("calibrating")
        mag = ratios(Sprites(), "large", STEPS)
        results.append(
            {"kind": "calibration", "mag_ratios": mag, "boundaries": rendered_boundaries(),
             "measured": machine()}
        )  # fmt: skip
        found = results.of_kind("calibration")
    early, late = found[-1]["boundaries"]
    return RowInputs(tuple(found[-1]["mag_ratios"]), (early, late))


def measure_quality(
    results: Results,
    chosen: Sequence[Row],
    reference: Row,
    *,
    prompts: int,
    few: int,
    device: str,
    processes: int,
) -> list[str]:
    """Measure the rows that the results file lacks; the names of those that failed."""
    counts = {row: prompts if row.headline else min(few, prompts) for row in chosen}
    tasks = [
        (row, count, row == reference)
        for row, count in counts.items()
        if results.quality(row, device, count) is None
    ]
    # What takes longest first, so that no process is left with it at the end.
    tasks.sort(key=lambda task: (task[0].together, -task[0].steps * task[1]))
    failed = []
    if tasks:
        with Pool(device, results.path.with_suffix(".reference.pt"), processes) as pool:
            pool.prepare(reference, max(counts.values()))
            for number, (row, found) in enumerate(pool.lines(tasks), 1):
                if isinstance(found, BaseException):
                    failed.append(row.name)
                    say(f"[{number}/{len(tasks)}] {row.name} failed: {found}")
                    continue
                results.append(found)
                say(f"[{number}/{len(tasks)}] {row.name}, {found['rendered_s']:.0f} s")
    return failed


def measure_times(
    results: Results, chosen: Sequence[Row], reference: Row, repeats: int, device: str = "cpu"
) -> None:
    """Time the rows in rounds, the reference in each, until every row has its repeats.

    Each round takes another prompt, the same for every row.
    """
    here = f"{undated(machine())}, {device}"
    done = {row: len(results.rounds(row, reference, here)) for row in chosen}
    if min(done.values()) >= repeats:
        return
    renderer = Renderer(device)
    short = [row for row in chosen if done[row] < repeats and row != reference]
    for row in [reference, *short]:
        say(f"warming up {row.name}")
        renderer.call(row, 0, 1)
    for turn in range(min(done.values()), repeats):
        due = [reference, *(row for row in short if done[row] <= turn)]
        seconds = {row.key: round(renderer.seconds(row, turn), 4) for row in due}
        results.append(
            {"kind": "round", "machine": here, "date": machine()[:10], "prompt": turn,
             "seconds": seconds}
        )  # fmt: skip
        say(f"round {turn + 1} of {repeats}: LLL {seconds[reference.key]:.2f} s")


def arguments() -> argparse.Namespace:
    """The options."""
    most = len(held_out())
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--prompts", type=int, default=128, choices=range(1, most + 1), metavar="N")
    parser.add_argument("--few", type=int, default=32, choices=range(1, most + 1), metavar="N")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name has a match")
    parser.add_argument("--times", type=int, default=0, metavar="REPEATS")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--picture", type=Path, help="draw it here: .svg, .png or .webp")
    parser.add_argument("--write", action="store_true")
    return parse(parser, prompts=3, few=3, times=2)


def main() -> int:
    """Measure, and print or publish the table; 1 if a row failed."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            options.results = Path(folder) / "quality.jsonl"
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Do what the options say."""
    results = Results(options.results)
    every = rows(row_inputs(results, anew=not options.report))
    (reference,) = named(every, ["LLL"])
    chosen = [row for row in every if re.search(options.only, row.name) or row == reference]
    if options.quick:
        chosen = named(chosen, QUICK)
    failed: list[str] = []
    for reason in missing():
        say(reason)
    if not options.report and (options.quick or not options.times):
        failed = measure_quality(
            results,
            chosen,
            reference,
            prompts=options.prompts,
            few=options.few,
            device=options.device,
            processes=options.processes,
        )
    if options.times and not options.report:
        measure_times(results, chosen, reference, options.times, options.device)
    table = Table(results, every)
    if options.picture:
        draw(table.points(), options.picture)
    if options.write:
        draw(table.points(), PICTURE)
        draw(table.points(), PICTURE.with_suffix(".webp"))
    publish("quality.md", "quality", report(table, PICTURE.name), write=options.write)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
