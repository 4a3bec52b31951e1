"""Render a batch: what is done is skipped, what fails fails alone, models load at most once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli import __version__
from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.errors import DeviceLostError, LockedError, ModelMissingError, OutputError
from flowblend_cli.events import JobDone, JobFailed, JobSkipped, JobStarted, ModelLoaded, Summary
from flowblend_cli.jobs import AdapterSpec, Batch, Job, ModelSpec
from flowblend_cli.keys import Identity, job_key, model_identity
from flowblend_cli.plan import plan_job
from flowblend_cli.progress import Reporter
from flowblend_cli.stopping import StopRequested, StopSignals
from flowblend_plugin.errors import FlowBlendError
from flowblend_plugin.stages import LETTERS

if TYPE_CHECKING:
    from flowblend_cli.artifacts.pixels import Frames
    from flowblend_cli.runtime import Runtime, Sampled

LOCK_NAME = ".flowblend.lock"
SOME_FAILED = 1
_ENDS_THE_BATCH = (ModelMissingError, OutputError, DeviceLostError)


@dataclass(frozen=True)
class Pending:
    """A job that is still to be rendered.

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
        anew: Render our own finished files again, too.
        warm_up: A job that is sampled and thrown away before the first one, so that what happens
            once (memory, kernels, the prompt's embedding) isn't in anybody's seconds.
    """

    def __init__(
        self, batch: Batch, reporter: Reporter, *, anew: bool = False, warm_up: Job | None = None
    ) -> None:
        self._batch = batch
        self._anew = anew
        self._warm_up = warm_up
        self._reporter = reporter
        self._recipe_dir = batch.source.parent
        self._identities: dict[tuple[ModelSpec, tuple[AdapterSpec, ...]], Identity] = {}
        self._runtime: Runtime | None = None
        self._rendered = self._skipped = self._failed = 0
        self._exit_code = 0

    def run(self) -> int:
        """Render what isn't finished yet.

        Returns:
            The exit code: 0 all is done, 1 some jobs failed, 3 models are missing, 4 the disk
            failed, 128 + signal after a signal.

        Raises:
            LockedError: Another run holds the output folder.
        """
        began = time.monotonic()
        stopping = StopSignals(self._reporter.message)
        with output_lock(self._batch.output_dir), self._reporter, stopping as stop:
            try:
                for job in self._batch.jobs:  # every model is there, before any of them works
                    self._identity(job)
                for pending in self._pending():
                    stop.check()
                    self._render(pending, stop)
                stop.check()
            except StopRequested:
                self._exit_code = stop.exit_code or SOME_FAILED
            except (*_ENDS_THE_BATCH, FlowBlendError) as error:
                self._reporter.message(str(error), error=True)
                self._exit_code = int(getattr(error, "exit_code", 2))
            finally:
                elapsed = round(time.monotonic() - began, 3)
                self._reporter.event(Summary(self._rendered, self._skipped, self._failed, elapsed))
        return self._exit_code or (SOME_FAILED if self._failed else 0)

    def _pending(self) -> Iterator[Pending]:
        for job in self._batch.jobs:
            path = self._batch.path_of(job)
            identity = self._identity(job)
            key = job_key(job, identity)
            found = inspect_final(path)
            if found.state is FileState.MISSING:
                yield Pending(job, path, key, identity)
                continue
            known = found.recipe is not None or found.state is FileState.INTACT
            theirs = known and found.recipe != job.recipe
            if found.state is FileState.FOREIGN or theirs:
                owner = f"recipe {found.recipe!r}" if theirs else "someone else"
                self._fail(
                    job,
                    f"{path} belongs to {owner} and is left alone: move it away, or change "
                    "recipe.output_dir or recipe.filename",
                )
                continue
            if found.state is FileState.DAMAGED:
                self._reporter.message(f"{path.name} is damaged and is rendered again", error=True)
            elif not self._anew and (found.document or {}).get("job_key") == key:
                self._skipped += 1
                seed = recorded(found.document or {}, "seed", job.seed)
                self._reporter.event(JobSkipped(job.id, job.scene, seed, str(path)))
                continue
            yield Pending(job, path, key, identity)

    def _identity(self, job: Job) -> Identity:
        weights = (job.model, job.adapters)
        if weights not in self._identities:
            self._identities[weights] = model_identity(job.model, self._recipe_dir, job.adapters)
        return self._identities[weights]

    def _render(self, pending: Pending, stop: StopSignals) -> None:
        job = pending.job
        seed = job.seed or draw_seed()
        runtime = self._loaded(job.model)
        stop.check()
        try:
            if self._warm_up is not None:
                runtime.sample(self._warm_up, seed, lambda *_: stop.check())
                self._warm_up = None
            planned = plan_job(job, self._recipe_dir)
            self._reporter.event(
                JobStarted(job.id, job.scene, seed, job.num_inference_steps, planned, job.prompt)
            )
            began = time.monotonic()
            self._reporter.step(0, len(planned), _role(planned, 0))

            def on_step(index: int, role: str) -> None:
                stop.check()
                if index + 1 < len(planned):
                    self._reporter.step(index + 1, len(planned), _role(planned, index + 1))

            sampled = runtime.sample(job, seed, on_step)
            stop.check()
            done = self._publish(pending, seed, sampled, began)
        except _ENDS_THE_BATCH:
            self._fail(job, "not rendered: see the error of the batch", seed)
            raise
        except Exception as error:  # noqa: BLE001 - one job's failure must not end the night
            self._fail(job, f"{type(error).__name__}: {error}", seed)
            return
        self._rendered += 1
        self._reporter.event(done)

    def _loaded(self, model: ModelSpec) -> Runtime:
        if self._runtime is None or self._runtime.model != model:
            from flowblend_cli.runtime import Runtime  # torch: only where something is to be done

            self._runtime = None  # free the former models before the next ones load
            self._runtime = Runtime(model, self._recipe_dir)
            elapsed = round(self._runtime.elapsed_s, 3)
            self._reporter.event(ModelLoaded(model.pipeline, elapsed))
            if self._runtime.note is not None:
                self._reporter.message(self._runtime.note)
        return self._runtime

    def _publish(self, pending: Pending, seed: int, sampled: Sampled, began: float) -> JobDone:
        from flowblend_cli.artifacts.pixels import pixels_sha256
        from flowblend_cli.runtime import peak_rss_bytes, versions

        job = pending.job
        digest = pixels_sha256(sampled.frames)
        document: dict[str, Any] = {
            "flowblend": __version__,
            "v": 1,
            "job": job.to_document(),
            "job_key": pending.key,
            "resolved": {
                "seed": seed,
                "denoisers": sampled.denoisers,
                "device": str(self._runtime.device.type) if self._runtime else "cpu",
                "sampling_s": round(time.monotonic() - began, 3),
                "source": str(self._recipe_dir),
            },
            "models": pending.identity,
            "versions": versions(),
            "pixels_sha256": digest,
        }
        if sampled.caches:
            document["resolved"]["caches"] = [asdict(report) for report in sampled.caches]
            self._report_caches(job, sampled)
        publish_frames(sampled.frames, pending.path, job, document)
        return JobDone(
            job=job.id,
            scene=job.scene,
            seed=seed,
            num_inference_steps=job.num_inference_steps,
            path=str(pending.path),
            elapsed_s=round(time.monotonic() - began, 3),
            denoisers=sampled.denoisers,
            peak_rss_bytes=peak_rss_bytes(),
            peak_vram_bytes=sampled.peak_vram_bytes,
            pixels_sha256=digest,
        )

    def _report_caches(self, job: Job, sampled: Sampled) -> None:
        for report in sampled.caches:
            if report.computed == 1:
                where = f"stage {report.stage + 1} ({report.denoiser})"
                self._reporter.message(
                    f"{job.id}: cache {report.kind!r} of {where} skipped nothing", error=True
                )

    def _fail(self, job: Job, error: str, seed: int | None = None) -> None:
        self._failed += 1
        self._reporter.event(
            JobFailed(job.id, job.scene, job.seed if seed is None else seed, error)
        )


def publish_frames(frames: Frames, path: Path, job: Job, document: dict[str, Any]) -> None:
    """Write a job's frames as what its recipe asks for: a picture, or a clip.

    Raises:
        OutputError: The file can't be written.
    """
    if path.suffix == ".png":
        from flowblend_cli.artifacts.image import publish_image

        publish_image(frames[0], path, document=document, scale=job.output.scale)
        return
    from flowblend_cli.artifacts.video import publish_video

    output = job.output
    publish_video(
        frames, path, fps=output.fps, document=document, scale=output.scale, crf=output.crf
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


def run(batch: Batch, reporter: Reporter, *, anew: bool = False, warm_up: Job | None = None) -> int:
    """Render a batch; see ``BatchRun``."""
    return BatchRun(batch, reporter, anew=anew, warm_up=warm_up).run()


def recorded(document: dict[str, Any], name: str, default: Any) -> Any:
    """One resolved value of a file's document, of the default's type, or the default."""
    resolved = document.get("resolved")
    value = resolved.get(name, default) if isinstance(resolved, dict) else default
    return value if isinstance(value, type(default)) else default


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


def _role(denoisers: str, index: int) -> str:
    return LETTERS.get(denoisers[index], denoisers[index])
