"""Requirements: what a recipe or a model needs of the Hub, and how much of it is in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomli

from flowblend_cli.jobs import Batch, ModelSpec
from flowblend_cli.models.adapters import locate_adapter
from flowblend_cli.models.contents import (
    components,
    denoiser_folder,
    files_of,
    missing_of_denoiser,
    missing_of_pipeline,
    reader_of,
    wanted,
)
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.lockfile import Pin
from flowblend_cli.models.registry import ModelSource, pinned_revision, resolve_model, resolve_small

RequirementKind = Literal["pipeline", "denoiser", "file"]


@dataclass(frozen=True)
class Requirement:
    """Part of a repository that a recipe or a model needs.

    Args:
        asked: What the recipe calls it.
        repo: The Hub id.
        revision: The commit; None for the newest.
        kind: Whether a whole pipeline, one denoiser or one file is wanted.
        inside: The denoiser's folder, or the file; None where the folder is to be found.
        variant: Variant of the weights, taken wherever there are files of it.
    """

    asked: str
    repo: str
    revision: str | None
    kind: RequirementKind
    inside: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class CacheEntry:
    """How much of a requirement is in the local Hub cache.

    Args:
        requirement: What is needed.
        folder: The folder of its commit; None where the cache has no such commit.
        files: Names of the files that are there.
        missing: Names of files that it can't be loaded without.
    """

    requirement: Requirement
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
        return self.folder.name if self.folder is not None else self.requirement.revision

    @property
    def size_bytes(self) -> int:
        """Size of the files that are there."""
        if self.folder is None:
            return 0
        return sum((self.folder / name).stat().st_size for name in self.files)


def batch_requirements(batch: Batch) -> list[Requirement]:
    """List what the jobs of a recipe need of the Hub, each requirement once.

    Raises:
        ModelNameError: A name of a model can't be read.
        RecipeError: The lock beside the recipe is broken.
    """
    folder = batch.source.parent
    found: dict[Requirement, None] = {}
    for job in {(job.model, job.adapters): job for job in (*batch.jobs, *batch.reserve)}.values():
        found |= dict.fromkeys(model_requirements(job.model, folder))
        for adapter in job.adapters:
            file = locate_adapter(adapter.source, adapter.name, adapter.role, folder)
            if not isinstance(file, Path):
                repo, name = file
                revision = pinned_revision(repo, folder)
                found[Requirement(adapter.source, repo, revision, "file", name)] = None
    return list(found)


def model_requirements(model: ModelSpec, folder: Path) -> Iterator[Requirement]:
    """List what a recipe's models need of the Hub; nothing for bundled ones and folders."""
    yield from _requirement(resolve_model(model.pipeline, folder), "pipeline", model.variant)
    for name in ([model.small] if model.small else []) + [name for _, name in model.denoisers]:
        yield from _requirement(resolve_small(name, folder), "denoiser", model.variant)


def name_requirements(name: str, folder: Path) -> list[Requirement]:
    """List what a known pair or a Hub id needs; nothing for a bundled pair and a folder.

    Raises:
        ModelNameError: The name is no model.
    """
    source = resolve_model(name, folder)
    found = list(_requirement(source, "pipeline"))
    if source.pair is not None and source.pair.name == name and source.pair.implied_small:
        found += _requirement(resolve_small(name, folder), "denoiser")
    return found


def bundled_requirements(recipe: Path) -> list[Requirement]:
    """List what a bundled recipe's models need, read from its [model] alone."""
    model = tomli.loads(recipe.read_text("utf-8")).get("model", {})
    names = [model.get("pipeline"), model.get("small"), *model.get("denoisers", {}).values()]
    return [one for name in names if name for one in name_requirements(name, recipe.parent)]


def _requirement(
    source: ModelSource, kind: RequirementKind, variant: str | None = None
) -> Iterator[Requirement]:
    if source.repo is not None:
        inside = source.subfolder
        yield Requirement(source.name, source.repo, source.revision, kind, inside, variant)


def find_in_cache(requirement: Requirement) -> CacheEntry:
    """Look up how much of a requirement the local Hub cache has; reads small JSON files only."""
    folder = snapshot(requirement.repo, requirement.revision)
    if folder is None:
        return CacheEntry(requirement, None)
    names, read = files_of(folder), reader_of(folder)
    if requirement.kind == "file":
        assert requirement.inside is not None
        there = [requirement.inside] if requirement.inside in names else []
        return CacheEntry(requirement, folder, tuple(there), () if there else (requirement.inside,))
    if requirement.kind == "pipeline":
        inside = list(components(read("model_index.json")))
        missing = missing_of_pipeline(names, read, requirement.variant)
    else:
        own = requirement.inside or denoiser_folder(names)
        inside = [own] if own else []
        missing = missing_of_denoiser(names, read, requirement.inside, requirement.variant)
    chosen = wanted(names, inside, requirement.variant)
    return CacheEntry(requirement, folder, tuple(chosen), tuple(missing))


def pins_of(entries: Iterable[CacheEntry]) -> list[Pin]:
    """The commits that are here, one for each repository that isn't pinned by its name."""
    found: dict[str, Pin] = {}
    for entry in entries:
        requirement = entry.requirement
        if entry.commit is not None and "@" not in requirement.asked:
            pin = Pin(requirement.repo, entry.commit, requirement.asked)
            found.setdefault(requirement.repo, pin)
    return list(found.values())
