"""BatchRun: renders a batch; it fills free slots, polls, publishes and follows up, in one loop.

What is done is skipped, what fails fails alone, and models load as rarely as possible. Only this
process writes files, wherever jobs are rendered.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from flowblend_cli.artifacts.existing import Finder, present_files
from flowblend_cli.artifacts.manifest import Entry, Manifest
from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.engine.executors.base import (
    Answer,
    Executor,
    FilePlan,
    PreviewResult,
    RenderFailure,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.engine.executors.factory import make_executor
from flowblend_cli.engine.extra_renders import DraftPreviews, TimedRepeats
from flowblend_cli.engine.followup.study_run import NullStudy, StudyRun
from flowblend_cli.engine.job_queue import JobQueue
from flowblend_cli.engine.limits import LimitReached, Limits
from flowblend_cli.engine.output_folder import Claim, network_file_system, output_lock, sweep
from flowblend_cli.engine.publisher import WAITING_CLIPS, Pending, Publication, Publisher
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.engine.signals import StatusSignal, StopSignals
from flowblend_cli.errors import (
    ENDS_THE_BATCH,
    ModelFaultError,
    ModelMissingError,
    RemoteError,
    StopRequested,
)
from flowblend_cli.events import (
    JobAssigned,
    JobDone,
    JobFailed,
    JobRendered,
    JobReturned,
    JobSkipped,
    JobStarted,
    Message,
    Reporter,
    RunEnded,
    RunStarted,
    StepStarted,
    Summary,
    chain,
)
from flowblend_cli.jobs import AdapterSpec, Batch, Job, ModelSpec
from flowblend_cli.models.hub.fetch import prepare_models
from flowblend_cli.models.identity import ResolvedModels, job_key, resolve_models
from flowblend_cli.planning.plan import plan_job
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.utils.files import set_aside
from flowblend_cli.utils.worker_process import POLL_S
from flowblend_plugin.errors import FlowBlendError

SOME_FAILED = 1
_ON_NETWORK = (
    "{} is on a network file system ({}), whose locks other machines may not see: runs agree by "
    "leases there, see docs/scaling.md"
)
_NOT_RENDERED = "not rendered: see the error of the batch"
OnAnswer = Callable[[Answer], None]


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
        progress: Counts for whoever shows this run; made here if left out.
        executor: Who renders; chosen by the options if left out.
        publisher: Who makes files of what is rendered; the usual one if left out.
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
        progress: RunProgress | None = None,
        executor: Executor | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        self._batch = batch
        self._options = options or RunOptions()
        self._anew = anew
        self._progress = progress or RunProgress(batch)
        self._tell = chain([self._progress, reporter])
        self._limits = Limits(self._options, self._progress)
        self._recipe_dir = batch.source.parent
        self._stop = StopSignals(lambda text: self._tell(Message(text)))
        embeddings_dir = None if anew else batch.output_dir
        self._resolved: dict[tuple[ModelSpec, tuple[AdapterSpec, ...]], ResolvedModels] = {}
        self._executor = executor or make_executor(
            self._options, warm_up, embeddings_dir, self._resolved.values()
        )
        self._publisher = publisher or Publisher(self._recipe_dir)
        self._study: NullStudy = NullStudy(batch)
        if overrides is not None:
            self._study = StudyRun(batch, self._tell, overrides, complaints or {})
        self._is_kept = overrides is not None
        self._check_hold: Callable[[], None] = lambda: None
        self._finder = Finder(None)
        self._planned: dict[tuple[Any, ...], str] = {}
        self._queue = JobQueue()
        # By the request's number: its job, and what goes on with its answer.
        self._under_way: dict[int, tuple[str, OnAnswer]] = {}
        self._ids_under_way: set[str] = set()
        self._requests = 0
        self._repeats: TimedRepeats | None = None
        self._previews: DraftPreviews | None = None
        self._stops_at: float | None = None  # when an executor that was told to stop is given up
        self._exit_code = 0

    @property
    def remaining(self) -> int:
        """How many jobs this run has neither done nor seen fail."""
        return self._progress.remaining

    def run(self) -> int:
        """Render what isn't finished yet, measure it, and render what that leads to.

        Returns:
            The exit code: 0 all is done, 1 some jobs failed, 2 the recipe asks for what can't be
            done, 3 models are missing, 4 the disk failed, 128 + signal after a signal.

        Raises:
            LockedError: Another run holds the output folder, or this shard's part of it.
        """
        batch, progress = self._batch, self._progress
        answer = StatusSignal(lambda: self._tell(Message(progress.line(), is_answer=True)))
        claim = Claim(batch.recipe_name, batch.shard)
        lock = output_lock(batch.output_dir, claim, lambda text: self._tell(Message(text)))
        with lock as self._check_hold, answer, self._stop:
            there = present_files(batch.output_dir)
            expected = [job.id for job in batch.jobs if job.filename not in there]
            try:
                self._tell(RunStarted(len(batch.jobs), tuple(expected), self._executor.slots))
                if kind := network_file_system(batch.output_dir):
                    self._tell(Message(_ON_NETWORK.format(batch.output_dir, kind)))
                finals = map(batch.path_of, (*batch.jobs, *batch.reserve))
                sweep(batch.output_dir, finals, batch.shard)
                with self._errors_told():
                    self._begin()
                    self._work()
                    self._stop.check()
                self._stop_renders()
                while self._under_way or self._publisher.outstanding:
                    with self._errors_told():  # what is rendered is kept, whatever happened
                        self._drain()
            finally:
                try:
                    self._close()
                finally:
                    self._end()
        is_short = progress.failed or self._study.has_gaps
        return self._exit_code or (SOME_FAILED if is_short else 0)

    def _begin(self) -> None:
        """See that every model is there before any of them works, and order the jobs."""
        may_fetch = self._options.allow_download
        prepare_models(self._batch, may_fetch, lambda text: self._tell(Message(text)), self._check)
        problems: dict[str, None] = {}
        for job in (*self._batch.jobs, *self._batch.reserve):
            self._stop.check()  # hashing large models takes a while
            try:
                self._models(job)
            except ModelMissingError as error:
                problems |= dict.fromkeys(str(error).split("\n"))
        if problems:
            raise ModelFaultError("\n".join(problems))
        if self._executor.slots > 1:
            self._queue = JobQueue(self._progress.amount_of)
        self._queue.add(self._study.begin())
        if self._is_kept:
            manifest = Manifest(self._batch.output_dir, self._complain, self._batch.shard)
            self._finder = Finder(manifest, verify=self._options.verify)
        if not self._executor.slots:
            self._skip_done()

    def _skip_done(self) -> None:
        """Leave what is done as it is before workers are asked for, who might come in vain."""
        left = []
        while self._queue:
            self._stop.check()
            job = self._queue.take()
            decides = self._study.time_repeats > 1 or self._study.selection_of(job) is not None
            pending = self._pending(job)
            found = self._finder.find(job, pending.path, pending.key)
            if found.done is None or self._anew or decides:
                left.append(job)
            else:
                self._skip(pending, found.done)
        self._queue.add(left)

    def _pending(self, job: Job) -> Pending:
        path, identity = self._batch.path_of(job), self._models(job).identity
        return Pending(job, path, job_key(job, identity), identity)

    def _close(self) -> None:
        """End the helpers, and tell of the files that were ready all the same."""
        self._executor.close()
        self._publisher.close()
        with self._errors_told():
            self._take_published()
        if self._repeats is not None:  # its file is there
            self._tell(self._repeats.event)
        with self._errors_told():
            self._study.close()

    def _end(self) -> None:
        progress = self._progress
        try:
            self._finder.close()
            if reason := self._limits.stop_reason():
                self._tell(Message(reason))
            counts = (progress.rendered, progress.skipped, progress.failed)
            self._tell(Summary(*counts, round(progress.elapsed_s, 3), progress.remaining))
        finally:
            self._tell(RunEnded())

    def _check(self) -> None:
        """Raise if a signal or a limit ends what the run waits for.

        Raises:
            StopRequested: A signal has arrived.
            LimitReached: The time is up.
        """
        self._stop.check()
        self._limits.check_time()

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        """Turn what ends the batch into its exit code; the first one counts."""
        try:
            yield
        except LimitReached:
            return
        except StopRequested:
            self._exit_code = self._exit_code or self._stop.exit_code or SOME_FAILED
        except (*ENDS_THE_BATCH, FlowBlendError) as error:
            for line in str(error).split("\n"):
                self._complain(line)
            self._exit_code = self._exit_code or int(getattr(error, "exit_code", 2))

    def _work(self) -> None:
        """Go on until nothing is queued, under way, or could come of measurements."""
        while True:
            self._take_published()
            self._fill_slots()
            self._queue.add(self._study.new_jobs())
            self._executor.expect(self._wanted_renders)
            if self._under_way or (self._has_more and not self._executor.slots):
                self._poll()
            elif self._publisher.outstanding:
                self._take_published(POLL_S)
            elif self._study.is_waiting:
                self._queue.add(self._study.wait(self._check))
            elif not self._has_more and not self._study.measure_unreferenced(self._check):
                return
            self._stop.check()
            self._check_hold()
            if not self._limits.has_time():
                self._stop_renders()

    @property
    def _has_more(self) -> bool:
        return bool(self._queue or self._previews or self._repeats)

    def _fill_slots(self) -> None:
        """Hand out requests while slots are free, and find what needs none."""
        while self._has_free_slot:
            self._stop.check()
            self._take_published()
            if self._repeats is not None:
                self._repeat(self._repeats)
            elif self._previews is not None:
                if not self._preview(self._previews):
                    return
            elif not self._queue or not self._start(
                self._queue.take(self._executor.models_in_memory())
            ):
                return

    @property
    def _wanted_renders(self) -> int:
        """How many renders wait or are under way, as far as is known."""
        more = len(self._previews.waiting) if self._previews is not None else 0
        return len(self._queue) + len(self._under_way) + more + (self._repeats is not None)

    @property
    def _has_free_slot(self) -> bool:
        if self._study.time_repeats > 1:  # anything beside a render would be in its seconds
            return not self._under_way and not self._publisher.outstanding
        if self._limits.reached and not self._under_way:
            return True  # no worker is waited for: what is queued remains
        return len(self._under_way) < self._executor.slots

    def _start(self, job: Job) -> bool:
        """Have a job rendered, or find that it needs no render; False where it has to wait."""
        selected = None if self._limits.reached else self._study.selection_of(job)
        if selected is not None:
            self._queue.put_back(job)
            selection, drafts = selected
            keys = {draft.id: job_key(draft, self._models(draft).identity) for draft in drafts}
            known = self._study.known_looks(selection, keys)
            unknown = [draft for draft in drafts if draft.id not in known]
            self._previews = DraftPreviews(selection, unknown, keys)
            return True
        pending = self._pending(job)
        path = pending.path
        found = self._finder.find(job, path, pending.key)
        is_done = found.done is not None and not self._anew
        if not is_done and not self._limits.may_start(job):
            if self._limits.may_free:
                self._queue.put_back(job)
                return False
            return True  # it remains
        if found.obstacle:
            self._fail(job, found.obstacle)
        elif found.done is not None and is_done:
            self._skip(pending, found.done)
        else:
            if found.is_damaged:
                self._complain(f"{path.name} is damaged and is rendered again")
            if found.edited:
                self._complain(
                    f"{path.name} {found.edited}: it is kept as {set_aside(path).name}, and its "
                    "job is rendered again"
                )
            self._render(pending)
        return True

    def _skip(self, pending: Pending, done: Entry) -> None:
        """Leave a finished file as it is; what isn't known of it yet is timed and measured."""
        job, study = pending.job, self._study
        skipped = JobSkipped(job.id, job.scene, done.seed, str(pending.path))
        self._forget_checkpoint(pending)  # a run may have been killed right after publishing
        if study.is_up_to_date(job, done.pixels_sha256):
            self._tell(skipped)
            return
        same = replace(job, seed=done.seed)
        record = study.record_of(job, done.pixels_sha256)
        if study.time_repeats == 1:
            self._tell(skipped)
            self._follow_up(same, None, record)
            return
        publishing_s = record.elapsed_s[0] - done.sampling_s if record.elapsed_s else 0.0
        self._repeats = TimedRepeats(
            same,
            record,
            max(0.0, publishing_s),
            0 if self._limits.reached else study.time_repeats,
            lambda record: skipped,
            partial(self._follow_up, same, None),
        )

    def _render(self, pending: Pending) -> None:
        job = pending.job
        kept = self._checkpoint(pending)
        seed = job.seed or (kept.seed() if kept else None) or draw_seed()
        try:
            planned = self._plan(job)
        except Exception as error:  # noqa: BLE001 - one job's failure must not end the night
            self._fail(job, reason_of(error), seed)
            return
        self._tell(JobAssigned(job.id))
        self._submit(
            partial(self._on_rendered, pending, seed),
            job=job,
            seed=seed,
            planned=planned,
            checkpoint=kept,
            file=self._file(pending),
        )

    def _repeat(self, repeats: TimedRepeats) -> None:
        """Have a finished job rendered once more, or go on with what is known of it now."""
        if not self._limits.has_time():
            repeats.give_up()
        if not repeats.is_over:
            job = repeats.job
            try:
                planned = self._plan(job)
            except Exception as error:  # noqa: BLE001 - its file is there, only times are missing
                repeats.give_up()
                self._tell(repeats.failure(error))
                return
            on_answer = partial(self._on_repeated, repeats)
            self._submit(on_answer, job=job, seed=job.seed, planned=planned)
            return
        self._repeats = None
        if verdict := repeats.verdict():
            self._tell(verdict)
        self._tell(repeats.event)
        repeats.on_end(repeats.record)

    def _preview(self, previews: DraftPreviews) -> bool:
        """Have a draft previewed, or drop drafts once all are; False where that has to wait."""
        if self._limits.reached:
            self._previews = None
            return True
        if previews.waiting:
            draft = previews.waiting.pop(0)
            previews.under_way += 1
            self._submit(
                partial(self._on_previewed, previews, draft),
                job=draft,
                seed=draft.seed,
                kind="preview",
                after_steps=previews.after_steps,
            )
            return True
        if previews.under_way or self._study.is_waiting:
            return False
        self._previews = None
        dropped = self._study.drop_drafts(previews.selection, previews.keys)
        self._queue.drop(dropped)
        return True

    def _submit(self, on_answer: OnAnswer, *, job: Job, **what: Any) -> None:
        self._requests += 1
        request = RenderRequest(self._requests, job, models=self._models(job), **what)
        self._under_way[request.number] = job.id, on_answer
        self._ids_under_way.add(job.id)
        self._executor.submit(request)

    def _poll(self) -> None:
        """Take the next answer, or tell the next event, of the executor.

        What comes twice, or after its job came back, is dropped.
        """
        found = self._executor.poll(POLL_S)
        if isinstance(found, RenderResult | PreviewResult | RenderFailure):
            job, on_answer = self._under_way.pop(found.number, ("", None))
            self._ids_under_way.discard(job)
            if on_answer is not None:
                on_answer(found)
        elif isinstance(found, JobStarted | StepStarted):
            if found.job in self._ids_under_way:
                self._tell(found)
        elif found is not None:
            self._tell(found)
        if self._stops_at is not None and time.monotonic() > self._stops_at:
            self._give_up_executor()

    def _stop_renders(self) -> None:
        """Have what is under way end after its present step, once."""
        if self._under_way and self._stops_at is None:
            self._stops_at = time.monotonic() + self._options.stop_patience_s
            self._executor.stop()

    def _drain(self) -> None:
        """Take answers until nothing is under way any more, and see that they are published."""
        while self._under_way:
            self._poll()
            self._take_published()
        self._take_published(POLL_S)

    def _give_up_executor(self) -> None:
        """End an executor that doesn't stop; the jobs that it has remain."""
        self._executor.close()
        self._complain("what renders didn't stop in time and was ended; its jobs remain")
        under_way, self._under_way = self._under_way, {}
        self._ids_under_way.clear()
        for number, (_, on_answer) in under_way.items():
            on_answer(RenderFailure(number, StopRequested(), "stopped"))

    def _on_rendered(self, pending: Pending, seed: int, answer: Answer) -> None:
        """Publish a job's frames, or tell why there are none."""
        job = pending.job
        if isinstance(answer, RenderResult):
            self._tell(JobRendered(job.id))
            # All slots may have something at once, and none should wait for another's file.
            self._publisher.room = max(WAITING_CLIPS, self._executor.slots)
            self._publisher.submit(pending, answer, self._take_published)
        elif isinstance(answer, RenderFailure):
            error = answer.error
            if answer.kind != "job":
                self._tell(JobReturned(job.id))
                if answer.kind == "models":
                    raise error
                return
            ends = isinstance(error, ENDS_THE_BATCH)
            why = _NOT_RENDERED if ends else reason_of(error)
            self._fail(job, why, seed, answer.worker)
            if ends:
                raise error

    def _on_repeated(self, repeats: TimedRepeats, answer: Answer) -> None:
        if isinstance(answer, RenderResult):
            self._study.keep(repeats.add(answer))
            return
        repeats.give_up()
        if isinstance(answer, RenderFailure) and answer.kind != "stopped":
            if answer.kind == "models" or isinstance(answer.error, ENDS_THE_BATCH):
                raise answer.error
            self._tell(repeats.failure(answer.error))

    def _on_previewed(self, previews: DraftPreviews, draft: Job, answer: Answer) -> None:
        previews.under_way -= 1
        if isinstance(answer, PreviewResult):
            self._study.on_preview(draft, answer.frames, answer.elapsed_s, self._stop.check)
        elif isinstance(answer, RenderFailure):
            if answer.kind == "stopped":
                self._previews = None
            elif answer.kind == "models" or isinstance(answer.error, ENDS_THE_BATCH):
                raise answer.error
            else:
                self._tell(previews.failure(draft, answer.error))

    def _take_published(self, wait_s: float = 0.0) -> None:
        """Go on with what is published by now, or within some time.

        Raises:
            OutputError: The disk failed.
        """
        while (done := self._publisher.published(wait_s)) is not None:
            wait_s = 0.0
            self._on_published(done)

    def _on_published(self, done: Publication) -> None:
        """Go on with a job that has its file now, or has none because of an error."""
        job, render, study = done.pending.job, done.render, self._study
        if done.error is not None:
            ends = isinstance(done.error, ENDS_THE_BATCH)
            why = _NOT_RENDERED if ends else reason_of(done.error)
            self._fail(job, why, render.seed, render.worker)
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
        self._forget_checkpoint(done.pending)
        # With the seed that was drawn, so that what follows has the same noise.
        same = replace(job, seed=render.seed)
        told = partial(_done, done.pending, render)
        try:
            study.keep(done.record)
        except BaseException:  # the disk ends the batch, but the file is there
            self._tell(told(done.record))
            raise
        follow_up = partial(self._follow_up, same, render.frames)
        if study.time_repeats > 1:
            repeats = study.time_repeats
            self._repeats = TimedRepeats(
                same, done.record, done.elapsed_s, repeats, told, follow_up
            )
        else:
            self._tell(told(done.record))
            follow_up(done.record)

    def _follow_up(self, job: Job, frames: Any, record: JobRecord) -> None:
        known = self._study.record_of(job, record.pixels_sha256) if frames is None else record
        self._study.on_published(job, known, frames, self._stop.check)

    def _models(self, job: Job) -> ResolvedModels:
        weights = (job.model, job.adapters)
        if weights not in self._resolved:
            self._resolved[weights] = resolve_models(job.model, self._recipe_dir, job.adapters)
        return self._resolved[weights]

    def _plan(self, job: Job) -> str:
        """The denoiser planned for each step, one letter a step."""
        steps = job.num_inference_steps
        what = (job.model, job.sampling, job.stages, job.adaptive, steps)
        if what not in self._planned:
            self._planned[what] = plan_job(job, self._recipe_dir)
        return self._planned[what]

    def _checkpoint(self, pending: Pending) -> CheckpointFile | None:
        """Where a job's state is kept; None where its bits are to be made from nothing."""
        folder, every = self._batch.output_dir, self._options.checkpoint_every
        key = pending.key
        return None if self._anew else CheckpointFile.of(folder, pending.job.id, key, every)

    def _file(self, pending: Pending) -> FilePlan | None:
        """What whoever renders a job needs to make its file; None where this process makes it."""
        if self._options.encode != "worker":
            return None
        source, keeps_frames = str(self._recipe_dir), self._study.needs_frames
        return FilePlan(pending.path.name, pending.key, source, keeps_frames)

    def _forget_checkpoint(self, pending: Pending) -> None:
        kept = self._checkpoint(pending)
        if kept is not None:
            kept.forget()

    def _complain(self, text: str) -> None:
        self._tell(Message(text, is_error=True))

    def _fail(self, job: Job, error: str, seed: int | None = None, worker: str = "") -> None:
        seed = job.seed if seed is None else seed
        self._tell(JobFailed(job.id, job.scene, seed, error, worker))
        self._study.on_failed(job)


def _done(pending: Pending, render: RenderResult, record: JobRecord) -> JobDone:
    job = pending.job
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
        worker=render.worker,
    )


def reason_of(error: BaseException) -> str:
    """What a job failed of, in words."""
    kind = error.kind if isinstance(error, RemoteError) else type(error).__name__
    return f"{kind}: {error}"


def draw_seed() -> int:
    """Draw a seed for a job whose recipe says 0: 1 to 2**31 - 1."""
    return 1 + secrets.randbelow(2**31 - 1)
