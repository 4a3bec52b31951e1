"""Registry: what the model names of a recipe mean, bundled or known pairs, folders, Hub ids.

Nothing here loads or downloads a model, or imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli

from flowblend_cli.errors import ModelNameError
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.contents import DENOISER_FOLDERS, read_json
from flowblend_cli.models.lockfile import Aliases, Pin, read_lock
from flowblend_cli.utils.suggestions import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[0-9a-f]{40})?", re.ASCII)
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class KnownPair:
    """A large and a small model that are known to fit, or a large one that has no small one.

    Args:
        name: What recipes call the pair.
        description: One line for people: what is large, what is small.
        pipeline_class: Class of the pipeline in diffusers.
        scheduler: The repository's own solver.
        flow_shift: Its shift of the noise levels; None where they follow no fixed shift, so that
            the pair keeps its own scheduler.
        pipeline: Hub id of the pipeline; None for a bundled pair.
        revision: Commit of that repository that the pair's name stands for.
        subfolders: Folder of the large denoiser; two where it is two experts.
        small: Hub id of the small model; None for a bundled pair, and where none is published.
        small_revision: Commit of that repository.
        small_subfolder: Folder of the small denoiser inside its model or repository.
        expert_boundary: Noise level where the first of two experts gives way to the second.
        boundaries: Published ends of the stages of ``"LSL"``, as fractions of the steps.
        fps: Frames per second of its clips; None for pictures.
        architectures: Name of each role's architecture.
        defaults: Pipeline arguments that every job on the pair starts from.
        sampling: Keys of [sampling] that every job on the pair starts from.
    """

    name: str
    description: str
    pipeline_class: str
    scheduler: str
    flow_shift: float | None = None
    pipeline: str | None = None
    revision: str | None = None
    subfolders: Sequence[str] = ("transformer",)
    small: str | None = None
    small_revision: str | None = None
    small_subfolder: str | None = None
    expert_boundary: float | None = None
    boundaries: Sequence[float] = ()
    fps: int | None = None
    architectures: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def implied_small(self) -> str | None:
        """The name of the small model where a recipe leaves it out; None if there is none."""
        return self.name if self.small_subfolder is not None else None


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a folder on this machine, or a repository of the Hub.

    Args:
        name: The name in the recipe.
        path: The folder; None for a Hub id.
        repo: The Hub id; None for a folder.
        revision: The commit that the name stands for; None for the one in the cache.
        subfolder: Folder of the denoiser inside, for a small model; None where the folder is
            the denoiser itself, or for a whole pipeline.
        pair: The known pair that the name belongs to, if any.
    """

    name: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    pair: KnownPair | None = None

    @property
    def pipeline_class(self) -> str | None:
        """Class of the pipeline; None where only the network would show it."""
        if self.path is not None:
            name = read_json(self.path / "model_index.json").get("_class_name")
            return name if isinstance(name, str) else None
        return self.pair.pipeline_class if self.pair else None


@cache
def known_pairs() -> dict[str, KnownPair]:
    """The known pairs by name."""
    text = (files("flowblend_cli") / "data" / "pairs.toml").read_text("utf-8")
    return {name: KnownPair(name=name, **entry) for name, entry in tomli.loads(text).items()}


def find_pair(pipeline: str) -> KnownPair | None:
    """The known pair that a recipe's pipeline belongs to, by the pair's name or its Hub id."""
    pairs = known_pairs()
    by_repo = {pair.pipeline: pair for pair in pairs.values() if pair.pipeline}
    repo = pipeline.partition("@")[0] if _HUB_ID.fullmatch(pipeline) else pipeline
    return pairs.get(pipeline) or by_repo.get(repo)


def pinned_revision(repo: str, recipe_dir: Path) -> str | None:
    """The commit that the lock beside a recipe has for a repository; None if it has none.

    Raises:
        RecipeError: The lock is broken.
    """
    pin = read_lock(recipe_dir, _aliases()).get(repo)
    return pin.revision if pin is not None else None


def pins(recipe_dir: Path) -> dict[str, Pin]:
    """Every pin in the lock beside a recipe, by repository.

    Raises:
        RecipeError: The lock is broken.
    """
    return dict(read_lock(recipe_dir, _aliases()))


@cache
def _aliases() -> Aliases:
    pairs = known_pairs().values()
    both = [(pair.name, repo) for pair in pairs for repo in (pair.pipeline, pair.small)]
    return frozenset((name, repo) for name, repo in both if repo is not None)


def _on_hub(
    name: str, repo: str, recipe_dir: Path, own: str | None = None, **more: Any
) -> ModelSource:
    """A repository, at the commit in its name, else in the recipe's lock, else its pair's own."""
    revision = name.partition("@")[2] or pinned_revision(repo, recipe_dir) or own
    return ModelSource(name, repo=repo, revision=revision or None, **more)


def resolve_model(name: str, recipe_dir: Path) -> ModelSource:
    """Tell where a pipeline comes from.

    Args:
        name: A bundled or known-pair name, ``./folder``, an absolute folder, or ``owner/name``.
        recipe_dir: Folder that relative folders start from.

    Returns:
        The source. A bundled folder isn't looked into; any other folder exists and holds a
        pipeline.

    Raises:
        ModelNameError: The name is none of these, or names a file, or a folder that isn't one.
        RecipeError: The lock beside the recipe is broken.
    """
    pair = find_pair(name)
    if pair is not None:
        if pair.pipeline is None:
            return ModelSource(name, path=_bundled_model(pair), pair=pair)
        # A repository named by itself isn't pinned: the commit in the cache is what was asked for.
        own = pair.revision if name == pair.name else None
        return _on_hub(name, pair.pipeline, recipe_dir, own, pair=pair)
    source = _folder_or_hub(name, recipe_dir)
    if source.path is not None and not (source.path / "model_index.json").is_file():
        raise ModelNameError(
            f"{name!r} holds no model_index.json: expected the folder of a diffusers pipeline"
        )
    return source


def resolve_small(name: str, recipe_dir: Path) -> ModelSource:
    """Tell where a small denoiser comes from, and its subfolder there.

    Args:
        name: As in ``resolve_model``; a pair's name means the pair's small model. A folder holds
            the denoiser itself, or a pipeline with one.
        recipe_dir: Folder that relative folders start from.

    Raises:
        ModelNameError: See ``resolve_model``.
    """
    pair = known_pairs().get(name)
    if pair is not None:
        return _small_of(pair, recipe_dir)
    source = _folder_or_hub(name, recipe_dir)
    if source.path is None:
        known = {p.small: p.small_subfolder for p in known_pairs().values()}
        return replace(source, subfolder=known.get(source.repo))
    if (source.path / "config.json").is_file():
        return source
    for subfolder in DENOISER_FOLDERS:
        if (source.path / subfolder / "config.json").is_file():
            return ModelSource(name, path=source.path, subfolder=subfolder)
    raise ModelNameError(
        f"{name!r} holds no denoiser: expected config.json in it, or in one of "
        f"{', '.join(DENOISER_FOLDERS)}"
    )


def _small_of(pair: KnownPair, recipe_dir: Path) -> ModelSource:
    if pair.small_subfolder is None:
        raise ModelNameError(
            f"the pair {pair.name!r} has no small denoiser: name a folder or a Hub id that holds "
            "one that fits"
        )
    where: dict[str, Any] = {"subfolder": pair.small_subfolder, "pair": pair}
    if pair.small is None:
        return ModelSource(pair.name, path=_bundled_model(pair), **where)
    return _on_hub(pair.name, pair.small, recipe_dir, pair.small_revision, **where)


def _bundled_model(pair: KnownPair) -> Path:
    return bundled_dir() / "models" / pair.name


def _folder_or_hub(name: str, recipe_dir: Path) -> ModelSource:
    if name.lower().endswith(_UNSAFE_SUFFIXES):
        raise ModelNameError(
            f"{name!r} is a pickle file, which can run any code: use a folder or Hub id with "
            "safetensors weights"
        )
    if name.startswith(("./", "../")) or Path(name).is_absolute():
        path = recipe_dir / name
        if path.is_dir():
            return ModelSource(name, path=path.resolve())
        found = "is a file" if path.exists() else "doesn't exist"
        raise ModelNameError(
            f"the folder {name!r} {found}: expected a diffusers folder at {path.absolute()}, or a "
            f"known name ({', '.join(sorted(known_pairs()))}), or owner/name on the Hub"
        )
    if _HUB_ID.fullmatch(name) and ".." not in name:
        return _on_hub(name, name.partition("@")[0], recipe_dir)
    raise ModelNameError(
        f"{name!r} is no model: use a bundled or known pair ({', '.join(sorted(known_pairs()))}), "
        f"./folder, an absolute folder, or a Hub id owner/name or owner/name@COMMIT (40 "
        f"hexadecimal digits){did_you_mean(name, known_pairs())}"
    )
