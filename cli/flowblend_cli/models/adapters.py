"""Adapters: finds the file of a LoRA adapter, by path, in a bundled pair, or in the Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.registry import find_pair, pinned_revision

_HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?", re.ASCII)
_SUFFIX = ".safetensors"
# What diffusers writes, and looks for, where a repository is named without a file.
_USUAL_NAME = "pytorch_lora_weights.safetensors"


def is_source(name: str) -> bool:
    """Whether a name is a file or a Hub id itself, rather than a name for one."""
    return "/" in name or name.endswith(_SUFFIX)


def adapter_file(source: str, name: str, role: str, recipe_dir: Path) -> Path:
    """Find an adapter's file on this machine; see ``locate_adapter``.

    Raises:
        ModelNameError: See ``locate_adapter``.
        ModelMissingError: It isn't in the Hub's local cache.
    """
    found = locate_adapter(source, name, role, recipe_dir)
    if isinstance(found, Path):
        return found
    repo, file = found
    folder = snapshot(repo, pinned_revision(repo, recipe_dir))
    if folder is None or not (folder / file).is_file():
        raise ModelMissingError(
            f"adapter {source!r} isn't in the local Hub cache ({file} is missing), and render "
            "downloads nothing unless it is told to: `flowblend models fetch` with the recipe "
            "fetches it, or render with --allow-download"
        )
    return folder / file


def locate_adapter(source: str, name: str, role: str, recipe_dir: Path) -> Path | tuple[str, str]:
    """Tell where an adapter comes from, as far as that is possible without the Hub's cache.

    Args:
        source: ``./file.safetensors`` or an absolute one, a bundled pair's name, or
            ``owner/name``, optionally with the file's name after it.
        name: The adapter's name; a bundled pair's files are named by it.
        role: The denoiser that is to have it; they are named by it, too.
        recipe_dir: Folder that relative paths start from.

    Returns:
        The file on this machine, or the repository and the file's name in it.

    Raises:
        ModelNameError: The source is none, or its file isn't there or no safetensors.
    """
    pair = find_pair(source)
    if pair is not None and pair.name == source:
        return _bundled(source, name, role)
    is_path = source.startswith(("./", "../")) or Path(source).is_absolute()
    if not is_path and (match := _HUB_FILE.fullmatch(source)) and ".." not in source:
        file = match[2] or _USUAL_NAME
        is_file_beside = match[2] is None and source.endswith(_SUFFIX)
        if file.endswith(_SUFFIX) and not is_file_beside:
            return match[1], file
    if not source.endswith(_SUFFIX):
        raise ModelNameError(
            f"{source!r} is no LoRA file: expected ./FILE.safetensors, owner/name or "
            "owner/name/FILE.safetensors (other formats can run code while they load)"
        )
    if not is_path:
        raise ModelNameError(f"{source!r} is no LoRA file: write './{source}' for one beside it")
    path = recipe_dir / source
    if not path.is_file():
        raise ModelNameError(
            f"the LoRA file {source!r} doesn't exist: expected {path.absolute()} as a file"
        )
    return path.resolve()


def _bundled(pair: str, name: str, role: str) -> Path:
    folder = bundled_dir() / "models" / pair / "adapters"
    path = folder / f"{name}_{role}{_SUFFIX}"
    if not path.is_file():
        known = sorted(file.name.removesuffix(_SUFFIX) for file in folder.glob(f"*{_SUFFIX}"))
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ModelNameError(f"{pair} has no LoRA {name!r} for the {role} denoiser: {has}")
    return path
