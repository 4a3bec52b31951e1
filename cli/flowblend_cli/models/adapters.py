"""Adapters: finds the file of a LoRA adapter, by path, in a bundled pair, or in the Hub's cache.

Its header tells whether diffusers can use all of it, without loading anything.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.jobs import AdapterSpec, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.contents import read_json
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.registry import find_pair, pinned_revision, resolve_model, resolve_small
from flowblend_plugin.denoisers.adapter_header import AdapterHeader, read_adapter_header
from flowblend_plugin.errors import AdapterError

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
        ModelMissingError: It isn't in the Hub's local cache, isn't whole, or diffusers can't use
            all of it.
    """
    found = locate_adapter(source, name, role, recipe_dir)
    path = _on_disk(found, recipe_dir)
    if path is None:
        file = found if isinstance(found, Path) else found[1]
        raise ModelMissingError(
            f"adapter {source!r} isn't in the local Hub cache ({file} is missing), and render "
            "downloads nothing unless it is told to: `flowblend models fetch` with the recipe "
            "fetches it, or render with --allow-download"
        )
    header = _header_of(path)
    problems = [header] if isinstance(header, str) else header.problems()
    if problems:
        raise ModelMissingError(f"LoRA {source!r} can't be used: {'; '.join(problems)}")
    return path


def adapter_problems(adapter: AdapterSpec, recipe_dir: Path, model: ModelSpec | None) -> list[str]:
    """List why an adapter's file can't be used, as far as it and the denoiser are here.

    Args:
        adapter: The adapter.
        recipe_dir: Folder that relative paths start from.
        model: The models; None where they aren't known.

    Raises:
        ModelNameError: See ``locate_adapter``.
    """
    header = _header_here(adapter, recipe_dir)
    if header is None:
        return []
    if isinstance(header, str):
        return [header]
    folder = None if model is None else _denoiser(model, adapter.role, recipe_dir)
    return header.problems() + (header.misfits(_shapes_in(folder)) if folder is not None else [])


def text_encoder_weights(adapter: AdapterSpec, recipe_dir: Path) -> int:
    """Count the weights of an adapter's file that a text encoder is to have, beside a denoiser.

    0 where the file isn't here; one that has nothing for a denoiser is a problem anyway.

    Raises:
        ModelNameError: See ``locate_adapter``.
    """
    header = _header_here(adapter, recipe_dir)
    if not isinstance(header, AdapterHeader) or len(header.text_keys) == len(header.shapes):
        return 0
    return len(header.text_keys)


def _header_here(adapter: AdapterSpec, recipe_dir: Path) -> AdapterHeader | str | None:
    found = locate_adapter(adapter.source, adapter.name, adapter.role, recipe_dir)
    path = _on_disk(found, recipe_dir)
    return None if path is None else _header_of(path)


def _on_disk(found: Path | tuple[str, str], recipe_dir: Path) -> Path | None:
    if isinstance(found, Path):
        return found
    repo, file = found
    folder = snapshot(repo, pinned_revision(repo, recipe_dir))
    return folder / file if folder is not None and (folder / file).is_file() else None


def _header_of(path: Path) -> AdapterHeader | str:
    """Read a file's header, or say why that can't be done."""
    stat = path.stat()
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@cache  # a sweep asks for each of its combinations
def _read_header(path: Path, size: int, mtime: int) -> AdapterHeader | str:
    try:
        return read_adapter_header(path)
    except AdapterError as error:
        return str(error)


def _denoiser(model: ModelSpec, role: str, recipe_dir: Path) -> Path | None:
    """The folder of a denoiser's weights, if it is here."""
    try:
        if role == "large":
            source = resolve_model(model.pipeline, recipe_dir)
        else:
            named = {"small": model.small, **dict(model.denoisers)}
            source = resolve_small(named.get(role) or "", recipe_dir)
    except ModelNameError:
        return None  # which is said elsewhere
    folder = source.path
    if folder is None and source.repo is not None:
        folder = snapshot(source.repo, source.revision)
    if folder is None or role != "large":
        return folder / (source.subfolder or "") if folder is not None else None
    return next((folder / one for one in ("transformer", "unet") if (folder / one).is_dir()), None)


def _shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a folder; of packed ones, nothing."""
    if "quantization_config" in read_json(folder / "config.json"):
        return {}
    headers = [_header_of(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))]
    return {
        name: shape
        for header in headers
        if isinstance(header, AdapterHeader)
        for name, shape in header.shapes.items()
    }


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
