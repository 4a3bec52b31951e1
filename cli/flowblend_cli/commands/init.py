"""``flowblend init``: write a first recipe for a pair of models, checked offline to fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flowblend_cli.commands._new_file import from_folder, name_of, quote, write_new
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.registry import (
    ModelSource,
    find_pair,
    read_json,
    resolve_model,
    resolve_small,
)
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.text import printable
from flowblend_plugin.denoisers.compatibility import config_mismatches, latent_space_mismatches
from flowblend_plugin.errors import PairMismatchError

_SUBFOLDERS = ("transformer", "unet")
_SPRITES_PROMPT = "a red circle moving right on a navy background"
_PROMPT = "a lighthouse at dusk, waves rolling in, slow camera movement"

_RECIPE = """\
# A first recipe: flowblend plan shows what it will do, flowblend render does it.

[recipe]
name = {name}
output_dir = "out"                 # relative to this file

[model]
pipeline = {pipeline}
{small}
[blend]
stages = "LSL"                     # large, small, large
boundaries = [0.4, 0.8]            # where the stages end, as fractions of the steps

[defaults]
num_inference_steps = 50
guidance_scale = 5.0

[[scene]]
name = "first"
prompt = {prompt}
seeds = [42]
"""


@click.command()
@click.option("--pipeline", required=True, metavar="MODEL", help="The pipeline, the large one.")
@click.option("--small", metavar="MODEL", help="The small denoiser; a known pair has its own.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("recipe.toml"),
    show_default=True,
    help="The recipe to write; never overwritten.",
)
def init(pipeline: str, small: str | None, output: Path) -> None:
    """Write a first recipe for a pair of models, after checking offline that they fit.

    MODEL is the name of a known pair, ./folder, an absolute folder, or owner/name on the Hub.

    \b
    Examples:
      flowblend init --pipeline sprites
      flowblend init --pipeline ./wan-14b --small ./wan-1.3b -o wan.toml
    """
    here = Path.cwd()
    large_source = resolve_model(pipeline, here)
    pair = find_pair(pipeline)
    if argument_table().needs_image(large_source.pipeline_class):
        raise click.UsageError(
            f"{pipeline} begins with a picture, which a first recipe can't know: start from "
            "`flowblend recipes cp wan2.2-i2v` instead, and change its model and image"
        )
    small_name = small or (pair.implied_small if pair else None)
    if small_name is None:
        raise click.UsageError(f"--small is needed: {pipeline} is no known pair with its own")
    small_source = resolve_small(small_name, here)
    verdict = _verdict(large_source, small_source)
    folder = output.absolute().parent
    write_new(
        output,
        _RECIPE.format(
            name=quote(name_of(pipeline)),
            pipeline=quote(from_folder(large_source, folder)),
            small=f"small = {quote(from_folder(small_source, folder))}\n" if small else "",
            prompt=quote(_SPRITES_PROMPT if pair and pair.name == "sprites" else _PROMPT),
        ),
    )
    batch = load_batch(output)
    shown = printable(output)
    click.echo(verdict)
    click.echo(f"wrote {shown}: one scene, {len(batch.jobs)} job")
    click.echo(f"next: flowblend plan {shown}")
    click.echo(f"      flowblend render {shown}")


def _verdict(large: ModelSource, small: ModelSource) -> str:
    """Compare the two denoisers' configs, as far as they are on this machine.

    Raises:
        PairMismatchError: They don't fit.
    """
    configs = [_denoiser_config(large), _denoiser_config(small)]
    missing = [
        printable(source.name)
        for source, config in zip((large, small), configs, strict=True)
        if config is None
    ]
    large_config, small_config = configs
    if large_config is None or small_config is None:
        return (
            f"not checked whether the pair fits: {' and '.join(missing)} isn't on this machine "
            "(rendering checks it)"
        )
    mismatches = config_mismatches(large_config, small_config)
    mismatches += _latent_spaces(large, small)
    if mismatches:
        raise PairMismatchError(large.name, small.name, mismatches)
    return f"the pair fits: {large_config.get('_class_name', 'denoiser')}"


def _latent_spaces(large: ModelSource, small: ModelSource) -> tuple[str, ...]:
    """Compare the VAEs that the two denoisers were trained with, where both are here.

    A key that one config leaves out has its class's default there, which nobody can tell here.
    """
    configs = [_vae_config(large), _vae_config(small)]
    shared = configs[0].keys() & configs[1].keys()
    ours, theirs = ({key: config[key] for key in shared} for config in configs)
    return latent_space_mismatches(ours, theirs)


def _vae_config(source: ModelSource) -> Mapping[str, Any]:
    """The VAE's config.json of a pipeline; empty where it isn't on this machine, or there is none.

    The folder of a bare denoiser has none.
    """
    name = "vae/config.json"
    path = source.path / name if source.path else _cached(source, name)
    return read_json(path) if path else {}


def _denoiser_config(source: ModelSource) -> Mapping[str, Any] | None:
    """A denoiser's config.json from a folder or the local cache; None if it isn't there."""
    candidates = [source.subfolder] if source.subfolder else [*_SUBFOLDERS, None]
    for subfolder in candidates:
        name = f"{subfolder}/config.json" if subfolder else "config.json"
        path = source.path / name if source.path else _cached(source, name)
        config = read_json(path) if path else {}
        if config:
            return config
    return None


def _cached(source: ModelSource, filename: str) -> Path | None:
    """A file of a Hub repository, only if it was downloaded before; never asks the network."""
    if source.repo is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repo, filename, revision=source.revision)
    return Path(found) if isinstance(found, str) else None
