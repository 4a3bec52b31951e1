"""render_again: renders a finished file's own job once more beside it, and compares the pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from flowblend_cli.artifacts.finished import FileState, Finished, inspect_final, shows_the_same
from flowblend_cli.artifacts.schema.description import describe
from flowblend_cli.engine.batch_run import SOME_FAILED, BatchRun
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.errors import DocumentError, UsageError
from flowblend_cli.events import Message, Reporter
from flowblend_cli.jobs import Batch
from flowblend_cli.planning.run_progress import RunProgress
from flowblend_cli.recipe.schema.names import check_job_id


def render_again(
    found: Finished,
    path: Path,
    show: Callable[[RunProgress], Reporter],
    options: RunOptions | None = None,
) -> int:
    """Render a finished file's own job once more, beside it, and say whether the bits agree.

    Args:
        found: What lies at the path, with its document.
        path: The file; the new one is ``NAME.again.EXT``.
        show: Makes the reporter that is told what happens.
        options: How the job is rendered.

    Returns:
        0 if the pixels are the same, in the new file, the record and the file itself, or a limit
        stopped the run before that could be told; 1 if not; other codes as ``BatchRun.run``.

    Raises:
        DocumentError: The document doesn't hold what it should.
        UsageError: The new file's name isn't one that a job may have.
    """
    try:
        said = describe(found.document or {})
    except DocumentError as error:
        raise DocumentError(f"{path}: {error}") from error
    if said.job is None:
        raise DocumentError(f"{path}: is a picture of the gallery, and no job rendered it")
    try:
        name = check_job_id(f"{path.stem}.again")
    except ValueError as error:
        raise UsageError(f"{path}: the name of the new file {error}: rename the file") from error
    job = replace(said.job, id=name, seed=said.seed)
    source = Path(said.source or path.parent) / path.name
    batch = Batch(job.recipe, path.parent, (job,), (), source)
    again = batch.path_of(job)
    progress = RunProgress(batch)
    reporter = show(progress)
    run = BatchRun(batch, reporter, anew=True, options=options, progress=progress)
    code = run.run()
    if code or run.remaining:
        return code
    new = describe(inspect_final(again).document or {})
    same = new.pixels_sha256 == said.pixels_sha256
    verdict = "the same pixels as" if same else "other pixels than"
    if not same:
        reporter(Message(_surroundings(said.versions, new.versions), is_error=True))
    if found.state is FileState.INTACT:
        reporter(Message(f"{again.name} has {verdict} {path.name}", is_error=not same))
        return 0 if same else SOME_FAILED
    reporter(Message(f"{again.name} has {verdict} the record of {path.name}", is_error=not same))
    is_shown = same and shows_the_same(path, again)
    if is_shown:
        told = f"{path.name} {found.change}, but shows the same pixels as its record says"
    elif found.state is FileState.DAMAGED:
        told = f"{path.name} is damaged: its pixels can't be compared with its record"
    else:
        told = f"the pixels of {path.name} differ from its record: it was edited since its render"
    reporter(Message(told, is_error=not is_shown))
    return 0 if is_shown else SOME_FAILED


def _surroundings(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say in which versions and numeric settings two renders differ, which may be why bits do."""
    names = [name for name in before if name in now and before[name] != now[name]]
    if not names:
        return "both renders record the same versions and numeric settings"
    listed = ", ".join(f"{name} {before[name]} then and {now[name]} now" for name in names)
    return f"rendered under other conditions: {listed}"
