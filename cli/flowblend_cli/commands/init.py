"""``flowblend init``: writes a first recipe for a pair of models, after an offline check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowblend_cli.commands._new_file import from_folder, name_of, write_new
from flowblend_cli.commands._next_steps import recipe_steps, say_next
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.forwards import PIPELINES
from flowblend_cli.models.identity import model_problems
from flowblend_cli.models.pair_fit import check_pair, denoiser_config
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.registry import (
    KnownPair,
    ModelSource,
    find_pair,
    resolve_model,
    resolve_small,
)
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.text import printable
from flowblend_cli.utils.toml_positions import quote

_EXAMPLE = "images/walker.png"
_EXAMPLE_PROMPT = "a person in a red jacket walks along a path through a meadow, steady pace"
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
{blend}
{defaults}[[scene]]
name = "first"
{image}prompt = {prompt}
seeds = [42]
"""
_BLEND = """\
[blend]
stages = "LSL"                     # large, small, large
boundaries = [0.4, 0.8]            # where the stages end, as fractions of the steps
"""
_LARGE_ONLY = """\
[blend]
stages = "L"                       # with a small denoiser in [model]: "LSL"
"""


@click.command()
@click.option("--pipeline", required=True, metavar="MODEL", help="The pipeline, the large one.")
@click.option("--small", metavar="MODEL", help="The small denoiser; a known pair has its own.")
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Picture to begin with, for image-to-video; without it, an example.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("recipe.toml"),
    show_default=True,
    help="The recipe to write; never overwritten.",
)
def init(pipeline: str, small: str | None, image: Path | None, output: Path) -> None:
    """Write a first recipe for a pair of models, after checking offline that they fit.

    MODEL is the name of a known pair, ./folder, an absolute folder, or owner/name on the Hub.

    \b
    Examples:
      flowblend init --pipeline sprites
      flowblend init --pipeline ./wan-14b --small ./wan-1.3b -o wan.toml
      flowblend init --pipeline wan2.2-i2v --image first.png
    """
    here = Path.cwd()
    large_source = resolve_model(pipeline, here)
    pair, pipeline_class = find_pair(pipeline), large_source.pipeline_class
    table, folder = argument_table(), output.absolute().parent
    if image is not None and not table.takes_image(pipeline_class):
        raise click.UsageError(f"{pipeline} begins with no picture: leave --image out")
    small_name = small or (pair.implied_small if pair else None)
    makes_pictures = pipeline_class is not None and not table.takes(pipeline_class, "num_frames")
    if small_name is None and pair is None and not makes_pictures:
        raise click.UsageError(f"--small is needed: {pipeline} is no known pair with its own")
    small_source = resolve_small(small_name, here) if small_name is not None else None
    verdict = "no small denoiser: the large one runs every step"
    if small_source is not None:
        verdict = _compare(large_source, small_source)
    picture = None
    if image is not None or table.needs_image(pipeline_class):
        picture = _picture_in(folder, image)
    write_new(
        output,
        _RECIPE.format(
            name=quote(name_of(pipeline)),
            pipeline=quote(from_folder(large_source, folder)),
            small=f"small = {quote(from_folder(small_source, folder))}\n"
            if small and small_source
            else "",
            blend=_BLEND if small_source is not None else _LARGE_ONLY,
            defaults=_defaults(pair, pipeline_class),
            image=f"image = {quote(picture)}\n" if picture else "",
            prompt=quote(_prompt(pair, picture, image)),
        ),
    )
    batch = load_batch(output)
    shown = printable(output)
    for _, problem in model_problems(batch.jobs[0].model, folder, only_here=True):
        click.echo(f"warning: {printable(problem)}", err=True)
    click.echo(verdict)
    if picture is not None and image is None:
        click.echo(f"wrote {printable(folder / picture)}: an example; put your own in its place")
    click.echo(f"wrote {shown}: one scene, {len(batch.jobs)} job")
    say_next(*recipe_steps(output, batch))


def _picture_in(folder: Path, image: Path | None) -> str:
    """The name of a picture in a recipe's folder, or below it; it is copied there if need be.

    Args:
        folder: The recipe's folder.
        image: The picture; None for an example.

    Raises:
        UsageError: Another file is there already.
    """
    source = image if image is not None else bundled_dir() / _EXAMPLE
    if source.resolve().is_relative_to(folder.resolve()):
        return source.resolve().relative_to(folder.resolve()).as_posix()
    copy = folder / source.name
    if not (copy.is_file() and copy.read_bytes() == source.read_bytes()):
        write_new(copy, source.read_bytes())
    return source.name


def _prompt(pair: KnownPair | None, picture: str | None, image: Path | None) -> str:
    """A prompt that suits the model, and the example picture where it begins with that."""
    if picture is not None and image is None:
        return _EXAMPLE_PROMPT
    return _SPRITES_PROMPT if pair and pair.name == "sprites" else _PROMPT


def _defaults(pair: KnownPair | None, pipeline_class: str | None) -> str:
    """The [defaults] of a first recipe: nothing that a known pair has by itself."""
    known = pair.defaults if pair is not None else {}
    facts = PIPELINES.get(pipeline_class or "")
    values: dict[str, Any] = {"num_inference_steps": 50}
    is_guided = facts is None or facts.argument == "guidance_scale"
    if is_guided and argument_table().takes(pipeline_class, "guidance_scale"):
        values["guidance_scale"] = 5.0
    lines = [f"{key} = {value}\n" for key, value in values.items() if key not in known]
    return "".join(["[defaults]\n", *lines, "\n"]) if lines else ""


def _compare(large: ModelSource, small: ModelSource) -> str:
    """Compare the two denoisers' configs, as far as they are on this machine.

    Raises:
        PairMismatchError: They don't fit.
    """
    large_config, small_config = denoiser_config(large), denoiser_config(small)
    found = [(large, large_config), (small, small_config)]
    missing = dict.fromkeys(printable(source.name) for source, config in found if not config)
    if missing:
        return (
            f"not checked whether the pair fits: {' and '.join(missing)} isn't on this machine "
            "(rendering checks it)"
        )
    check_pair(large, small)
    return f"the pair fits: {large_config.get('_class_name', 'denoiser')}"
