"""Worker process of `fetch`: downloads models; no other process of flowblend uses the network.

It is handed one request, and sends a document for each thing that happens. A server's words are
never passed on, since they could repeat the token that it was sent.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Before huggingface_hub is imported, which reads them once; see flowblend_cli/__init__.py.
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ.pop("TRANSFORMERS_OFFLINE", None)

from huggingface_hub import HfApi, errors, get_token, hf_hub_download, try_to_load_from_cache

from flowblend_cli.models.contents import (
    DENOISER_FOLDERS,
    INDEX,
    components,
    denoiser_folder,
    missing_of_denoiser,
    missing_of_pipeline,
    other_variants,
    pickled,
    reader_of,
    wanted,
)
from flowblend_cli.utils.worker_process import Channel

_PATIENCE_S = 10.0
# The first that fits counts: some are kinds of others.
_PROBLEMS = {
    errors.GatedRepoError: "gated",
    errors.RevisionNotFoundError: "no_commit",
    errors.RepositoryNotFoundError: "not_found",
    errors.HfHubHTTPError: "http",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Refused(Exception):  # noqa: N818 - it never leaves this module
    """Something that can't be fetched: its problem, and a detail for the parent's message."""

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.detail = detail


@dataclass(frozen=True)
class Download:
    """One requirement looked up: its commit, and the files to download with their sizes."""

    requirement: Mapping[str, Any]
    commit: str
    sizes: Mapping[str, int]
    lacking: Mapping[str, int]


def main() -> None:
    """Look everything up, then download it all, or nothing where anything is refused."""
    channel = Channel()
    request = channel.receive()
    if request is None:
        return
    report = partial(_report, channel)
    cache = Path(request["cache"])
    found: list[Download] = []
    refused = False
    for requirement in request["requirements"]:
        try:
            found.append(_look_up(requirement, cache))
        except Exception as error:  # noqa: BLE001 - libraries and servers raise anything
            refused = True
            repo, asked = requirement["repo"], requirement["asked"]
            report(event="refused", repo=repo, asked=asked, **_reason(error))
    if refused:
        return
    lacking = {
        (one.requirement["repo"], one.commit, name): size
        for one in found
        for name, size in one.lacking.items()
    }
    for one in found:
        report(
            event="found",
            repo=one.requirement["repo"],
            commit=one.commit,
            files=len(one.sizes),
            bytes=sum(one.sizes.values()),
            lacking_bytes=sum(one.lacking.values()),
        )
    needed, free = sum(lacking.values()), shutil.disk_usage(_existing(cache)).free
    if needed > free:
        report(event="refused", repo="", asked="", problem="space", detail=f"{needed} {free}")
        return
    for one in found:
        if not _download(one, cache, report):
            return
    report(event="done")


def _download(found: Download, cache: Path, report: Callable[..., None]) -> bool:
    requirement, repo = found.requirement, found.requirement["repo"]
    revision = found.commit
    if requirement["kind"] == "file":  # by the branch's name, so that the cache notes its commit
        revision = requirement["revision"] or "main"
    for name in found.sizes:
        try:
            hf_hub_download(repo, name, revision=revision, cache_dir=cache)
        except Exception as error:  # noqa: BLE001 - as above
            report(event="refused", repo=repo, asked=requirement["asked"], **_reason(error))
            return False
        if name in found.lacking:
            report(event="fetched", repo=repo, file=name, bytes=found.sizes[name])
    return True


def _look_up(requirement: Mapping[str, Any], cache: Path) -> Download:
    """Ask the Hub what a repository holds, and choose the files; fetches the smallest one."""
    repo, revision = requirement["repo"], requirement["revision"]
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_PATIENCE_S)
    if info.id.casefold() != repo.casefold():
        raise Refused("renamed", info.id)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise Refused("commit")
    sizes = {one.rfilename: int(one.size or 0) for one in info.siblings or []}
    probe = _probe(requirement, sizes)
    # One file may be large: nothing of it is fetched before the sizes are known.
    if requirement["kind"] == "file":
        held = try_to_load_from_cache(repo, probe, cache_dir=cache, revision=revision or "main")
        is_here = isinstance(held, str) and commit in Path(held).parts
        only = {probe: sizes[probe]}
        return Download(requirement, commit, only, {} if is_here else only)
    # Asked for by the branch's name where nothing is pinned, so that the cache notes its commit.
    where = hf_hub_download(
        repo, probe, revision=revision or "main", cache_dir=cache, etag_timeout=_PATIENCE_S
    )
    if commit not in Path(where).parts:
        raise Refused("moved")
    chosen = _choose(requirement, sizes, Path(where))
    folder = Path(where).parents[probe.count("/")]
    lacking = {name: sizes[name] for name in chosen if not (folder / name).is_file()}
    return Download(requirement, commit, {name: sizes[name] for name in chosen}, lacking)


def _probe(requirement: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """The first file to fetch: small, and there wherever the model is."""
    if requirement["kind"] == "file":
        probe = str(requirement["inside"])
    elif requirement["kind"] == "pipeline":
        probe = INDEX
    else:
        folder = requirement["inside"] or denoiser_folder(sizes)
        probe = f"{folder or DENOISER_FOLDERS[1]}/config.json"
    if probe not in sizes:
        raise Refused("no_file", probe)
    return probe


def _choose(requirement: Mapping[str, Any], sizes: Mapping[str, int], probe: Path) -> list[str]:
    """All files that the requirement consists of."""
    variant = requirement["variant"]
    if requirement["kind"] == "pipeline":
        read = reader_of(probe.parent)
        missing = missing_of_pipeline(sizes, read, variant)
        chosen = wanted(sizes, components(read(INDEX)), variant)
    else:
        folder = probe.parent.name
        read = reader_of(probe.parent.parent)
        missing = missing_of_denoiser(sizes, read, folder, variant)
        # The VAE's config shows whether the latent spaces fit.
        chosen = [*wanted(sizes, [folder], variant), *({"vae/config.json"} & set(sizes))]
    pickle = pickled(sizes, missing)
    if pickle is not None:
        raise Refused("pickle", pickle)
    if missing:
        others = other_variants(sizes, missing)
        if others:
            raise Refused("variant", others[0])
        raise Refused("no_file", missing[0])
    return chosen


def _reason(error: Exception) -> dict[str, str]:
    """Which problem an exception is; only words of this machine are passed on."""
    if isinstance(error, Refused):
        return {"problem": error.problem, "detail": error.detail}
    chain = list(_chain(error))
    for one in chain:
        for kind, problem in _PROBLEMS.items():
            if isinstance(one, kind):
                code = getattr(getattr(one, "response", None), "status_code", "")
                return {"problem": problem, "detail": str(code)}
    if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return {"problem": "full", "detail": ""}
    # The system's words or the kind of the error: other words may be the server's.
    words = next((one.strerror for one in chain if isinstance(one, OSError) and one.strerror), "")
    if any(_is_network(one) for one in chain):
        return {"problem": "offline", "detail": words or type(chain[-1]).__name__}
    return {"problem": "other", "detail": words or type(error).__name__}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TransportError", "TimeoutException", "Timeout"})


def _without_secrets(text: str) -> str:
    token = get_token()
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_[A-Za-z0-9]{20,}", "***", text)
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _report(channel: Channel, **event: Any) -> None:
    channel.send(json.loads(_without_secrets(json.dumps(event))))


if __name__ == "__main__":
    main()
