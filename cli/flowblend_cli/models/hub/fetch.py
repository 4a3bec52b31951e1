"""Fetch: downloads models, for `models fetch` and `render`, through a worker process.

The process says the sizes first, and downloads nothing where anything is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from flowblend_cli.errors import ModelMissingError, OutputError, WorkerDiedError
from flowblend_cli.jobs import Batch
from flowblend_cli.models.bundled import is_bundled
from flowblend_cli.models.contents import check_contents
from flowblend_cli.models.hub.requirements import (
    CacheEntry,
    Requirement,
    batch_requirements,
    find_in_cache,
    pins_of,
)
from flowblend_cli.models.hub_cache import hub_cache
from flowblend_cli.models.lockfile import Pin, write_lock
from flowblend_cli.models.registry import known_pairs, pins
from flowblend_cli.text import count
from flowblend_cli.utils.worker_process import WorkerProcess

_WORKER = "flowblend_cli.models.hub.fetch_worker"
_DISK = ("space", "full")
_YES = ("1", "ON", "YES", "TRUE")

# Of {repo}, as {asked} in the recipe; {detail} depends on the problem.
_WORDS = {
    "gated": "{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in "
    "with `hf auth login`, and run the same command again",
    "not_found": "{repo} isn't on the Hub, or is private: check the name, which may have changed; "
    "a private one needs `hf auth login`",
    "renamed": "{repo} is called {detail} now: write that into the recipe instead of {asked}",
    "no_commit": "{repo} hasn't the commit that is asked for: check flowblend.lock, or fetch with "
    "--update",
    "no_file": "{repo} has no {detail}: expected a diffusers pipeline, or a denoiser, as "
    "safetensors",
    "variant": '{repo} has weights of a variant only: set variant = "{detail}" in [model], and '
    "fetch with the recipe",
    "pickle": "{repo} has pickle weights only ({detail}), which can run any code: use a repository "
    "with safetensors weights",
    "moved": "{repo} changed while it was looked up: run the same command again",
    "commit": "{repo} has no commit that can be pinned",
    "http": "the Hub refuses {repo} (HTTP {detail}): try later; 401 and 403 may be cured by "
    "`hf auth login`",
    "offline": "the Hub can't be reached for {repo} ({detail}): fetching needs the network; "
    "connect, or copy the cache from a machine that has it (docs/models.md)",
    "full": "the disk is full: {repo} is fetched in part, and the same command goes on with it",
    "other": "{repo} can't be fetched ({detail})",
}


def fetch(
    requirements: Sequence[Requirement],
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> list[CacheEntry]:
    """Download parts of repositories into the local Hub cache; nothing is downloaded twice.

    Args:
        requirements: The parts of repositories.
        tell: Called with the sizes beforehand, and with each file.
        check: Called several times a second; may raise, which ends the download. What was fetched
            stays, and the next call goes on from there.

    Returns:
        What is in the cache now, for each requirement.

    Raises:
        ModelMissingError: There is no network, or a repository is gated, private, gone, renamed,
            or holds no safetensors; has all such problems.
        ModelNameError: A fetched model brings code of its own.
        OutputError: The disk has no room for it.
    """
    if not requirements:
        return []
    if os.environ.get("FLOWBLEND_USER_OFFLINE", "").upper() in _YES:
        raise ModelMissingError(
            f"{requirements[0].repo} can't be fetched: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is "
            "set, which keeps the network out; unset it to fetch"
        )
    _download(requirements, tell, check)
    entries = [find_in_cache(one) for one in requirements]
    for entry in entries:
        if entry.folder is not None and entry.requirement.kind != "file":
            is_pipeline = entry.requirement.kind == "pipeline"
            where = (entry.folder, entry.requirement.asked, entry.requirement.inside)
            variant = entry.requirement.variant
            check_contents(*where, pipeline=is_pipeline, variant=variant)
    return entries


def _download(
    requirements: Sequence[Requirement], tell: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Let the process download everything, and pass on what it reports."""
    refused: list[tuple[str, str]] = []
    is_done = False
    for event in _events(requirements, check):
        if event["event"] == "refused":
            refused.append((event["problem"], _refusal(event)))
        elif event["event"] == "found":
            tell(_found_line(event))
        elif event["event"] == "fetched":
            tell(f"fetched {event['repo']} {event['file']} ({format_bytes(event['bytes'])})")
        is_done = event["event"] == "done"
    if refused:
        kind = OutputError if any(problem in _DISK for problem, _ in refused) else ModelMissingError
        raise kind("\n".join(dict.fromkeys(reason for _, reason in refused)))
    if not is_done:
        raise ModelMissingError("the download process ended before it was done: run it again")


def fetch_for_batch(
    batch: Batch,
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    *,
    only_missing: bool = False,
    update: bool = False,
) -> list[CacheEntry]:
    """Fetch what a recipe needs, and pin the commits in the lock beside it.

    A bundled recipe gets no lock: its folder isn't the user's, and its pairs are pinned.

    Args:
        batch: The recipe's jobs.
        tell: See ``fetch``.
        check: See ``fetch``.
        only_missing: Whether to ask the Hub for nothing where everything is here.
        update: Whether repositories that only the lock pins are fetched at their newest commit.

    Raises:
        FlowBlendError: See ``fetch``; or the lock can't be written.
    """
    folder = batch.source.absolute().parent
    former = pins(folder)
    requirements = batch_requirements(batch)
    if update:
        requirements = [_newest(one, former) for one in requirements]
    asked = requirements
    if only_missing:
        asked = [one for one in requirements if find_in_cache(one).state != "complete"]
    fetch(asked, tell, check)
    entries = [find_in_cache(one) for one in requirements]
    pinned = former | {pin.repo: pin for pin in pins_of(entries)}
    # A pair's name and the repository's own mean one entry; who asked first is kept.
    for repo, pin in former.items():
        if pinned[repo].revision == pin.revision:
            pinned[repo] = pin
    if pinned != former and not is_bundled(batch.source):
        path = write_lock(folder, pinned.values())
        tell(f"wrote {path}: {count(len(pinned), 'commit')} pinned")
    return entries


def unpinned(batch: Batch) -> str | None:
    """Warn of models that are at the commit that the cache last got; None if there is none."""
    loose = {one.repo: one for one in batch_requirements(batch) if one.revision is None}
    if not loose:
        return None
    entries = [find_in_cache(one) for one in loose.values()]
    commits = [f"{one.requirement.repo} (now {(one.commit or 'none')[:12]})" for one in entries]
    return (
        f"not pinned: {', '.join(commits)}: a newer commit in the cache renders every job again; "
        "`flowblend models fetch` with this recipe pins it in flowblend.lock"
    )


def format_bytes(number: float) -> str:
    """Write a number of bytes for people: ``"28.4 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def _found_line(event: dict[str, Any]) -> str:
    lacking = event["lacking_bytes"]
    left = f"{format_bytes(lacking)} to download" if lacking else "all of it is here"
    amount = f"{count(event['files'], 'file')}, {format_bytes(event['bytes'])}"
    return f"{event['repo']} at {event['commit'][:12]}: {amount}, {left}"


def _refusal(event: dict[str, Any]) -> str:
    if event["problem"] == "space":
        needed, free = map(float, event["detail"].split())
        return (
            f"{hub_cache()} has no room: {format_bytes(needed)} to download, {format_bytes(free)} "
            "free; free some, or set HF_HOME to a folder on another disk"
        )
    words = _WORDS.get(event["problem"], _WORDS["other"])
    return words.format(**{key: event[key] for key in ("repo", "asked", "detail")})


def _events(
    requirements: Sequence[Requirement], check: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """What the download process reports, as it comes; the process is ended afterwards."""
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
    try:
        worker = WorkerProcess(_WORKER, "download", quiet)
    except WorkerDiedError as error:
        raise ModelMissingError(str(error)) from error
    try:
        wanted = [asdict(one) for one in requirements]
        worker.send({"cache": str(hub_cache()), "requirements": wanted})
        worker.close_input()
        yield from worker.documents(check, math.inf)
    finally:
        worker.end()


def prepare_models(
    batch: Batch,
    allow_download: bool,
    tell: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    """Fetch what a render lacks, if that is allowed, and say what isn't pinned.

    Args:
        batch: The jobs.
        allow_download: Whether the network may be used.
        tell: Called with what happens.
        check: See ``fetch``.

    Raises:
        FlowBlendError: See ``fetch``.
    """
    if allow_download:
        fetch_for_batch(batch, tell, check, only_missing=True)
    warning = unpinned(batch)
    if warning is not None:
        tell(warning)


def _newest(requirement: Requirement, locked: Mapping[str, Pin]) -> Requirement:
    """A requirement at the newest commit, where only the lock keeps it at another."""
    pin = locked.get(requirement.repo)
    if pin is None or "@" in requirement.asked:
        return requirement
    pair = known_pairs().get(requirement.asked)
    own = {pair.pipeline: pair.revision, pair.small: pair.small_revision} if pair else {}
    return replace(requirement, revision=own.get(requirement.repo))
