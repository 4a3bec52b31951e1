"""What a recipe, a known pair or a Hub id asks for of the Hub, and how much of it is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowblend_cli.errors import ModelNameError
from flowblend_cli.jobs import Batch, ModelSpec
from flowblend_cli.models.adapters import hub_file
from flowblend_cli.models.contents import (
    components,
    denoiser_folder,
    files_of,
    missing_of_denoiser,
    missing_of_pipeline,
    reader_of,
    wanted,
)
from flowblend_cli.models.lockfile import Pin
from flowblend_cli.models.registry import ModelSource, pinned_revision, resolve_model, resolve_small

Part = Literal["pipeline", "denoiser", "file"]


@dataclass(frozen=True)
class Want:
    """A part of a repository.

    Args:
        asked: What the recipe calls it.
        repo: The Hub id.
        revision: The commit; None for whichever is the newest.
        part: Whether a whole pipeline, one denoiser or one file is wanted.
        inside: The denoiser's folder, or the file; None where the folder is to be found.
    """

    asked: str
    repo: str
    revision: str | None
    part: Part
    inside: str | None = None


@dataclass(frozen=True)
class Holding:
    """How much of a part is in the local Hub cache.

    Args:
        want: The part.
        folder: The folder of its commit; None where the cache has no such commit.
        files: Names of the files that are there.
        missing: Names of files that it can't be loaded without.
    """

    want: Want
    folder: Path | None
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def state(self) -> Literal["complete", "half", "absent"]:
        """Whether it can be loaded."""
        if self.folder is None or not self.files:
            return "absent"
        return "half" if self.missing else "complete"

    @property
    def commit(self) -> str | None:
        """The commit that is here, or that is wanted; None where neither is known."""
        return self.folder.name if self.folder is not None else self.want.revision

    @property
    def size_bytes(self) -> int:
        """Size of the files that are there."""
        if self.folder is None:
            return 0
        return sum((self.folder / name).stat().st_size for name in self.files)


def wants_of_batch(batch: Batch) -> list[Want]:
    """What the jobs of a recipe need of the Hub, each part once.

    Raises:
        ModelNameError: A name of a model can't be read.
        RecipeError: The lock beside the recipe is broken.
    """
    folder = batch.source.parent
    found: dict[Want, None] = {}
    for job in {(job.model, job.adapters): job for job in (*batch.jobs, *batch.reserve)}.values():
        found |= dict.fromkeys(wants_of_model(job.model, folder))
        for adapter in job.adapters:
            file = hub_file(adapter.source, adapter.name, adapter.role, folder)
            if file is not None:
                repo, name = file
                revision = pinned_revision(repo, folder)
                found[Want(adapter.source, repo, revision, "file", name)] = None
    return list(found)


def wants_of_model(model: ModelSpec, folder: Path) -> Iterator[Want]:
    """What a recipe's models need of the Hub; nothing for bundled ones and folders."""
    yield from _want(resolve_model(model.pipeline, folder), "pipeline")
    for name in ([model.small] if model.small else []) + [name for _, name in model.denoisers]:
        yield from _want(resolve_small(name, folder), "denoiser")


def wants_of_name(name: str, folder: Path) -> list[Want]:
    """What a known pair, or a Hub id, is made of; empty for a bundled pair and a folder.

    Raises:
        ModelNameError: The name is no model.
    """
    source = resolve_model(name, folder)
    found = list(_want(source, "pipeline"))
    if source.pair is not None and source.pair.name == name and source.pair.implied_small:
        found += _want(resolve_small(name, folder), "denoiser")
    return found


def _want(source: ModelSource, part: Part) -> Iterator[Want]:
    if source.repo is not None:
        yield Want(source.name, source.repo, source.revision, part, source.subfolder)


def hold(want: Want) -> Holding:
    """Look how much of a part is in the local Hub cache; nothing is read but small JSON files."""
    folder = snapshot(want.repo, want.revision)
    if folder is None:
        return Holding(want, None)
    names, read = files_of(folder), reader_of(folder)
    if want.part == "file":
        assert want.inside is not None
        there = [want.inside] if want.inside in names else []
        return Holding(want, folder, tuple(there), () if there else (want.inside,))
    if want.part == "pipeline":
        inside = list(components(read("model_index.json")))
        missing = missing_of_pipeline(names, read)
    else:
        inside = [want.inside or denoiser_folder(names) or ""]
        missing = missing_of_denoiser(names, read, want.inside)
    return Holding(want, folder, tuple(wanted(names, inside)), tuple(missing))


def hub_cache() -> Path:
    """The folder of the local Hub cache, which may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a repository's commit in the cache: the given one, or the one last fetched."""
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    if revision is None:
        try:
            revision = (folder / "refs" / "main").read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    path = folder / "snapshots" / revision
    return path if revision and "/" not in revision and path.is_dir() else None


def pins_of(holdings: Iterable[Holding]) -> list[Pin]:
    """The commits of parts that are here, one for each repository that isn't pinned by its name."""
    found: dict[str, Pin] = {}
    for holding in holdings:
        want = holding.want
        if holding.commit is not None and "@" not in want.asked:
            found.setdefault(want.repo, Pin(want.repo, holding.commit, want.asked))
    return list(found.values())


def unknown_model(name: str) -> ModelNameError:
    """The error for an argument that is neither a model nor a recipe."""
    return ModelNameError(
        f"{name!r} is neither a model nor a recipe: expected a known pair (`flowblend models ls` "
        "lists them), owner/name on the Hub, a .toml file or a bundled recipe"
    )
