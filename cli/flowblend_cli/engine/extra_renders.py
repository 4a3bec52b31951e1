"""TimedRepeats and DraftPreviews: renders without a file, for the batch loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.engine.executors.base import RenderResult
from flowblend_cli.events import Event, Message
from flowblend_cli.jobs import Job
from flowblend_cli.study import Selection


class TimedRepeats:
    """A job that has its file, rendered again for its seconds and its bits alone.

    Args:
        job: The job, with the seed of its file.
        record: Its record, which has some of the renders already.
        publishing_s: Seconds of publishing, timed once and counted in each render.
        repeats: How often the job is rendered in all.
        told: The event that tells, after the last render, that the job is over.
        on_end: Goes on with the job and its record then.
    """

    def __init__(
        self,
        job: Job,
        record: JobRecord,
        publishing_s: float,
        repeats: int,
        told: Callable[[JobRecord], Event],
        on_end: Callable[[JobRecord], None],
    ) -> None:
        self.job = job
        self.record = record
        self._publishing_s = publishing_s
        self._repeats = repeats
        self._told = told
        self.on_end = on_end
        self._added = 0
        self._is_given_up = False

    @property
    def is_over(self) -> bool:
        """Whether no further render is wanted."""
        return self._is_given_up or len(self.record.elapsed_s) >= self._repeats

    @property
    def event(self) -> Event:
        """What tells that the job is over."""
        return self._told(self.record)

    def add(self, result: RenderResult) -> JobRecord:
        """Note one more render; the record with it."""
        self._added += 1
        elapsed_s = round(result.elapsed_s + self._publishing_s, 3)
        self.record = replace(
            self.record,
            elapsed_s=(*self.record.elapsed_s, elapsed_s),
            pixels=(*self.record.pixels, result.pixels_sha256),
        )
        return self.record

    def give_up(self) -> None:
        """Ask for no further render: the file is there, only times are missing."""
        self._is_given_up = True

    def failure(self, error: BaseException) -> Message:
        """What is said of a render that failed."""
        number = len(self.record.elapsed_s) + 1
        told = f"{self.job.id}: render {number} of {self._repeats} for its seconds failed: {error}"
        return Message(told, is_error=True, job=self.job.id)

    def verdict(self) -> Message | None:
        """Say whether all renders have the same pixels; None where no new one came, or not all."""
        if not self._added or self._is_given_up:
            return None
        same, renders = self.record.pixels.count(self.record.pixels_sha256), len(self.record.pixels)
        told = f"{self.job.id}: {same} of {renders} renders have the same pixels"
        return Message(told, is_error=same < renders, job=self.job.id)


class DraftPreviews:
    """Previews of a selection's drafts, taken before any of them is rendered to its end.

    Args:
        selection: What the drafts compete for.
        drafts: Those that no earlier run previewed.
        keys: Job key of each draft of the selection.
    """

    def __init__(
        self, selection: Selection, drafts: Sequence[Job], keys: Mapping[str, str]
    ) -> None:
        self.selection = selection
        self.keys = keys
        self.waiting = list(drafts)
        self.under_way = 0

    @property
    def after_steps(self) -> int:
        """How many steps a preview runs."""
        return self.selection.reject_after or 1

    def failure(self, draft: Job, error: BaseException) -> Message:
        """What is said of a preview that failed: what can't be judged early is rendered."""
        told = f"{draft.id} can't be looked at after {self.after_steps} steps and goes on: {error}"
        return Message(told, is_error=True, job=draft.id)
