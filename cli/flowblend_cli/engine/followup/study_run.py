"""StudyRun: keeps records of a run, has its clips measured, and queues what that leads to.

The batch loop tells it which files are published, previewed and failed, and asks it for further
jobs: finals of drafts, and clips that are rendered again with other settings.
"""

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
from flowblend_cli.engine.followup.adaptation import Adaptations, MeasuredClip
from flowblend_cli.engine.followup.measurer import FinishedFile, Measurement, Measurer, Request
from flowblend_cli.engine.followup.pruning import DraftPruner, dropped
from flowblend_cli.events import JobDropped, JobMeasured, JobsAdded, Message, Reporter, Waiting
from flowblend_cli.jobs import Batch, Job, references
from flowblend_cli.planning.metrics import metrics_of, score_of
from flowblend_cli.planning.ordering import ordered
from flowblend_cli.study import Selection
from flowblend_cli.text import count
from flowblend_cli.utils.worker_process import POLL_S
from flowblend_plugin import metrics

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

RECIPE_VERSION = 1
_LONG_WAIT_S = 1.0
_FRAMES_KEPT = 4  # of clips that wait for one reference; the others are read from their files
Check = Callable[[], None]


class NullStudy:
    """What a run does beside rendering where nothing is kept, measured or followed up.

    Args:
        batch: The jobs.
    """

    time_repeats = 1  # how often every job is rendered
    is_waiting = False  # whether measurements are on their way, which may lead to further jobs
    needs_frames = False  # whether clips are measured, which their files are too lossy for
    has_gaps = False  # whether drafts lead to no final, since none of them has a score

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def begin(self) -> list[Job]:
        """Keep the recipe, and see that what it asks for can be measured.

        Returns:
            The batch's jobs in the order to render them.

        Raises:
            UsageError: The recipe asks for measurements, and what they need isn't installed.
            OutputError: The recipe can't be kept.
        """
        return ordered(self._batch.jobs)

    def is_up_to_date(self, job: Job, pixels: str) -> bool:
        """Whether a finished job is measured and timed as asked, and nothing can follow from it."""
        return False

    def record_of(self, job: Job, pixels: str) -> JobRecord:
        """What is known of a job's finished file; an empty record where nothing is."""
        return JobRecord(job.id, job.recipe, pixels)

    def keep(self, record: JobRecord) -> None:
        """Write a job's record, which replaces the former one.

        Raises:
            OutputError: It can't be written.
        """

    def on_published(
        self, job: Job, record: JobRecord, frames: Frames | None, check: Check
    ) -> None:
        """Have a job measured that has its file now, if that wasn't done before.

        Args:
            job: The job.
            record: Its record.
            frames: Its pixels; None where only the file is left.
            check: See ``Measurer.submit``.
        """

    def on_failed(self, job: Job) -> None:
        """Note that a job has no file, and nobody need wait for its measurement."""

    def measure_unreferenced(self, check: Check) -> bool:
        """Have clips measured whose reference doesn't come any more; whether there are any.

        Args:
            check: See ``Measurer.submit``.
        """
        return False

    def new_jobs(self, wait_s: float = 0.0) -> list[Job]:
        """Take in the measurements that are done, and hand out the jobs that they lead to.

        Args:
            wait_s: How long to wait for the first one.

        Raises:
            OutputError: A record can't be written.
        """
        return []

    def wait(self, check: Check) -> list[Job]:
        """Wait until a measurement is done, and hand out what the ones so far lead to.

        Args:
            check: Called again and again meanwhile; may raise.
        """
        return []

    def selection_of(self, job: Job) -> tuple[Selection, list[Job]] | None:
        """The selection, and its drafts, to preview before this draft is rendered."""
        return None

    def known_looks(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """The drafts that an earlier run previewed already; previews of the others follow.

        Args:
            selection: What the drafts compete for.
            keys: Job key of each draft.
        """
        return set()

    def on_preview(self, job: Job, frames: Frames, elapsed_s: float, check: Check) -> None:
        """Have a draft's preview, which took so many seconds, measured."""

    def drop_drafts(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """Give up the drafts that don't look promising, keep the choice, and tell it.

        Args:
            selection: The selection; all previews of its drafts are measured.
            keys: Job key of each draft.

        Returns:
            Ids of the drafts that aren't rendered.

        Raises:
            OutputError: The choice can't be kept.
        """
        return set()

    def close(self) -> None:
        """Stop measuring, and keep what is measured already; nothing more follows from it.

        Raises:
            OutputError: A record can't be written.
        """


class StudyRun(NullStudy):
    """Carries out a batch's study beside its renders; see ``NullStudy`` for what each method means.

    Args:
        batch: The jobs, and what is measured of them.
        tell: Who is told what happens.
        overrides: The ``--set`` options of the run, for the kept recipe.
        complaints: What people found wrong with clips, by job.
    """

    def __init__(
        self,
        batch: Batch,
        tell: Reporter,
        overrides: Sequence[str],
        complaints: Mapping[str, str],
    ) -> None:
        super().__init__(batch)
        self._tell = tell
        self._overrides = overrides
        self._study = batch.study
        self._weights = dict(self._study.measure.weights)
        self._adaptations = Adaptations(self._study, complaints)
        self._has_followups = bool(self._study.selections or self._study.adapt or complaints)
        self._pruner = DraftPruner(batch, self._study.selections)
        self._references = references(batch.whole)
        own = {job.id for job in (*batch.jobs, *batch.reserve)}
        self._elsewhere = {job.id for job in self._references.values()} - own
        self._compared = {job.id for job in self._references.values()}
        self._names: tuple[str, ...] = ()
        self._measurer = Measurer()
        self._jobs: dict[str, Job] = {}
        self._coming = {job.id for job in batch.jobs}  # neither published, failed nor dropped yet
        self._records: dict[str, JobRecord] = {}
        self._keys: dict[str, str] = {}
        self._looks: dict[str, Look] = {}
        self._looking: tuple[Selection, Mapping[str, str]] | None = None
        self._unreferenced: dict[str, list[tuple[Job, JobRecord, Frames | None]]] = {}
        self._ids = {job.id for job in (*batch.whole.jobs, *batch.whole.reserve)}
        self._new: list[Job] = []
        self._is_over = False
        self.time_repeats = self._study.time_repeats

    @property
    def is_waiting(self) -> bool:  # type: ignore[override]
        """See ``NullStudy``."""
        return self._measurer.outstanding > 0

    def begin(self) -> list[Job]:
        """See ``NullStudy``."""
        self._names = metrics_of(self._study)
        self.needs_frames = bool(self._names)
        if not self._names and self._study.measure.names is None:
            self._tell(Message(f"nothing is measured: {metrics.missing()}"))
        batch = self._batch.whole
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
        return ordered(self._batch.jobs, self._compared)

    def is_up_to_date(self, job: Job, pixels: str) -> bool:
        """See ``NullStudy``."""
        if self._has_followups or self.time_repeats > 1 or job.id in self._compared:
            return False
        self._look_elsewhere(job)
        key = self._measurement_key(self._reference_of(job))
        return not self._names or is_measured(self._batch.output_dir, job.id, pixels, key)

    def record_of(self, job: Job, pixels: str) -> JobRecord:
        """See ``NullStudy``."""
        record = self._records.get(job.id) or read_record(self._batch.output_dir, job.id)
        if record is None or record.pixels_sha256 != pixels:
            record = JobRecord(job.id, job.recipe, pixels)
        self._records[job.id] = record
        return record

    def keep(self, record: JobRecord) -> None:
        """See ``NullStudy``."""
        self._records[record.job] = record
        write_record(self._batch.output_dir, record)

    def on_published(
        self, job: Job, record: JobRecord, frames: Frames | None, check: Check
    ) -> None:
        """See ``NullStudy``."""
        self._jobs[job.id], self._records[job.id] = job, record
        self._coming.discard(job.id)
        expected = self._references.get(job.id)
        self._look_elsewhere(job)
        if expected is not None and expected.id in self._coming | self._elsewhere:
            # Another slot or shard may have its reference; what is compared with it waits.
            waiting = self._unreferenced.setdefault(expected.id, [])
            waiting.append((job, record, frames if len(waiting) < _FRAMES_KEPT else None))
            return
        self._measure(job, record, frames, check)
        self._measure_waiting(job.id, check)

    def measure_unreferenced(self, check: Check) -> bool:
        """See ``NullStudy``."""
        waiting = list(self._unreferenced)
        for reference in waiting:
            self._look_elsewhere(self._unreferenced[reference][0][0])
            self._measure_waiting(reference, check)
        return bool(waiting)

    def _look_elsewhere(self, job: Job) -> None:
        """See whether another shard has rendered a job's reference by now."""
        reference = self._references.get(job.id)
        if reference is None or reference.id not in self._elsewhere:
            return
        record = read_record(self._batch.output_dir, reference.id)
        if record is not None and self._batch.path_of(reference).is_file():
            self._elsewhere.discard(reference.id)
            self._records[reference.id] = replace(record, tracks=())

    def _measure_waiting(self, reference: str, check: Check) -> None:
        """Measure the clips that waited for a reference, with it or, where it has none, without."""
        for job, record, frames in self._unreferenced.pop(reference, ()):
            self._measure(job, record, frames, check)

    def _measure(self, job: Job, record: JobRecord, frames: Frames | None, check: Check) -> None:
        reference = self._reference_of(job)
        key = self._measurement_key(reference)
        if not self._names or record.measurement_key == key:
            self._on_scored(job, record)
            return
        self._keys[job.id] = key
        request = Request(
            job.id,
            self._names,
            tracks=True,
            is_reference=job.id in self._compared,
            reference=reference,
            file=self._file(job) if frames is None else None,
        )
        self._measurer.submit(request, frames, check)

    def on_failed(self, job: Job) -> None:
        """See ``NullStudy``."""
        self._coming.discard(job.id)
        self._measure_waiting(job.id, lambda: None)
        self._on_draft_scored(job, None)
        self._mark_accepted(job)

    def new_jobs(self, wait_s: float = 0.0) -> list[Job]:
        """See ``NullStudy``."""
        while (found := self._measurer.answer(wait_s)) is not None:
            self._on_measured(found)
            wait_s = 0.0
        new, self._new = self._new, []
        return new

    def wait(self, check: Check) -> list[Job]:
        """See ``NullStudy``."""
        began = time.monotonic()
        before = self._measurer.outstanding
        new: list[Job] = []
        try:
            while self._measurer.outstanding == before:
                check()
                new += self.new_jobs(POLL_S)
                if time.monotonic() - began > _LONG_WAIT_S:
                    self._tell(Waiting(f"measuring {count(before, 'clip')}"))
        finally:
            self._tell(Waiting(""))
        return new

    def close(self) -> None:
        """See ``NullStudy``."""
        self._is_over = True
        try:
            self.new_jobs()
        finally:
            self._measurer.close()

    def selection_of(self, job: Job) -> tuple[Selection, list[Job]] | None:
        """See ``NullStudy``."""
        selection = self._pruner.selection_of(job)
        return None if selection is None else (selection, self._pruner.jobs_of(selection))

    def known_looks(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """See ``NullStudy``."""
        self._looking = selection, keys
        key = self._measurement_key(None)
        known = read_looks(self._batch.output_dir, selection, key, keys)
        self._looks |= known
        return set(known)

    def on_preview(self, job: Job, frames: Frames, elapsed_s: float, check: Check) -> None:
        """See ``NullStudy``."""
        self._looks[job.id] = Look(None, round(elapsed_s, 3))
        self._jobs[job.id] = job
        self._measurer.submit(Request(job.id, self._names, kind="preview"), frames, check)

    def drop_drafts(self, selection: Selection, keys: Mapping[str, str]) -> set[str]:
        """See ``NullStudy``."""
        drafts = self._pruner.jobs_of(selection)
        looks = {draft.id: self._looks.get(draft.id, Look()) for draft in drafts}
        self._keep_looks(selection, keys, looks)
        scores = {draft: look.score for draft, look in looks.items()}
        reasons = dropped(selection, drafts, scores)
        for draft in drafts:
            if draft.id in reasons:
                score = scores[draft.id] or 0.0
                reason = reasons[draft.id]
                self._tell(JobDropped(draft.id, draft.scene, draft.seed, reason, score))
                self.on_failed(draft)
        return set(reasons)

    def _keep_looks(
        self, selection: Selection, keys: Mapping[str, str], looks: Mapping[str, Look]
    ) -> None:
        key = self._measurement_key(None)
        write_looks(self._batch.output_dir, selection, key, keys, looks)

    def _on_measured(self, found: Measurement) -> None:
        job = self._jobs[found.job]
        score = score_of(job.prompt, found.metrics, self._weights)
        if found.kind == "preview":
            self._looks[job.id] = replace(self._looks[job.id], score=score)
            if self._looking is not None:  # a run that is interrupted here needn't look again
                seen = {one: look for one, look in self._looks.items() if look.score is not None}
                self._keep_looks(*self._looking, seen)
            return
        record = self._records[job.id]
        if found.error:
            what = "wholly measured" if found.metrics else "measured"
            self._complain(job, f"{job.id} isn't {what}: {found.error}")
        if found.metrics or not found.error:
            record = replace(
                record,
                metrics=found.metrics,
                tracks=found.tracks,
                measured_on="file" if found.on_file else "frames",
                measurement_key="" if found.error else self._keys[job.id],
            )
            self.keep(record)
            self._tell(JobMeasured(job.id, job.scene, dict(found.metrics), score))
        self._on_scored(job, record)

    def _on_scored(self, job: Job, record: JobRecord) -> None:
        """Follow up a job of which all is known that will be known."""
        if not self._has_followups:
            # Nobody asks for it again but as a reference, and tracks are large.
            self._jobs.pop(job.id, None)
            self._records.pop(job.id, None)
            if job.id in self._compared:
                self._records[job.id] = replace(record, tracks=())
            return
        score = score_of(job.prompt, record.metrics, self._weights)
        self._on_draft_scored(job, score)
        further = self._adaptations.add(MeasuredClip(job, record.metrics, score))
        if further is None or further.origin is None:
            self._mark_accepted(job)
        elif further.id in self._ids:
            told = f"{further.id} isn't rendered: the recipe has a job of that name"
            self._complain(job, told)
            self._mark_accepted(job)
        else:
            self._queue([further], f"{job.id} is rendered again: {further.origin.reason}")

    def _mark_accepted(self, job: Job) -> None:
        """Say in the records which of a job and its rounds is kept, now that no more will come."""
        for one, is_kept in self._adaptations.verdicts(job).items():
            if self._records[one].accepted is not is_kept:
                self.keep(replace(self._records[one], accepted=is_kept))

    def _on_draft_scored(self, job: Job, score: float | None) -> None:
        for finals, told in self._pruner.on_scored(job.id, score):
            self._queue(finals, told)
            if not finals:
                self.has_gaps = True
                told = f"scene {job.scene}: none of its drafts has a score, so none is finished"
                self._complain(job, told)

    def _queue(self, jobs: Sequence[Job], told: str) -> None:
        if self._is_over or not jobs:
            return
        added = {job.id for job in jobs}
        self._ids |= added
        self._coming |= added
        self._tell(Message(told))
        self._tell(JobsAdded(len(jobs)))
        self._new += jobs

    def _complain(self, job: Job, text: str) -> None:
        self._tell(Message(text, is_error=True, job=job.id))

    def _reference_of(self, job: Job) -> FinishedFile | None:
        root = job.origin.of if job.origin is not None and job.id not in self._references else ""
        reference = self._references.get(job.id) or self._references.get(root)
        if reference is None or reference.id == job.id or reference.id not in self._records:
            return None
        return self._file(reference)

    def _file(self, job: Job) -> FinishedFile:
        return FinishedFile(job.id, str(self._batch.path_of(job)), job.output.scale)

    def _measurement_key(self, reference: FinishedFile | None) -> str:
        """What is measured, as one text: records that have it needn't be made again."""
        pixels = self._records[reference.job].pixels_sha256 if reference is not None else None
        return json.dumps([metrics.QUALITY_VERSION, self._names, pixels])
