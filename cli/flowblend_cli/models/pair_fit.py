"""check_pair: whether two denoisers can take turns, told from their configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowblend_cli.models.contents import read_json
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.registry import ModelSource
from flowblend_plugin.denoisers.compatibility import config_mismatches, latent_space_mismatches
from flowblend_plugin.errors import PairMismatchError

_SUBFOLDERS = ("transformer", "unet")


def check_pair(large: ModelSource, small: ModelSource) -> None:
    """Check that two denoisers fit, where both are on this machine.

    Args:
        large: The pipeline.
        small: The further denoiser.

    Raises:
        PairMismatchError: They don't; lists every mismatch.
    """
    large_config, small_config = denoiser_config(large), denoiser_config(small)
    if not large_config or not small_config:
        return
    mismatches = config_mismatches(large_config, small_config) + _latent_spaces(large, small)
    if mismatches:
        raise PairMismatchError(large.name, small.name, mismatches)


def _latent_spaces(large: ModelSource, small: ModelSource) -> tuple[str, ...]:
    """Compare the VAEs that the two denoisers were trained with, where both are here.

    A key that one config leaves out has its class's default there, which isn't known here. The
    folder of a bare denoiser has no VAE.
    """
    large_config, small_config = (component_config(source, "vae") for source in (large, small))
    shared = large_config.keys() & small_config.keys()
    return latent_space_mismatches(
        {key: large_config[key] for key in shared}, {key: small_config[key] for key in shared}
    )


def denoiser_config(source: ModelSource) -> Mapping[str, Any]:
    """A denoiser's config.json; empty where it isn't on this machine."""
    folders = [source.subfolder] if source.subfolder else [*_SUBFOLDERS, ""]
    configs = (component_config(source, folder) for folder in folders)
    return next((config for config in configs if config), {})


def component_config(source: ModelSource, subfolder: str) -> Mapping[str, Any]:
    """The config.json in a subfolder of a model; empty where it isn't on this machine."""
    folder = source.path or (snapshot(source.repo, source.revision) if source.repo else None)
    return read_json(folder / subfolder / "config.json") if folder is not None else {}
