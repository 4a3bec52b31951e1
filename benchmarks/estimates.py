"""How right the remaining time of a mixed batch is, after each of its jobs.

``python benchmarks/estimates.py [--seeds 2] [--clock cpu] [--quick]``

Jobs of sprites that differ in steps, size, frames and stages are rendered in a shuffled order, as
``flowblend render`` does, into a folder that is thrown away. After each one, every way to estimate
says how long the others will take; that is compared with how long they took. On a machine that
others use as well, ``--clock cpu`` counts this process's own seconds, which are those of an idle
machine where one thread does everything (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shared import machine, parse, table

from flowblend_cli.engine.batch_run import BatchRun
from flowblend_cli.events import Event, JobDone, JobFailed, JobStarted
from flowblend_cli.jobs import Batch, Job
from flowblend_cli.planning.estimates import Estimates, Speeds, Work
from flowblend_cli.planning.flops import cost_plan
from flowblend_cli.planning.plan import plan_batch
from flowblend_cli.planning.run_progress import tell_estimates
from flowblend_cli.planning.workloads import works_of
from flowblend_cli.recipe.loader import load_batch

RECIPE = """\
[recipe]
name = "mixed"

[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[metrics]
names = []

[defaults]
guidance_scale = 5.0
max_sequence_length = 64

[sweep]
"blend.stages" = ["LLL", "LSL", "SSS"]
num_inference_steps = [{steps}]
"""
SCENE = """
[[scene]]
name = "{name}"
prompt = "a red circle moving right on a navy background"
height = {side}
width = {side}
num_frames = {frames}
seeds = [{seeds}]
"""
SIZES = ((64, 17), (64, 5), (96, 9))
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass
class Mark:
    """One finished job: when, and how long each way says that the others take."""

    job: str
    at: float
    said: dict[str, float | None]
    of_each: dict[str, float | None]


class Watch:
    """A reporter that tells several estimates what happens, and notes what they say.

    Args:
        ways: The work of each job, told in several ways.
        jobs: Ids of all jobs.
        clock: Seconds.
    """

    def __init__(
        self, ways: Mapping[str, dict[str, Work]], jobs: list[str], clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._ways = {name: Estimates(works, Speeds()) for name, works in ways.items()}
        self._jobs = jobs
        self.marks: list[Mark] = []
        self.began = 0.0
        for estimates in self._ways.values():
            estimates.expect(jobs)

    def __call__(self, event: Event) -> None:
        """Pass an event on to the estimates."""
        now = self._clock()
        for estimates in self._ways.values():
            tell_estimates(estimates, event, now)
        if isinstance(event, JobFailed):
            sys.exit(event.error)
        if isinstance(event, JobStarted):
            self.began = self.began or now
        if isinstance(event, JobDone):
            self._mark(event.job, now)

    def _mark(self, job: str, now: float) -> None:
        said = {name: estimates.remaining_s(now) for name, estimates in self._ways.items()}
        done = len(self.marks) + 1
        said["pace of jobs"] = (now - self.began) / done * (len(self._jobs) - done)
        first = next(iter(self._ways.values()))
        each = {one: first.seconds_of(one) for one in self._jobs}
        self.marks.append(Mark(job, now, said, each))
        print(f"{done}/{len(self._jobs)} {job}", file=sys.stderr, flush=True)


def kind_of(job: Job) -> tuple[object, ...]:
    """Jobs of one kind have the same denoisers and the same size."""
    return (job.stage_string, job.argument("height"), job.argument("num_frames"))


def render(options: argparse.Namespace, folder: Path) -> tuple[Batch, Watch]:
    """Render the mixed batch."""
    seeds = ", ".join(str(n) for n in range(1, options.seeds + 1))
    text = RECIPE.format(steps=", ".join(map(str, options.steps)))
    for side, frames in SIZES[: options.sizes]:
        text += SCENE.format(name=f"p{side}f{frames}", side=side, frames=frames, seeds=seeds)
    path = folder / "mixed.toml"
    path.write_text(text, "utf-8")
    batch = load_batch(str(path), (), folder / "out")
    cost_plan(plan_batch(batch))  # counts what nobody counted before
    jobs = list(batch.jobs)
    random.Random(0).shuffle(jobs)
    batch = replace(batch, jobs=tuple(jobs))
    ways = {"FLOPs": works_of(batch), "pixels": works_of(batch, by_flops=False)}
    watch = Watch(ways, [job.id for job in jobs], CLOCKS[options.clock])
    if code := BatchRun(batch, watch).run():
        sys.exit(code)
    return batch, watch


def error(said: float | None, took: float) -> str:
    """How far an estimate is off."""
    return "-" if said is None else f"{100 * (said - took) / took:+.0f} %"


def along(watch: Watch) -> str:
    """Errors of the remaining time along the batch."""
    marks, end = watch.marks, watch.marks[-1].at
    places = dict.fromkeys(max(1, round(share * len(marks))) for share in SHARES)
    ways = ("FLOPs", "pixels", "pace of jobs")
    rows = []
    for done in dict.fromkeys((1, *places)):
        mark = marks[done - 1]
        took = end - mark.at
        rows.append([f"{done} of {len(marks)}", f"{took:.0f} s",
                     *(error(mark.said[way], took) for way in ways)])  # fmt: skip
    return table(["jobs done", "the others took", *(f"by {way}" for way in ways)], rows)


def by_kind(batch: Batch, watch: Watch) -> str:
    """Of each kind: what the jobs after its first one were said to take, and what they took."""
    starts = [watch.began, *(mark.at for mark in watch.marks)]
    took = {mark.job: mark.at - start for mark, start in zip(watch.marks, starts, strict=False)}
    order = {mark.job: place for place, mark in enumerate(watch.marks)}
    kinds: dict[tuple[object, ...], list[str]] = {}
    for job in sorted(batch.jobs, key=lambda job: order[job.id]):
        kinds.setdefault(kind_of(job), []).append(job.id)
    rows, errors = [], []
    for kind, (first, *others) in sorted(kinds.items(), key=str):
        said = sum(watch.marks[order[first]].of_each[job] or 0.0 for job in others)
        really = sum(took[job] for job in others)
        errors.append(abs(said - really) / really)
        stages, side, frames = kind
        rows.append([f"{stages}, {side}x{side}, {frames} frames", str(len(others)),
                     f"{said:.1f} s", f"{really:.1f} s", error(said, really)])  # fmt: skip
    last = max(order[ids[0]] for ids in kinds.values())
    mark = watch.marks[last]
    left = watch.marks[-1].at - mark.at
    told = (
        f"Off by {100 * statistics.median(errors):.0f} % in the median of the kinds, "
        f"{100 * max(errors):.0f} % at worst. Once the first job of every kind was done (job "
        f"{last + 1}), the whole rest was off by {error(mark.said['FLOPs'], left)} of {left:.0f} s."
    )
    head = ["kind", "jobs after its first", "said after the first", "they took", "off by"]
    return f"{table(head, rows)}\n\n{told}"


def main() -> None:
    """Render, and print how right the estimates were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each prompt")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 20], help="numbers of steps")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many sizes to mix")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="which seconds")
    options = parse(parser, seeds=1, steps=[4, 10], sizes=2)
    with tempfile.TemporaryDirectory() as folder:
        batch, watch = render(options, Path(folder))
    print(f"{along(watch)}\n\n{by_kind(batch, watch)}\n\n{machine()}, {options.clock} seconds")


if __name__ == "__main__":
    main()
