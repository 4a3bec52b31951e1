"""``flowblend init``: writes a first recipe for a pair of models, after an offline check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flowblend_cli.commands._new_file import from_folder, name_of, write_new
from flowblend_cli.commands._next_steps import recipe_steps, say_next
from flowblend_cli.models.contents import read_json
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.registry import ModelSource, find_pair, resolve_model, resolve_small
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.text import printable
from flowblend_cli.utils.toml_positions import quote
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
    verdict = _compare(large_source, small_source)
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
    say_next(*recipe_steps(output, batch))


def _compare(large: ModelSource, small: ModelSource) -> str:
    """Compare the two denoisers' configs, as far as they are on this machine.

    Raises:
        PairMismatchError: They don't fit.
    """
    large_config, small_config = _denoiser_config(large), _denoiser_config(small)
    found = [(large, large_config), (small, small_config)]
    missing = dict.fromkeys(printable(source.name) for source, config in found if not config)
    if missing:
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

    A key that one config leaves out has its class's default there, which isn't known here. The
    folder of a bare denoiser has no VAE.
    """
    large_config, small_config = (_config(source, "vae") for source in (large, small))
    shared = large_config.keys() & small_config.keys()
    return latent_space_mismatches(
        {key: large_config[key] for key in shared}, {key: small_config[key] for key in shared}
    )


def _denoiser_config(source: ModelSource) -> Mapping[str, Any]:
    """A denoiser's config.json; empty where it isn't on this machine."""
    folders = [source.subfolder] if source.subfolder else [*_SUBFOLDERS, ""]
    configs = (_config(source, folder) for folder in folders)
    return next((config for config in configs if config), {})


def _config(source: ModelSource, subfolder: str) -> Mapping[str, Any]:
    """The config.json in a subfolder of a model; empty where it isn't on this machine."""
    folder = source.path or (snapshot(source.repo, source.revision) if source.repo else None)
    return read_json(folder / subfolder / "config.json") if folder is not None else {}
