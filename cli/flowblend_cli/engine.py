"""Render a batch: what is done is skipped, what fails fails alone, models load at most once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from flowblend_cli.artifacts.finished import inspect_final
from flowblend_cli.errors import DeviceLostError, LockedError, ModelMissingError, OutputError
from flowblend_cli.events import JobDone, JobFailed, JobSkipped, Summary
from flowblend_cli.finding import Finder, recorded
from flowblend_cli.jobs import AdapterSpec, Batch, Job, ModelSpec
from flowblend_cli.keys import Identity, job_key, model_identity
from flowblend_cli.manifest import Entry, Manifest
from flowblend_cli.options import RunOptions
from flowblend_cli.progress import Reporter
from flowblend_cli.records import JobRecord
from flowblend_cli.rendering import Render, Renderer
from flowblend_cli.stopping import StopRequested, StopSignals
from flowblend_cli.study import Selection
from flowblend_cli.studying import Studying
from flowblend_plugin.errors import FlowBlendError

LOCK_NAME = ".flowblend.lock"
SOME_FAILED = 1
_ENDS_THE_BATCH = (ModelMissingError, OutputError, DeviceLostError)


@dataclass(frozen=True)
class Pending:
    """A job and where its file goes.

    Args:
        job: The job.
        path: Its final file.
        key: Its job key.
        identity: The models that the key covers.
    """

    job: Job
    path: Path
    key: str
    identity: Identity


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
        self._renderer = Renderer(self._recipe_dir, reporter, warm_up)
        self._study = Studying(batch, reporter, overrides, complaints or {})
        self._is_kept = overrides is not None
        self._finder = Finder(None)
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
        stopping = StopSignals(self._reporter.message)
        with output_lock(self._batch.output_dir), self._reporter, stopping as stop:
            try:
                with self._errors_told(stop):
                    for job in (*self._batch.jobs, *self._batch.reserve):
                        self._identity(job)  # every model is there, before any of them works
                    self._queue = self._study.begin()
                    if self._is_kept:
                        manifest = Manifest(self._batch.output_dir, self._complain)
                        self._finder = Finder(manifest, verify=self._options.verify)
                    self._work(stop)
                    stop.check()
            finally:
                with self._errors_told(stop):
                    self._study.close()
                self._finder.close()
                elapsed = round(time.monotonic() - began, 3)
                self._reporter.event(Summary(self._rendered, self._skipped, self._failed, elapsed))
        is_short = self._failed or self._study.has_gaps
        return self._exit_code or (SOME_FAILED if is_short else 0)

    @contextmanager
    def _errors_told(self, stop: StopSignals) -> Iterator[None]:
        """Turn what ends the batch into its exit code."""
        try:
            yield
        except StopRequested:
            self._exit_code = stop.exit_code or SOME_FAILED
        except (*_ENDS_THE_BATCH, FlowBlendError) as error:
            self._reporter.message(str(error), error=True)
            self._exit_code = int(getattr(error, "exit_code", 2))

    def _work(self, stop: StopSignals) -> None:
        """One job after the other, those of the models in memory first, until no more can come."""
        while True:
            self._queue += self._study.new_jobs()
            if self._queue:
                stop.check()
                self._do(self._next(), stop)
            elif self._study.is_waiting:
                self._queue += self._study.wait(stop.check)
            else:
                return

    def _next(self) -> Job:
        """Take the next job out of the queue."""
        place, model = 0, self._renderer.model
        if model is not None:
            place = next((n for n, one in enumerate(self._queue) if one.model == model), 0)
        return self._queue.pop(place)

    def _do(self, job: Job, stop: StopSignals) -> None:
        """Render a job, or find that it needs no render."""
        look = self._study.to_look_at(job)
        if look is not None:
            dropped = self._look(*look, stop)
            self._queue = [one for one in self._queue if one.id not in dropped]
            if job.id in dropped:
                return
        path = self._batch.path_of(job)
        identity = self._identity(job)
        pending = Pending(job, path, job_key(job, identity), identity)
        found = self._finder.find(job, path, pending.key)
        if found.obstacle:
            self._fail(job, found.obstacle)
            return
        if found.is_damaged:
            self._complain(f"{path.name} is damaged and is rendered again")
        if found.done is not None and not self._anew:
            self._skip(pending, found.done, stop)
        else:
            self._render(pending, stop)

    def _skip(self, pending: Pending, done: Entry, stop: StopSignals) -> None:
        """Leave a finished file as it is; what isn't known of it yet is timed and measured."""
        job, seed = pending.job, done.seed
        skipped = JobSkipped(job.id, job.scene, seed, str(pending.path))
        if self._study.needs_nothing(job, done.pixels_sha256):
            self._skipped += 1
            self._reporter.event(skipped)
            return
        record = self._study.record_of(job, done.pixels_sha256)
        if self._study.time_repeats > max(1, len(record.elapsed_s)):
            publishing_s = record.elapsed_s[0] - done.sampling_s if record.elapsed_s else 0.0
            self._time(record, job, seed, max(0.0, publishing_s), stop)
        self._skipped += 1
        self._reporter.event(skipped)
        known = self._study.record_of(job, record.pixels_sha256)
        self._study.finished(replace(job, seed=seed), known, None, stop.check)

    def _look(self, selection: Selection, drafts: Sequence[Job], stop: StopSignals) -> set[str]:
        """Look where the first steps of all drafts lead; ids of those that aren't worth more."""
        steps = selection.reject_after or 1
        keys = {draft.id: job_key(draft, self._identity(draft)) for draft in drafts}
        known = self._study.known_looks(selection, keys)
        for draft in drafts:
            if draft.id in known:
                continue
            stop.check()
            self._renderer.load(draft.model)
            began = time.monotonic()
            try:
                frames = self._renderer.preview(draft, steps, stop.check)
            except _ENDS_THE_BATCH:
                raise
            except Exception as error:  # noqa: BLE001 - what can't be judged early is rendered
                told = f"{draft.id} can't be looked at after {steps} steps and goes on: {error}"
                self._reporter.message(told, error=True)
                continue
            self._study.look(draft, frames, time.monotonic() - began, stop.check)
        while self._study.is_waiting:
            self._queue += self._study.wait(stop.check)
        return self._study.drop(selection, keys)

    def _identity(self, job: Job) -> Identity:
        weights = (job.model, job.adapters)
        if weights not in self._identities:
            self._identities[weights] = model_identity(job.model, self._recipe_dir, job.adapters)
        return self._identities[weights]

    def _render(self, pending: Pending, stop: StopSignals) -> None:
        job = pending.job
        seed = job.seed or draw_seed()
        self._renderer.load(job.model)
        stop.check()
        try:
            render = self._renderer.render(job, seed, stop.check)
            began = time.monotonic()
            self._renderer.publish(job, pending.path, render, pending.identity, pending.key)
        except _ENDS_THE_BATCH:
            self._fail(job, "not rendered: see the error of the batch", seed)
            raise
        except Exception as error:  # noqa: BLE001 - one job's failure must not end the night
            self._fail(job, f"{type(error).__name__}: {error}", seed)
            return
        publishing_s = time.monotonic() - began
        self._finder.published(
            job,
            pending.path,
            pending.key,
            pixels=render.pixels_sha256,
            seed=seed,
            sampling_s=round(render.elapsed_s, 3),
        )
        record = _record_of(job, render, publishing_s)
        self._rendered += 1
        try:
            self._study.keep(record)
            record = self._time(record, job, seed, publishing_s, stop)
        finally:  # also where the disk or a signal ends the batch: the file is there
            self._reporter.event(self._done(pending, render))
        # With the seed that was drawn, so that what follows has the same noise.
        self._study.finished(replace(job, seed=seed), record, render.sampled.frames, stop.check)

    def _time(
        self, record: JobRecord, job: Job, seed: int, publishing_s: float, stop: StopSignals
    ) -> JobRecord:
        """Render a job that has its file for its seconds and bits alone, as often as is asked.

        Publishing is timed once and counted in each.
        """
        repeats = self._study.time_repeats
        while len(record.elapsed_s) < repeats:
            try:
                render = self._renderer.render(job, seed, stop.check)
            except _ENDS_THE_BATCH:
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
            denoisers=render.sampled.denoisers,
            peak_rss_bytes=render.peak_rss_bytes,
            peak_vram_bytes=render.sampled.peak_vram_bytes,
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


def _record_of(job: Job, render: Render, publishing_s: float) -> JobRecord:
    return JobRecord(
        job=job.id,
        recipe=job.recipe,
        pixels_sha256=render.pixels_sha256,
        elapsed_s=(round(render.elapsed_s + publishing_s, 3),),
        pixels=(render.pixels_sha256,),
        step_s=render.step_s,
        peak_rss_bytes=render.peak_rss_bytes,
        peak_vram_bytes=render.sampled.peak_vram_bytes,
    )


def draw_seed() -> int:
    """Draw a seed for a job whose recipe says 0: 1 to 2**31 - 1."""
    return 1 + secrets.randbelow(2**31 - 1)


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold an output folder for this run alone; the kernel frees it however the run ends.

    Raises:
        LockedError: Another run holds it.
        OutputError: The folder can't be made or locked.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=0, fallback_to_soft=False)
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"another run is rendering into {folder}: wait for it, or choose another --out"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{folder}: can't be used for output ({reason}): choose another folder with --out, "
            "where files can be made"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run(batch: Batch, reporter: Reporter, **options: Any) -> int:
    """Render a batch; see ``BatchRun``, whose options these are."""
    return BatchRun(batch, reporter, **options).run()


def render_again(document: dict[str, Any], path: Path, reporter: Reporter) -> int:
    """Render a finished file's own job once more, beside it, and say whether the bits agree.

    Args:
        document: The file's document.
        path: The file; the new one is ``NAME.again.EXT``.
        reporter: Who is told what happens.

    Returns:
        0 if the pixels are the same, 1 if not, other codes as ``BatchRun.run``.

    Raises:
        DocumentError: The document's job can't be read.
    """
    job = Job.from_document(document.get("job") or {})
    job = replace(job, id=f"{path.stem}.again", seed=recorded(document, "seed", job.seed))
    source = Path(recorded(document, "source", str(path.parent))) / path.name
    batch = Batch(job.recipe, path.parent, (job,), (), source)
    again = batch.path_of(job)
    code = run(batch, reporter, anew=True)
    if code:
        return code
    mine = (inspect_final(again).document or {}).get("pixels_sha256")
    same = mine == document.get("pixels_sha256")
    verdict = "the same pixels" if same else "other pixels"
    reporter.message(f"{again.name} has {verdict} as {path.name}", error=not same)
    return 0 if same else SOME_FAILED
