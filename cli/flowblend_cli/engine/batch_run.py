"""Render a batch: what is done is skipped, what fails fails alone, models load at most once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median
from typing import Any

from flowblend_cli.artifacts.existing import Finder
from flowblend_cli.artifacts.manifest import Entry, Manifest
from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.engine.executors.base import Render, Renders
from flowblend_cli.engine.executors.child_process import WorkerRenderer
from flowblend_cli.engine.executors.in_process import Renderer
from flowblend_cli.engine.extra_renders import look_at, time_again
from flowblend_cli.engine.followup.study_run import Studying
from flowblend_cli.engine.limits import LimitReached, Limits, Timing
from flowblend_cli.engine.output_folder import output_lock, sweep
from flowblend_cli.engine.publisher import Pending, Publication, Publisher
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.engine.signals import StatusSignal, StopSignals
from flowblend_cli.errors import ENDS_THE_BATCH, RemoteError, StopRequested
from flowblend_cli.events import JobDone, JobFailed, JobSkipped, Reporter, Reporters, Summary
from flowblend_cli.jobs import AdapterSpec, Batch, Job, ModelSpec
from flowblend_cli.models.hub.fetch import prepare_models
from flowblend_cli.models.identity import Identity, job_key, model_identity
from flowblend_cli.study import Selection
from flowblend_plugin.errors import FlowBlendError

SOME_FAILED = 1
_NOT_RENDERED = "not rendered: see the error of the batch"
_POLL_S = 0.1


class BatchRun:
    """One run over a batch.

    Args:
        batch: The jobs.
        reporter: Who is told what happens.
        options: What the run may do, and when it stops.
        anew: Render our own finished files again, too.
        warm_up: A job that is sampled and thrown away before the first one, so that what happens
            once (memory, kernels, the prompt's embedding) isn't in anybody's seconds.
        overrides: The ``--set`` options that made the batch from its recipe; given where records
            are kept beside the files, and the batch's study is carried out.
        complaints: What people found wrong with clips, by job; these are adapted.
        timing: Tells how long jobs take, for what is to end in time.
    """

    def __init__(
        self,
        batch: Batch,
        reporter: Reporter,
        *,
        options: RunOptions | None = None,
        anew: bool = False,
        warm_up: Job | None = None,
        overrides: Sequence[str] | None = None,
        complaints: Mapping[str, str] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._batch = batch
        self._options = options or RunOptions()
        self._anew = anew
        self._limits = Limits(self._options, len(batch.jobs), timing)
        self._reporter = reporter = Reporters([self._limits, reporter])
        self._recipe_dir = batch.source.parent
        self._stop = StopSignals(reporter.message, self._limits.check)
        renderer = WorkerRenderer if self._options.isolated else Renderer
        self._renderer: Renders = renderer(
            self._recipe_dir, reporter, warm_up, None if anew else batch.output_dir
        )
        self._publisher = Publisher(self._recipe_dir)
        self._study = Studying(batch, reporter, overrides, complaints or {})
        self._is_kept = overrides is not None
        self._finder = Finder(None)
        self._identities: dict[tuple[ModelSpec, tuple[AdapterSpec, ...]], Identity] = {}
        self._queue: list[Job] = []
        self._rendered = self._skipped = self._failed = 0
        self._exit_code = 0

    @property
    def remaining(self) -> int:
        """How many jobs this run has neither done nor seen fail."""
        return self._limits.remaining

    def run(self) -> int:
        """Render what isn't finished yet, measure it, and render what that leads to.

        Returns:
            The exit code: 0 all is done, 1 some jobs failed, 2 the recipe asks for what can't be
            done, 3 models are missing, 4 the disk failed, 128 + signal after a signal.

        Raises:
            LockedError: Another run holds the output folder.
        """
        began, reporter = time.monotonic(), self._reporter
        asked = StatusSignal(lambda: reporter.answer(self._limits.line()))
        with output_lock(self._batch.output_dir), self._reporter, asked, self._stop:
            sweep(self._batch.output_dir, map(self._batch.path_of, self._batch.jobs))
            try:
                with self._errors_told():
                    may_fetch = self._options.allow_download
                    tell, check = self._reporter.message, self._stop.check
                    prepare_models(self._batch, may_fetch, tell, check)
                    for job in (*self._batch.jobs, *self._batch.reserve):
                        self._identity(job)  # every model is there, before any of them works
                    self._queue = self._study.begin()
                    if self._is_kept:
                        manifest = Manifest(self._batch.output_dir, self._complain)
                        self._finder = Finder(manifest, verify=self._options.verify)
                    self._work()
                    self._stop.check()
                while self._publisher.outstanding:  # what is rendered is kept, whatever happened
                    with self._errors_told():
                        self._settle(_POLL_S)
            finally:
                self._close()
                self._finder.close()
                elapsed = round(time.monotonic() - began, 3)
                if told := self._limits.told():
                    self._reporter.message(told)
                counts = (self._rendered, self._skipped, self._failed)
                self._reporter.event(Summary(*counts, elapsed, self.remaining))
        is_short = self._failed or self._study.has_gaps
        return self._exit_code or (SOME_FAILED if is_short else 0)

    def _close(self) -> None:
        """End the helpers, and tell of the files that were ready all the same."""
        self._renderer.close()
        self._publisher.close()
        with self._errors_told():
            self._settle()
        with self._errors_told():
            self._study.close()

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Turn what ends the batch into its exit code; the first one counts."""
        try:
            yield
        except LimitReached:
            return
        except StopRequested as request:
            if request.__cause__ is None:
                self._exit_code = self._exit_code or self._stop.exit_code or SOME_FAILED
            else:
                self._end_with(request.__cause__)
        except (*ENDS_THE_BATCH, FlowBlendError) as error:
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        for line in str(error).split("\n"):
            self._complain(line)
        self._exit_code = self._exit_code or int(getattr(error, "exit_code", 2))

    def _check(self) -> None:
        """What is done between steps: raise if the batch is to stop, and see what is published."""
        self._stop.check()
        self._settle()

    def _settle(self, wait_s: float = 0.0) -> None:
        """Go on with what is published by now, or within some time.

        Raises:
            StopRequested: The disk failed; its cause says how.
        """
        while (done := self._publisher.published(wait_s)) is not None:
            wait_s = 0.0
            try:
                self._take(done)
            except ENDS_THE_BATCH as error:
                raise StopRequested from error

    def _work(self) -> None:
        """One job after the other, those of the models in memory first, until no more can come."""
        while True:
            self._queue += self._study.new_jobs()
            if self._queue:
                self._stop.check_signals()
                self._settle()
                with suppress(LimitReached):
                    self._do(self._next())
            elif self._publisher.outstanding:
                self._stop.check_signals()
                self._settle(_POLL_S)
            elif self._study.is_waiting:
                self._queue += self._study.wait(self._check)
            else:
                return

    def _next(self) -> Job:
        """Take the next job out of the queue."""
        place, model = 0, self._renderer.model
        if model is not None:
            place = next((n for n, one in enumerate(self._queue) if one.model == model), 0)
        return self._queue.pop(place)

    def _do(self, job: Job) -> None:
        """Render a job, or find that it needs no render."""
        look = None if self._limits.reached else self._study.to_look_at(job)
        if look is not None:
            dropped = self._look(*look)
            self._queue = [one for one in self._queue if one.id not in dropped]
            if job.id in dropped:
                return
        path = self._batch.path_of(job)
        identity = self._identity(job)
        pending = Pending(job, path, job_key(job, identity), identity)
        found = self._finder.find(job, path, pending.key)
        is_done = found.done is not None and not self._anew
        if not is_done and not self._limits.lets(job):
            return  # it remains
        if found.obstacle:
            self._fail(job, found.obstacle)
            return
        if found.is_damaged:
            self._complain(f"{path.name} is damaged and is rendered again")
        if found.done is not None and is_done:
            self._skip(pending, found.done)
        else:
            self._render(pending)

    def _skip(self, pending: Pending, done: Entry) -> None:
        """Leave a finished file as it is; what isn't known of it yet is timed and measured."""
        job, seed = pending.job, done.seed
        skipped = JobSkipped(job.id, job.scene, seed, str(pending.path))
        self._forget(pending)  # a run may have been killed right after publishing
        if self._study.needs_nothing(job, done.pixels_sha256):
            self._skipped += 1
            self._reporter.event(skipped)
            return
        record = self._study.record_of(job, done.pixels_sha256)
        is_short = self._study.time_repeats > max(1, len(record.elapsed_s))
        if is_short and not self._limits.reached:
            publishing_s = record.elapsed_s[0] - done.sampling_s if record.elapsed_s else 0.0
            self._time(record, job, seed, max(0.0, publishing_s))
        self._skipped += 1
        self._reporter.event(skipped)
        known = self._study.record_of(job, record.pixels_sha256)
        self._study.finished(replace(job, seed=seed), known, None, self._stop.check)

    def _look(self, selection: Selection, drafts: Sequence[Job]) -> set[str]:
        """Look where the first steps of all drafts lead; ids of those that aren't worth more."""
        keys = {draft.id: job_key(draft, self._identity(draft)) for draft in drafts}
        look_at(
            selection,
            drafts,
            keys,
            renderer=self._renderer,
            study=self._study,
            reporter=self._reporter,
            check=self._check,
        )
        while self._study.is_waiting:
            self._queue += self._study.wait(self._check)
        return self._study.drop(selection, keys)

    def _identity(self, job: Job) -> Identity:
        weights = (job.model, job.adapters)
        if weights not in self._identities:
            self._identities[weights] = model_identity(job.model, self._recipe_dir, job.adapters)
        return self._identities[weights]

    def _render(self, pending: Pending) -> None:
        """Render a job, and have it published while the next one renders."""
        job = pending.job
        keeping = self._keeping(pending)
        seed = job.seed or (keeping.seed() if keeping else None) or draw_seed()
        self._renderer.load(job.model, self._check)
        self._check()
        try:
            render = self._renderer.render(job, seed, self._check, keeping)
        except ENDS_THE_BATCH:
            self._fail(job, _NOT_RENDERED, seed)
            raise
        except Exception as error:  # noqa: BLE001 - one job's failure must not end the night
            self._fail(job, reason_of(error), seed)
            return
        self._publisher.submit(pending, render, self._settle)
        while self._study.time_repeats > 1 and self._publisher.outstanding:
            self._settle(_POLL_S)  # encoding beside it would be in its seconds

    def _keeping(self, pending: Pending) -> Keeping | None:
        """Where a job's state is kept; None where its bits are to be made from nothing."""
        folder, every = self._batch.output_dir, self._options.checkpoint_every
        return None if self._anew else Keeping.of(folder, pending.job.id, pending.key, every)

    def _forget(self, pending: Pending) -> None:
        keeping = self._keeping(pending)
        if keeping is not None:
            keeping.forget()

    def _take(self, done: Publication) -> None:
        """Go on with a job that has its file now, or has none because of an error."""
        job, render = done.pending.job, done.render
        if done.error is not None:
            ends = isinstance(done.error, ENDS_THE_BATCH)
            self._fail(job, _NOT_RENDERED if ends else reason_of(done.error), render.seed)
            if ends:
                raise done.error
            return
        self._finder.published(
            job,
            done.pending.path,
            done.pending.key,
            pixels=render.pixels_sha256,
            seed=render.seed,
            sampling_s=round(render.elapsed_s, 3),
        )
        self._forget(done.pending)
        record = done.record
        self._rendered += 1
        try:
            self._study.keep(record)
            record = self._time(record, job, render.seed, done.elapsed_s)
        finally:  # also where the disk or a signal ends the batch: the file is there
            self._reporter.event(self._done(done.pending, render))
        # With the seed that was drawn, so that what follows has the same noise.
        same = replace(job, seed=render.seed)
        self._study.finished(same, record, render.frames, self._stop.check)

    def _time(self, record: JobRecord, job: Job, seed: int, publishing_s: float) -> JobRecord:
        return time_again(
            record,
            replace(job, seed=seed),
            publishing_s,
            renderer=self._renderer,
            study=self._study,
            reporter=self._reporter,
            check=self._stop.check,
        )

    def _done(self, pending: Pending, render: Render) -> JobDone:
        job = pending.job
        record = self._study.record_of(job, render.pixels_sha256)
        return JobDone(
            job=job.id,
            scene=job.scene,
            seed=render.seed,
            num_inference_steps=job.num_inference_steps,
            path=str(pending.path),
            elapsed_s=round(median(record.elapsed_s), 3),
            denoisers=render.denoisers,
            peak_rss_bytes=render.peak_rss_bytes,
            peak_vram_bytes=render.peak_vram_bytes,
            pixels_sha256=render.pixels_sha256,
        )

    def _complain(self, text: str) -> None:
        self._reporter.message(text, error=True)

    def _fail(self, job: Job, error: str, seed: int | None = None) -> None:
        self._failed += 1
        self._reporter.event(
            JobFailed(job.id, job.scene, job.seed if seed is None else seed, error)
        )
        self._study.failed(job)


def reason_of(error: Exception) -> str:
    """What a job failed of, in words."""
    kind = error.kind if isinstance(error, RemoteError) else type(error).__name__
    return f"{kind}: {error}"


def draw_seed() -> int:
    """Draw a seed for a job whose recipe says 0: 1 to 2**31 - 1."""
    return 1 + secrets.randbelow(2**31 - 1)


def run(batch: Batch, reporter: Reporter, **options: Any) -> int:
    """Render a batch; see ``BatchRun``, whose options these are."""
    return BatchRun(batch, reporter, **options).run()
