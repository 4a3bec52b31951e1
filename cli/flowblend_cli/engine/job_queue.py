"""JobQueue: the jobs that wait, and which of them comes next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable

from flowblend_cli.jobs import Job, ModelSpec


class JobQueue:
    """Jobs in the order in which they came, or the longest first; those of one model together.

    With several workers the longest jobs come first, so that no long one is left for the end, when
    the others have nothing to do any more; drafts come before all finals.

    Args:
        amount_of: How much a job asks for, in any unit; None keeps the order.
    """

    def __init__(self, amount_of: Callable[[Job], float] | None = None) -> None:
        self._amount_of = amount_of
        self._by_model: dict[ModelSpec, list[tuple[tuple[float, float, int], Job]]] = {}
        self._back, self._front = itertools.count(1), itertools.count(-1, -1)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait, behind those that wait already."""
        for job in jobs:
            amount, is_late = 0.0, False
            if self._amount_of is not None:
                amount = self._amount_of(job)
                is_late = job.origin is None or job.origin.kind != "draft"
            self._push((is_late, -amount, next(self._back)), job)

    def put_back(self, job: Job) -> None:
        """Let a job wait that was taken before its turn: it comes before all others."""
        self._push((-1, 0, next(self._front)), job)

    def take(self, loaded: Collection[ModelSpec] = ()) -> Job:
        """Take the next job out: one of these models, where one is there.

        Args:
            loaded: Models in the memory of whoever is free.

        Raises:
            IndexError: No job waits.
        """
        here = [model for model in loaded if model in self._by_model]
        heaps = [self._by_model[model] for model in here] or [*self._by_model.values()]
        if not heaps:
            raise IndexError("no job waits")
        first = min(heaps, key=lambda heap: heap[0][0])
        job = heapq.heappop(first)[1]
        if not first:
            del self._by_model[job.model]
        self._length -= 1
        return job

    def drop(self, ids: Collection[str]) -> None:
        """Let jobs wait no longer, by their ids."""
        for model, heap in [*self._by_model.items()]:
            kept = [entry for entry in heap if entry[1].id not in ids]
            self._length -= len(heap) - len(kept)
            heapq.heapify(kept)
            if kept:
                self._by_model[model] = kept
            else:
                del self._by_model[model]

    def _push(self, place: tuple[float, float, int], job: Job) -> None:
        heapq.heappush(self._by_model.setdefault(job.model, []), (place, job))
        self._length += 1
