"""Beside the renders: records are kept, clips are measured, and what that leads to is queued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from flowblend_cli.artifacts.records import (
    JobRecord,
    Look,
    is_measured,
    read_looks,
    read_record,
    recipe_path,
    write_json,
    write_looks,
    write_record,
)
from flowblend_cli.engine.followup.adaptation import Families, Measured
from flowblend_cli.engine.followup.measurer import FinishedFile, Measurement, Measurer, Request
from flowblend_cli.engine.followup.pruning import Drafts, dropped
from flowblend_cli.events import JobDropped, JobMeasured, Reporter
from flowblend_cli.jobs import Batch, Job, references
from flowblend_cli.planning.metrics import metrics_of, score_of
from flowblend_cli.planning.ordering import ordered
from flowblend_cli.study import MeasureSpec, Selection, Study
from flowblend_cli.text import count
from flowblend_plugin import metrics

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

RECIPE_VERSION = 1
_LONG_WAIT_S = 1.0
_POLL_S = 0.1
_LOOK = "look at/"  # no job has such a name
_NO_STUDY = Study(measure=MeasureSpec(names=()))


class Studying:
    """What a run does beside rendering.

    Args:
        batch: The jobs, and what is measured of them.
        reporter: Who is told what happens.
        overrides: The ``--set`` options of the run, for the kept recipe; None where nothing is to
            be kept, measured or followed up.
        complaints: What people found wrong with clips, by job.
    """

    def __init__(
        self,
        batch: Batch,
        reporter: Reporter,
        overrides: Sequence[str] | None,
        complaints: Mapping[str, str],
    ) -> None:
        self._batch = batch
        self._reporter = reporter
        self._overrides = overrides
        self._study = _NO_STUDY if overrides is None else batch.study
        self._weights = dict(self._study.measure.weights)
        self._families = Families(self._study, complaints)
        self._has_followups = bool(self._study.selections or self._study.adapt or complaints)
        self._drafts = Drafts(batch, self._study.selections)
        self._references = references(batch) if overrides is not None else {}
        self._compared = {job.id for job in self._references.values()}
        self._names: tuple[str, ...] = ()
        self._measurer = Measurer()
        self._jobs: dict[str, Job] = {}
        self._records: dict[str, JobRecord] = {}
        self._asked: dict[str, str] = {}
        self._looks: dict[str, Look] = {}
        self._looking: tuple[Selection, Mapping[str, str]] | None = None
        self._ids = {job.id for job in (*batch.jobs, *batch.reserve)}
        self._new: list[Job] = []
        self._is_over = False
        self.has_gaps = False  # whether drafts lead to no final, since none of them has a score

    @property
    def time_repeats(self) -> int:
        """How often every job is rendered."""
        return self._study.time_repeats

    @property
    def is_waiting(self) -> bool:
        """Whether measurements are on their way, which may lead to further jobs."""
        return self._measurer.outstanding > 0

    def begin(self) -> list[Job]:
        """Keep the recipe, and see that what it asks for can be measured.

        Returns:
            The batch's jobs in the order to render them.

        Raises:
            UsageError: The recipe asks for measurements, and what they need isn't installed.
            OutputError: The recipe can't be kept.
        """
        self._names = metrics_of(self._study)
        if self._overrides is None:
            return ordered(self._batch.jobs)
        if not self._names and self._study.measure.names is None:
            self._reporter.message(f"nothing is measured: {metrics.missing()}")
        batch = self._batch
        write_json(
            recipe_path(batch.output_dir, batch.recipe_name),
            {
                "v": RECIPE_VERSION,
                "recipe": batch.recipe_name,
                "path": str(batch.source),
                "text": batch.text,
                "overrides": list(self._overrides),
                "warnings": list(batch.warnings),
                "study": asdict(batch.study),
                "jobs": [job.id for job in batch.jobs],
            },
        )
        return ordered(batch.jobs, self._compared)

    def needs_nothing(self, job: Job, pixels: str) -> bool:
        """Whether a finished job is measured and timed as asked, and nothing can follow from it."""
        is_plain = not self._has_followups and self.time_repeats == 1
        if self._overrides is None or not is_plain or job.id in self._compared:
            return False
        asked = self._question(self._reference_of(job))
        return not self._names or is_measured(self._batch.output_dir, job.id, pixels, asked)

    def record_of(self, job: Job, pixels: str) -> JobRecord:
        """What is known of a job's finished file; an empty record where nothing is."""
        record = self._records.get(job.id)
        if record is None and self._overrides is not None:
            record = read_record(self._batch.output_dir, job.id)
        if record is None or record.pixels_sha256 != pixels:
            record = JobRecord(job.id, job.recipe, pixels)
        self._records[job.id] = record
        return record

    def keep(self, record: JobRecord) -> None:
        """Write a job's record, which replaces the former one.

        Raises:
            OutputError: It can't be written.
        """
        self._records[record.job] = record
        if self._overrides is not None:
            write_record(self._batch.output_dir, record)

    def finished(
        self, job: Job, record: JobRecord, frames: Frames | None, check: Callable[[], None]
    ) -> None:
        """Have a job measured that has its file now, if that wasn't done before.

        Args:
            job: The job.
            record: Its record.
            frames: Its pixels; None where only the file is left.
            check: See ``Measurer.submit``.
        """
        self._jobs[job.id], self._records[job.id] = job, record
        reference = self._reference_of(job)
        asked = self._question(reference)
        if not self._names or record.measurement_key == asked:
            self._settle(job, record)
            return
        self._asked[job.id] = asked
        request = Request(
            job.id,
            self._names,
            tracks=True,
            is_reference=job.id in self._compared,
            reference=reference,
            file=self._file(job) if frames is None else None,
        )
        self._measurer.submit(request, frames, check)

    def failed(self, job: Job) -> None:
        """Note that a job has no file, and nobody need wait for its measurement."""
        self._settle_draft(job, None)
        self._mark(job)

    def new_jobs(self, wait_s: float = 0.0) -> list[Job]:
        """Take in the measurements that are done, and hand out the jobs that they lead to.

        Args:
            wait_s: How long to wait for the first one.

        Raises:
            OutputError: A record can't be written.
        """
        while (found := self._measurer.answer(wait_s)) is not None:
            self._take(found)
            wait_s = 0.0
        new, self._new = self._new, []
        return new

    def wait(self, check: Callable[[], None]) -> list[Job]:
        """Wait until a measurement is done, and hand out what the ones so far lead to.

        Args:
            check: Called again and again meanwhile; may raise.
        """
        began = time.monotonic()
        before = self._measurer.outstanding
        new: list[Job] = []
        try:
            while self._measurer.outstanding == before:
                check()
                new += self.new_jobs(_POLL_S)
                if time.monotonic() - began > _LONG_WAIT_S:
                    self._reporter.waiting(f"measuring {count(before, 'clip')}")
        finally:
            self._reporter.waiting("")
        return new

    def close(self) -> None:
        """Stop measuring, and keep what is measured already; nothing more follows from it.

        Raises:
            OutputError: A record can't be written.
        """
        self._is_over = True
        try:
            self.new_jobs()
        finally:
            self._measurer.close()

    def to_look_at(self, job: Job) -> tuple[Selection, list[Job]] | None:
        """The selection, and its drafts, to look at before this draft is rendered."""
        selection = self._drafts.to_look_at(job)
        return None if selection is None else (selection, self._drafts.jobs_of(selection))

    def known_looks(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """The drafts that an earlier run looked at already; what follows are looks at the rest."""
        self._looking = selection, keys
        asked = self._question(None)
        known = read_looks(self._batch.output_dir, selection, asked, keys)
        self._looks |= known
        return set(known)

    def look(self, job: Job, frames: Frames, elapsed_s: float, check: Callable[[], None]) -> None:
        """Have a draft's preview, which took so many seconds, measured."""
        self._looks[job.id] = Look(None, round(elapsed_s, 3))
        self._jobs[_LOOK + job.id] = job
        self._measurer.submit(Request(_LOOK + job.id, self._names), frames, check)

    def drop(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """Give up the drafts that don't look promising, keep the choice, and tell it.

        Args:
            selection: The selection; all looks at its drafts are measured.
            keys: Job key of each draft.

        Returns:
            Ids of the drafts that aren't rendered.

        Raises:
            OutputError: The choice can't be kept.
        """
        drafts = self._drafts.jobs_of(selection)
        looks = {draft.id: self._looks.get(draft.id, Look()) for draft in drafts}
        self._keep_looks(selection, keys, looks)
        scores = {draft: look.score for draft, look in looks.items()}
        reasons = dropped(selection, drafts, scores)
        for draft in drafts:
            if draft.id in reasons:
                score = scores[draft.id] or 0.0
                reason = reasons[draft.id]
                self._reporter.event(JobDropped(draft.id, draft.scene, draft.seed, reason, score))
                self._settle_draft(draft, None)
        return set(reasons)

    def _keep_looks(
        self, selection: Selection, keys: Mapping[str, str], looks: Mapping[str, Look]
    ) -> None:
        write_looks(self._batch.output_dir, selection, self._question(None), keys, looks)

    def _take(self, found: Measurement) -> None:
        job = self._jobs[found.job]
        score = score_of(job.prompt, found.metrics, self._weights)
        if found.job.startswith(_LOOK):
            self._looks[job.id] = replace(self._looks[job.id], score=score)
            if self._looking is not None:  # a run that is interrupted here needn't look again
                seen = {one: look for one, look in self._looks.items() if look.score is not None}
                self._keep_looks(*self._looking, seen)
            return
        record = self._records[job.id]
        if found.error:
            what = "wholly measured" if found.metrics else "measured"
            self._reporter.message(f"{job.id} isn't {what}: {found.error}", error=True)
        if found.metrics or not found.error:
            record = replace(
                record,
                metrics=found.metrics,
                tracks=found.tracks,
                measured_on="file" if found.on_file else "frames",
                measurement_key="" if found.error else self._asked[job.id],
            )
            self.keep(record)
            values = dict(found.metrics)
            self._reporter.event(JobMeasured(job.id, job.scene, values, score))
        self._settle(job, record)

    def _settle(self, job: Job, record: JobRecord) -> None:
        """Follow up a job of which all is known that will be known."""
        if not self._has_followups:
            # Nobody asks for it again but as a reference, and tracks are large.
            self._jobs.pop(job.id, None)
            self._records.pop(job.id, None)
            if job.id in self._compared:
                self._records[job.id] = replace(record, tracks=())
            return
        score = score_of(job.prompt, record.metrics, self._weights)
        self._settle_draft(job, score)
        further = self._families.add(Measured(job, record.metrics, score))
        if further is None or further.origin is None:
            self._mark(job)
        elif further.id in self._ids:
            self._reporter.message(
                f"{further.id} isn't rendered: the recipe has a job of that name", error=True
            )
            self._mark(job)
        else:
            self._queue([further], f"{job.id} is rendered again: {further.origin.reason}")

    def _mark(self, job: Job) -> None:
        """Say in the records which of a job and its rounds is kept, now that no more will come."""
        for one, is_kept in self._families.verdicts(job).items():
            if self._records[one].accepted is not is_kept:
                self.keep(replace(self._records[one], accepted=is_kept))

    def _settle_draft(self, job: Job, score: float | None) -> None:
        for finals, told in self._drafts.settle(job.id, score):
            self._queue(finals, told)
            if not finals:
                self.has_gaps = True
                told = f"scene {job.scene}: none of its drafts has a score, so none is finished"
                self._reporter.message(told, error=True)

    def _queue(self, jobs: Sequence[Job], told: str) -> None:
        if self._is_over or not jobs:
            return
        self._ids |= {job.id for job in jobs}
        self._reporter.message(told)
        self._reporter.grow(len(jobs))
        self._new += jobs

    def _reference_of(self, job: Job) -> FinishedFile | None:
        root = job.origin.of if job.origin is not None and job.id not in self._references else ""
        reference = self._references.get(job.id) or self._references.get(root)
        if reference is None or reference.id == job.id or reference.id not in self._records:
            return None
        return self._file(reference)

    def _file(self, job: Job) -> FinishedFile:
        return FinishedFile(job.id, str(self._batch.path_of(job)), job.output.scale)

    def _question(self, reference: FinishedFile | None) -> str:
        """What is asked of a clip, as one text: records that answer it needn't be made again."""
        pixels = self._records[reference.job].pixels_sha256 if reference is not None else None
        return json.dumps([metrics.QUALITY_VERSION, self._names, pixels])
