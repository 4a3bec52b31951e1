"""How many workers one driver carries: the command's real loop over a cluster in virtual time.

``python benchmarks/cluster_simulation.py [--workers 8 64 1000] [--jobs 100000] [--quick]``

Jobs take 60 to 600 s, workers are spot machines that are lost every two hours on average, and what
encoding, network and disk take is stated in ``virtual_cluster.Costs``. States that workers send are
not written to a disk here, but the loop waits as long as that takes; finished files are small ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from shared import machine, parse, publish, table
from simulated_run import LONGEST_S, SHORTEST_S, STEPS, Case, simulate
from virtual_cluster import Costs


def report(found: list[tuple[Case, dict[str, float]]], costs: Costs) -> str:
    head = [
        "workers", "jobs", "encode", "checkpoints", "useful", "done again", "loading", "encoding",
        "idle", "lost workers", "failed jobs", "driver's loop", "publishing", "network",
    ]  # fmt: skip
    rows = []
    for case, one in found:
        every = f"every {case.every} of {STEPS}" if case.every else "none"
        shares = (one[name] for name in ("useful", "lost", "loading", "encoding", "idle"))
        rows.append([
            f"{case.workers:,}", f"{case.jobs:,}", case.encode, every,
            *(f"{100 * share:.1f} %" for share in shares),
            f"{one['losses']:,.0f}" if case.is_spot else "none", f"{one['failed']:,.0f}",
            f"{100 * one['loop']:.1f} %", f"{100 * one['publishing']:.0f} %",
            f"{100 * one['network']:.0f} %",
        ])  # fmt: skip
    stated = ", ".join(f"{name} {value:g}" for name, value in asdict(costs).items())
    return f"{machine()}. Jobs of {SHORTEST_S:g} to {LONGEST_S:g} s. {stated}.\n\n" + table(
        head, rows
    )


def cases(workers: list[int], jobs: int) -> list[Case]:
    found = []
    for number in workers:
        case = Case(number, min(jobs, 1000 * number))
        found += [case, replace(case, every=STEPS // 4), replace(case, encode="driver")]
        found.append(replace(case, is_spot=False))
    return found


def main() -> None:
    """Simulate, and print a Markdown table and a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 1000])
    parser.add_argument("--jobs", type=int, default=100_000, help="at most 1,000 a worker")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="on a RAM disk")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    options = parse(parser, workers=[8, 64], jobs=500)
    costs, found = Costs(), []
    for case in cases(options.workers, options.jobs):
        folder = options.folder if options.folder.is_dir() else None
        with tempfile.TemporaryDirectory(dir=folder) as work:
            found.append((case, simulate(case, costs, Path(work))))
        print(json.dumps({**asdict(case), **found[-1][1]}), flush=True)
    publish("scaling.md", "cluster", report(found, costs), write=options.write)


if __name__ == "__main__":
    main()
