"""load_denoiser: loads one denoiser, and nothing else, from a folder or the local Hub cache."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from torch import nn

from flowblend_plugin.denoisers.compatibility import config_mismatches, latent_space_mismatches
from flowblend_plugin.denoisers.offloading import storage_device
from flowblend_plugin.errors import PairMismatchError, SwitchError

# The pipelines' attributes that hold a denoiser, in the order in which they are looked for.
DENOISER_NAMES = ("transformer", "unet", "transformer_2")


def denoiser_name(pipe: Any) -> str:
    """Name the attribute that holds a pipeline's denoiser.

    Raises:
        SwitchError: The pipeline has none.
    """
    for name in DENOISER_NAMES:
        if isinstance(getattr(pipe, name, None), nn.Module):
            return name
    raise SwitchError(
        f"{type(pipe).__name__} has no loaded denoiser: expected a module in one of the attributes "
        f"{', '.join(DENOISER_NAMES)}"
    )


def load_denoiser(
    source: str | os.PathLike[str],
    large: nn.Module,
    name: str,
    vae_config: Any = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> nn.Module:
    """Load a denoiser that is to share a trajectory with ``large``.

    Weights in the dtype that is asked for are mapped from their files, not copied.

    Args:
        source: A denoiser's folder, a pipeline's folder (its ``{name}_small`` is taken, else its
            ``{name}``), or a Hub id; only safetensors are read. Or a GGUF file, if ``gguf`` is
            installed; a ``config.json`` beside it is used.
        large: The denoiser whose class, dtype, quantisation and device the loaded one takes.
        name: The pipeline's attribute, ``"transformer"`` or ``"unet"``.
        vae_config: Config of the pipeline's VAE; compared with that of a pipeline's folder.
        subfolder: Where in the pipeline's folder or repository the denoiser lies, if known.
        variant: Variant of the weights, such as ``"fp16"``.

    Returns:
        The denoiser, in evaluation mode.

    Raises:
        PairMismatchError: Its config doesn't fit the large one's; raised before weights are read.
        SwitchError: The folder isn't there, or holds no denoiser; or its weights aren't those that
            its config asks for, so that some would be left to chance.
    """
    source = os.fspath(source)
    if source.endswith(".gguf"):
        return _load_gguf(Path(source), large)
    where: dict[str, Any] = {"subfolder": subfolder or name}
    if Path(source).is_dir():
        where = {"subfolder": subfolder} if subfolder else _local_subfolder(Path(source), name)
    elif source.startswith((".", "/", "~")):
        raise SwitchError(
            f"{source} is no folder: give a denoiser's folder, or a Hub id owner/name"
        )
    kind: Any = type(large)
    config = kind.load_config(source, **where)
    place = Path(source, where.get("subfolder", ""))
    _check(config, large, place, _vae_mismatches(Path(source), vae_config))
    quantization = config.get("quantization_config") or quantization_config(large)
    if "quantization_config" not in config and quantization is not None:
        where["quantization_config"] = quantization
    # The dtype of a module is that of most of it; single parameters may be kept in float32.
    where |= {"variant": variant, "dtype": compute_dtype(large), "use_safetensors": True}
    try:
        module, told = kind.from_pretrained(source, output_loading_info=True, **where)
    except ValueError as error:  # shapes that differ
        raise SwitchError(f"{place} isn't whole: {error}") from error
    # A quantiser gives weights further tensors.
    unexpected = told["unexpected_keys"] if quantization is None else []
    _check_whole(place, told["missing_keys"], unexpected)
    return _on_storage_device(module, large)


def quantization_config(module: nn.Module) -> Any:
    """Give the quantisation config to load another denoiser like this one; None if there is none.

    GGUF files are quantised already, so there is none that makes one of safetensors.
    """
    quantizer = getattr(module, "hf_quantizer", None)
    config = getattr(quantizer, "quantization_config", None)
    return None if isinstance(config, GGUFQuantizationConfig) else copy.deepcopy(config)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Give the dtype that a denoiser computes in, whatever it is stored in."""
    config = getattr(getattr(module, "hf_quantizer", None), "quantization_config", None)
    dtype: Any = getattr(config, "compute_dtype", None) or module.dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _load_gguf(path: Path, large: nn.Module) -> nn.Module:
    if not path.is_file():
        raise SwitchError(f"{path} doesn't exist: expected a GGUF file")
    options: dict[str, Any] = {}
    config = path.parent / "config.json"
    if config.is_file():
        _check(json.loads(config.read_text("utf-8")), large, path)
        options["config"] = str(path.parent)
    dtype = compute_dtype(large)
    module: nn.Module = type(large).from_single_file(  # type: ignore[attr-defined]
        str(path),
        quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        **options,
    )
    _check_whole(path, [name for name, each in module.named_parameters() if each.is_meta], [])
    return _on_storage_device(module, large)


def _check_whole(place: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Check that every weight was in the files: those that weren't would be left to chance.

    Raises:
        SwitchError: They weren't, or the files have others, too; names all of them.
    """
    found = {"are missing": missing, "are unexpected": unexpected}
    problems = [f"{', '.join(sorted(names))} {what}" for what, names in found.items() if names]
    if problems:
        raise SwitchError(
            f"{place} isn't whole: the tensors {' and '.join(problems)}; fetch or copy it again, "
            "or give it the config.json that belongs to its weights"
        )


def _on_storage_device(module: nn.Module, large: nn.Module) -> nn.Module:
    """Put a denoiser on the device where it waits for its stage, in evaluation mode."""
    device = storage_device(large)
    if next(module.parameters()).device != device:
        module = module.to(device)
    return module.eval()


def _local_subfolder(folder: Path, name: str) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return {}
    for subfolder in (f"{name}_small", name):
        if (folder / subfolder / "config.json").is_file():
            return {"subfolder": subfolder}
    raise SwitchError(
        f"{folder} holds no denoiser: expected a config.json in it, in {name}_small/ or in {name}/"
    )


def _check(config: Any, large: nn.Module, place: Path, more: tuple[str, ...] = ()) -> None:
    mine = {**large.config, "_class_name": type(large).__name__}  # type: ignore[dict-item]
    found = config_mismatches(mine, config) + more
    if found:
        raise PairMismatchError(type(large).__name__, str(place), found)


def _vae_mismatches(folder: Path, vae_config: Any) -> tuple[str, ...]:
    vae = folder / "vae" / "config.json"
    if vae_config is None or not vae.is_file():
        return ()
    theirs = json.loads(vae.read_text("utf-8"))
    return latent_space_mismatches(dict(vae_config), {**vae_config, **theirs})
