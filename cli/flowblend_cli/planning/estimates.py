"""Estimates: how long jobs will take, learned from the steps and jobs that are over.

The amount of a step is its FLOPs; that of the rest of a job (its prompt, decoding, publishing) is
its pixels. An amount that was seen before takes the median of its seconds; any other one lies on
the line between its neighbours. So a first step that warms the device up, or one disturbed by
something else, doesn't count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

REST = "rest"
_KEPT = 51
_KEPT_AMOUNTS = 400
_LONGEST_S = 1e9


class Task(NamedTuple):
    """Something that takes time, and how much of it.

    Args:
        model: The models that do it, as text.
        role: The denoiser whose step it is; for the rest of a job, something with ``REST``.
        amount: FLOPs of the step, or pixels of the whole clip.
    """

    model: str
    role: str
    amount: float

    @property
    def is_rest(self) -> bool:
        """Whether it is no step, but the rest of a job."""
        return self.role.startswith(REST)


@dataclass(frozen=True, eq=False)
class Work:
    """What one job asks for.

    Args:
        steps: The task of each step.
        rest: What comes before and after the steps.
        repeats: How often all of it is done.
    """

    steps: tuple[Task, ...]
    rest: Task
    repeats: int = 1
    tasks: Mapping[Task, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", Counter((*self.steps, self.rest)))


class Speeds:
    """Seconds of tasks: those that were measured, and from them those of others."""

    def __init__(self) -> None:
        self._seen: dict[Task, deque[float]] = {}
        self._usual: dict[Task, float] = {}
        self._found: dict[Task, float | None] = {}  # what ``seconds`` made of these

    def note(self, task: Task, seconds: float) -> None:
        """Learn how long a task took."""
        seen = self._seen.setdefault(task, deque(maxlen=_KEPT))
        seen.append(max(0.0, seconds))
        self._found.clear()
        self._usual.pop(task, None)
        self._usual[task] = median(seen)  # at the end: what is newest

    def forget(self, task: Task) -> None:
        """Learn anew how long a task takes."""
        self._seen.pop(task, None)
        self._usual.pop(task, None)
        self._found.clear()

    def seconds(self, task: Task) -> float | None:
        """Seconds that a task will take, or None where nothing like it was ever measured.

        Where the very role was never seen, it goes by the FLOPs of the model's other roles, and
        then by those of any model.
        """
        if task not in self._found:
            self._found[task] = self._from_others(task)
        return self._found[task]

    def _from_others(self, task: Task) -> float | None:
        known = self._usual
        relations: tuple[Callable[[Task], bool], ...] = (
            lambda seen: seen[:2] == task[:2],
            lambda seen: seen.model == task.model and seen.is_rest == task.is_rest,
            lambda seen: seen.is_rest == task.is_rest,
        )
        if task in known:
            return known[task]
        if not task.amount:
            return 0.0
        for is_related in relations:
            points = {seen.amount: s for seen, s in known.items() if is_related(seen)}
            points.pop(0, None)
            if points:
                return _on_the_line(points, task.amount)
        return None

    def total(self, tasks: Mapping[Task, int]) -> float | None:
        """Seconds of many tasks; None where steps are among them of which nothing is known."""
        total = 0.0
        for task, number in tasks.items():
            seconds = self.seconds(task)
            if seconds is None and not task.is_rest:
                return None
            total += number * (seconds or 0.0)
        return total

    def to_document(self) -> list[list[Any]]:
        """What was learned as plain JSON values: model, role, amount, seconds."""
        learned = list(self._usual.items())[-_KEPT_AMOUNTS:]
        return [[*task, round(seconds, 6)] for task, seconds in learned]

    def recall(self, document: Any) -> None:
        """Begin with what an earlier run learned; entries that make no sense are ignored."""
        self._found.clear()
        for entry in document if isinstance(document, list) else ():
            if not isinstance(entry, list) or len(entry) != len(Task._fields) + 1:
                continue
            model, role, amount, seconds = entry
            sound = all(type(n) in (int, float) and 0 <= n < 1e30 for n in (amount, seconds))
            if sound and isinstance(model, str) and isinstance(role, str) and seconds < _LONGEST_S:
                self._usual.setdefault(Task(model, role, amount), float(seconds))


def _on_the_line(points: Mapping[float, float], amount: float) -> float:
    """Seconds of an amount that wasn't measured: between its neighbours, else in proportion."""
    amounts = sorted(points)
    for low, high in pairwise(amounts):
        if low <= amount <= high:
            share = (amount - low) / (high - low)
            return points[low] + share * (points[high] - points[low])
    first, last = amounts[0], amounts[-1]
    nearest = first if amount < first else last
    if first == last:
        return points[nearest] * amount / nearest
    slope = max(0.0, (points[last] - points[first]) / (last - first))
    floor = points[nearest] * min(1.0, amount / nearest)  # as if it had no fixed part
    return max(floor, points[nearest] + slope * (amount - nearest))


@dataclass
class _Present:
    work: Work
    began: float
    is_cold: bool
    step_began: float
    step: int = -1
    is_whole: bool = True
    to_come: Counter[Task] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.to_come.update(self.work.tasks)

    def begin_step(self, index: int, now: float) -> None:
        """Note that a step begins, and what comes after the one before it."""
        if index == self.step + 1 and self.step >= 0:
            over = self.work.steps[self.step]
            self.to_come[over] -= 1
            if not self.to_come[over]:
                del self.to_come[over]
        elif index != max(0, self.step):
            self.to_come = Counter((*self.work.steps[index:], self.work.rest))
        self.step, self.step_began = index, now


class Estimates:
    """Estimates how long the jobs of a batch will still take, from what happens and when.

    Every ``now`` is in seconds of a clock that never jumps. Any number of jobs may be under way.

    Args:
        works: What each job asks for, by its id; jobs that may follow are among them.
        speeds: What is known of them so far.
        slots: Jobs that may be under way at once.
    """

    def __init__(self, works: Mapping[str, Work], speeds: Speeds, slots: int = 1) -> None:
        self.speeds = speeds
        self._slots = slots
        self._works = works
        self._left: dict[str, int] = {}
        self._renders_left = 0  # the sum of these
        self._named: set[str] = set()
        self._queue: Counter[Task] = Counter()
        self._unnamed = 0
        self._timed: set[Task] = set()
        self._doubtful: Task | None = None
        self._under_way: dict[str, _Present] = {}
        self._is_cold = True

    def expect(self, jobs: Iterable[str], finished: Iterable[str] = ()) -> None:
        """Count on some jobs being rendered, and on others, which are finished, not being so.

        Args:
            jobs: Ids of those to be rendered.
            finished: Ids of the others; those of the former may be among them.
        """
        self._named.update(finished)
        for job in jobs:
            self._named.add(job)
            work = self._works.get(job)
            if work is not None and job not in self._left:
                self._left[job] = work.repeats
                self._renders_left += work.repeats
                self._count(work, work.repeats)

    def grow(self, jobs: int) -> None:
        """Count on so many further jobs, whose names aren't known before they start or end."""
        self._unnamed += jobs

    def loaded(self) -> None:
        """Note that models were loaded: what runs first through them is slower than usual."""
        self._is_cold = True

    def started(self, job: str, now: float) -> None:
        """Note that a job starts; again where its process died."""
        work = self._works.get(job)
        self._name(job)
        self._take(job, 1)
        if work is not None:
            self._under_way[job] = _Present(work, now, self._is_cold, now)
            self._is_cold = False

    def step(self, job: str, index: int, now: float) -> None:
        """Note that a step of a job starts."""
        present = self._under_way.get(job)
        if present is None or index >= len(present.work.steps):
            self._under_way.pop(job, None)
            return
        present.is_whole &= index == present.step + 1
        if index >= 2 and present.is_whole:  # the first one holds what happens once
            task = present.work.steps[index - 1]
            if task not in self._timed:
                self._timed.add(task)
                self.speeds.forget(task)
            self.speeds.note(task, now - present.step_began)
        present.begin_step(index, now)

    def rendered(self, job: str, now: float) -> None:
        """Note that a job's frames are here, and learn what its steps don't explain."""
        present = self._under_way.pop(job, None)
        if present is None or not present.is_whole:
            return
        work = present.work
        if present.step != len(work.steps) - 1:
            return
        self._share_out(Counter(work.steps), now - present.began)
        explained = self.speeds.total(Counter(work.steps)) or 0.0
        if not present.is_cold:
            if self._doubtful is not None:
                self.speeds.forget(self._doubtful)
                self._doubtful = None
            self.speeds.note(work.rest, now - present.began - explained)
        elif self.speeds.seconds(work.rest) is None:  # decoding for the first time is slow, too
            last = self.speeds.seconds(work.steps[-1]) or 0.0
            self.speeds.note(work.rest, now - present.step_began - last)
            self._doubtful = work.rest

    def returned(self, job: str) -> None:
        """Note that a job came back unfinished, because the run stops."""
        self._under_way.pop(job, None)

    def ended(self, job: str, now: float, *, rendered: bool) -> None:
        """Note that a job is over, with its file or without."""
        self._name(job)
        self._take(job, self._left.get(job, 0))
        if rendered:
            self.rendered(job, now)
        self._under_way.pop(job, None)

    def remaining_s(self, now: float) -> float | None:
        """Seconds until all jobs are done; None before anything is known."""
        queued = self.speeds.total(self._queue)
        if queued is None:
            return None
        rests = [self._rest_of(present, now) for present in self._under_way.values()]
        known = [rest for rest in rests if rest is not None]
        if len(known) < len(rests):
            return None
        jobs = self._renders_left
        usual = queued / jobs if jobs else self._usual_s()
        total = queued + sum(known) + self._unnamed * usual
        return max([total / self._slots, *known])  # a job can't be split among slots

    def seconds_of(self, job: str) -> float | None:
        """Seconds that a job will take; None before anything is known."""
        work = self._works.get(job)
        if work is None:  # one that a measurement led to
            return self._usual_s() or None
        seconds = self.speeds.total(work.tasks)
        return None if seconds is None else seconds * work.repeats

    def amount_of(self, job: str) -> float:
        """How much the steps of a job ask for; 0 where nothing is known of it."""
        work = self._works.get(job)
        return 0.0 if work is None else sum(task.amount for task in work.steps)

    def _usual_s(self) -> float:
        some = next(iter(self._works.values()), None)
        return (self.speeds.total(some.tasks) or 0.0) if some is not None else 0.0

    def _rest_of(self, present: _Present, now: float) -> float | None:
        seconds = self.speeds.total(present.to_come)
        return None if seconds is None else max(0.0, seconds - (now - present.step_began))

    def _name(self, job: str) -> None:
        """Note that a job is heard of: one that nobody named before is one of the further ones."""
        if job not in self._named:
            self._named.add(job)
            self._unnamed = max(0, self._unnamed - 1)

    def _count(self, work: Work, repeats: int) -> None:
        for task, number in work.tasks.items():
            self._queue[task] += number * repeats
            if not self._queue[task]:
                del self._queue[task]

    def _take(self, job: str, repeats: int) -> None:
        if repeats and self._left.get(job, 0) >= repeats:
            self._left[job] -= repeats
            self._renders_left -= repeats
            self._count(self._works[job], -repeats)
            if not self._left[job]:
                del self._left[job]

    def _share_out(self, steps: Mapping[Task, int], total_s: float) -> None:
        """Guess the seconds of steps that no job had enough of for them to be timed alone."""
        untimed = {task: number for task, number in steps.items() if task not in self._timed}
        timed = {task: number for task, number in steps.items() if task in self._timed}
        if not untimed:
            return
        over = max(0.0, total_s - (self.speeds.total(timed) or 0.0))
        share = over / sum(untimed.values())
        for task in untimed:
            known = self.speeds.seconds(task)
            self.speeds.note(task, share if known is None else min(known, share))
