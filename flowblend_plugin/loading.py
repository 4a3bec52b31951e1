"""Load one denoiser, and nothing else, from a folder or the local Hub cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from flowblend_plugin.errors import PairMismatchError, SwitchError
from flowblend_plugin.pairing import config_mismatches, latent_space_mismatches

# The pipelines' attributes that hold a denoiser, in the order in which they are looked for.
DENOISER_NAMES = ("transformer", "unet")


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
) -> nn.Module:
    """Load a denoiser that is to share a trajectory with ``large``.

    Args:
        source: A denoiser's folder, a pipeline's folder (its ``{name}_small`` is taken, else its
            ``{name}``), or a Hub id. Only safetensors are read.
        large: The denoiser whose class, dtype and device the loaded one takes.
        name: The pipeline's attribute, ``"transformer"`` or ``"unet"``.
        vae_config: Config of the pipeline's VAE; compared with that of a pipeline's folder.
        subfolder: Where in the pipeline's folder or repository the denoiser lies, if known.

    Returns:
        The denoiser, in evaluation mode.

    Raises:
        PairMismatchError: Its config doesn't fit the large one's; raised before weights are read.
        SwitchError: The folder isn't there, or holds no denoiser.
    """
    source = os.fspath(source)
    where: dict[str, Any] = {"subfolder": subfolder or name}
    if Path(source).is_dir():
        where = {"subfolder": subfolder} if subfolder else _local_subfolder(Path(source), name)
        _check_folder(Path(source), where.get("subfolder"), large, vae_config)
    elif source.startswith((".", "/", "~")):
        raise SwitchError(
            f"{source} is no folder: give a denoiser's folder, or a Hub id owner/name"
        )
    # The dtype of a module is that of most of it; single parameters may be kept in float32.
    module: nn.Module = type(large).from_pretrained(  # type: ignore[attr-defined]
        source, dtype=large.dtype, use_safetensors=True, **where
    )
    return module.to(next(large.parameters()).device).eval()


def _local_subfolder(folder: Path, name: str) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return {}
    for subfolder in (f"{name}_small", name):
        if (folder / subfolder / "config.json").is_file():
            return {"subfolder": subfolder}
    raise SwitchError(
        f"{folder} holds no denoiser: expected a config.json in it, in {name}_small/ or in {name}/"
    )


def _check_folder(folder: Path, subfolder: str | None, large: nn.Module, vae_config: Any) -> None:
    config = json.loads((folder / (subfolder or "") / "config.json").read_text("utf-8"))
    mine = {**large.config, "_class_name": type(large).__name__}  # type: ignore[dict-item]
    found = config_mismatches(mine, config)
    vae = folder / "vae" / "config.json"
    if vae_config is not None and vae.is_file():
        theirs = json.loads(vae.read_text("utf-8"))
        found += latent_space_mismatches(dict(vae_config), {**vae_config, **theirs})
    if found:
        raise PairMismatchError(type(large).__name__, str(folder / (subfolder or "")), found)
