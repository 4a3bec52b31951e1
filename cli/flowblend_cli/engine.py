"""Render a batch: what is done is skipped, what fails fails alone, models load at most once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from flowblend_cli.artifacts.finished import FileState, Finished, inspect_final
from flowblend_cli.errors import ENDS_THE_BATCH
from flowblend_cli.events import JobDone, JobFailed, JobSkipped, Summary
from flowblend_cli.jobs import AdapterSpec, Batch, Job, ModelSpec
from flowblend_cli.keeping import Keeping
from flowblend_cli.keys import Identity, job_key, model_identity
from flowblend_cli.locking import output_lock
from flowblend_cli.looking import look_at
from flowblend_cli.options import RunOptions
from flowblend_cli.progress import Reporter
from flowblend_cli.publishing import Pending, Publication, Publisher
from flowblend_cli.records import JobRecord
from flowblend_cli.remote import RemoteError, WorkerRenderer
from flowblend_cli.rendering import Render, Renderer, Renders
from flowblend_cli.stopping import StopRequested, StopSignals
from flowblend_cli.study import Selection
from flowblend_cli.studying import Studying
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
    ) -> None:
        self._batch = batch
        self._options = options or RunOptions()
        self._anew = anew
        self._reporter = reporter
        self._recipe_dir = batch.source.parent
        self._stop = StopSignals(reporter.message)
        renderer = WorkerRenderer if self._options.isolated else Renderer
        self._renderer: Renders = renderer(
            self._recipe_dir, reporter, warm_up, None if anew else batch.output_dir
        )
        self._publisher = Publisher(self._recipe_dir)
        self._study = Studying(batch, reporter, overrides, complaints or {})
        self._identities: dict[tuple[ModelSpec, tuple[AdapterSpec, ...]], Identity] = {}
        self._queue: list[Job] = []
        self._rendered = self._skipped = self._failed = 0
        self._exit_code = 0

    def run(self) -> int:
        """Render what isn't finished yet, measure it, and render what that leads to.

        Returns:
            The exit code: 0 all is done, 1 some jobs failed, 2 the recipe asks for what can't be
            done, 3 models are missing, 4 the disk failed, 128 + signal after a signal.

        Raises:
            LockedError: Another run holds the output folder.
        """
        began = time.monotonic()
        with output_lock(self._batch.output_dir), self._reporter, self._stop:
            try:
                with self._errors_told():
                    for job in (*self._batch.jobs, *self._batch.reserve):
                        self._identity(job)  # every model is there, before any of them works
                    self._queue = self._study.begin()
                    self._work()
                    self._stop.check()
                while self._publisher.outstanding:  # what is rendered is kept, whatever happened
                    with self._errors_told():
                        self._settle(_POLL_S)
            finally:
                self._close()
                elapsed = round(time.monotonic() - began, 3)
                self._reporter.event(Summary(self._rendered, self._skipped, self._failed, elapsed))
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
        except StopRequested as request:
            if request.__cause__ is None:
                self._exit_code = self._exit_code or self._stop.exit_code or SOME_FAILED
            else:
                self._end_with(request.__cause__)
        except (*ENDS_THE_BATCH, FlowBlendError) as error:
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        self._complain(str(error))
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
                self._check()
                loaded = [job for job in self._queue if job.model == self._renderer.model]
                job = (loaded or self._queue)[0]
                self._queue.remove(job)
                self._do(job)
            elif self._publisher.outstanding:
                self._stop.check()
                self._settle(_POLL_S)
            elif self._study.is_waiting:
                self._queue += self._study.wait(self._check)
            else:
                return

    def _do(self, job: Job) -> None:
        """Render a job, or find that it needs no render."""
        look = self._study.to_look_at(job)
        if look is not None:
            dropped = self._look(*look)
            self._queue = [one for one in self._queue if one.id not in dropped]
            if job.id in dropped:
                return
        path = self._batch.path_of(job)
        identity = self._identity(job)
        pending = Pending(job, path, job_key(job, identity), identity)
        found = inspect_final(path)
        owner = _other_owner(found, job)
        if owner:
            self._fail(
                job,
                f"{path} belongs to {owner} and is left alone: move it away, or change "
                "recipe.output_dir or recipe.filename",
            )
            return
        if found.state is FileState.DAMAGED:
            self._complain(f"{path.name} is damaged and is rendered again")
        document = found.document or {}
        is_same = found.state is FileState.INTACT and document.get("job_key") == pending.key
        if is_same and not self._anew:
            self._skip(pending, document)
        else:
            self._render(pending)

    def _skip(self, pending: Pending, document: dict[str, Any]) -> None:
        """Leave a finished file as it is; what isn't known of it yet is timed and measured."""
        job = pending.job
        seed = recorded(document, "seed", job.seed)
        record = self._study.record_of(job, str(document.get("pixels_sha256")))
        if self._study.time_repeats > max(1, len(record.elapsed_s)):
            sampling_s = recorded(document, "sampling_s", 0.0)
            publishing_s = record.elapsed_s[0] - sampling_s if record.elapsed_s else 0.0
            self._time(record, job, seed, max(0.0, publishing_s))
        self._skipped += 1
        self._forget(pending)  # a run may have been killed right after publishing
        self._reporter.event(JobSkipped(job.id, job.scene, seed, str(pending.path)))
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
        self._forget(done.pending)
        record = _record_of(job, render, done.elapsed_s)
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
        """Render a job that has its file for its seconds and bits alone, as often as is asked.

        Publishing is timed once and counted in each.
        """
        repeats = self._study.time_repeats
        while len(record.elapsed_s) < repeats:
            self._stop.check()
            try:
                render = self._renderer.render(job, seed, self._stop.check)
            except ENDS_THE_BATCH:
                raise
            except Exception as error:  # noqa: BLE001 - its file is there, only times are missing
                number = len(record.elapsed_s) + 1
                told = f"{job.id}: render {number} of {repeats} for its seconds failed: {error}"
                self._reporter.message(told, error=True)
                return record
            record = replace(
                record,
                elapsed_s=(*record.elapsed_s, round(render.elapsed_s + publishing_s, 3)),
                pixels=(*record.pixels, render.pixels_sha256),
            )
            self._study.keep(record)
        if repeats > 1:
            same, renders = record.pixels.count(record.pixels_sha256), len(record.pixels)
            told = f"{job.id}: {same} of {renders} renders have the same pixels"
            self._reporter.message(told, error=same < renders)
        return record

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


def _other_owner(found: Finished, job: Job) -> str:
    """Whose file it is, if it isn't this recipe's; empty if it is, or if there is none."""
    if found.state is FileState.MISSING:
        return ""
    known = found.recipe is not None or found.state is FileState.INTACT
    if known and found.recipe != job.recipe:
        return f"recipe {found.recipe!r}"
    return "someone else" if found.state is FileState.FOREIGN else ""


def _record_of(job: Job, render: Render, publishing_s: float) -> JobRecord:
    return JobRecord(
        job=job.id,
        recipe=job.recipe,
        pixels_sha256=render.pixels_sha256,
        elapsed_s=(round(render.elapsed_s + publishing_s, 3),),
        pixels=(render.pixels_sha256,),
        step_s=render.step_s,
        peak_rss_bytes=render.peak_rss_bytes,
        peak_vram_bytes=render.peak_vram_bytes,
    )


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


def recorded(document: dict[str, Any], name: str, default: Any) -> Any:
    """One resolved value of a file's document, of the default's type, or the default."""
    resolved = document.get("resolved")
    value = resolved.get(name, default) if isinstance(resolved, dict) else default
    return value if isinstance(value, type(default)) else default
