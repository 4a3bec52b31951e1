"""``flowblend recipes``: lists the bundled recipes, or copies one to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flowblend_cli.commands._new_file import write_new
from flowblend_cli.errors import OutputError, UsageError
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.text import printable

SCHEMA = "flowblend.schema.json"


@click.group()
def recipes() -> None:
    """List the bundled recipes, or copy one."""


@recipes.command()
def ls() -> None:
    """List the bundled recipes, with what each one shows."""
    found = bundled_recipes()
    width = max((len(name) for name in found), default=0)
    for name, path in found.items():
        click.echo(f"{name:<{width}}  {printable(_headline(path))}")


@recipes.command()
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path))
def cp(name: str, dest: Path) -> None:
    """Copy the bundled recipe NAME to the file or folder DEST; never overwrites.

    The copy's output_dir is relative to the copy's folder. What the recipe needs is copied beside
    it: pictures to begin with, files that its prompts come from, and flowblend.schema.json, which
    its first line names for editors.

    \b
    Example:
      flowblend recipes cp quickstart mine.toml
    """
    from flowblend_cli.recipe.schema.json_schema import SCHEMA_TITLE, schema_text

    found = bundled_recipes()
    if name not in found:
        raise UsageError(f"no bundled recipe is named {name!r}; there are {', '.join(found)}")
    target = dest / f"{name}.toml" if dest.is_dir() else dest
    schema = target.with_name(SCHEMA)
    is_ours = not schema.exists() or _is_schema(schema, SCHEMA_TITLE)
    header = f"#:schema ./{SCHEMA}\n" if is_ours else ""
    write_new(target, header + found[name].read_text("utf-8"))
    for file in _files(found[name]):
        _copy(found[name].parent / file, target.parent / file)
    if not is_ours:
        click.echo(f"{printable(schema)} is another file, so editors get no schema", err=True)
    elif not schema.exists():
        write_new(schema, schema_text())
    click.echo(f"wrote {printable(target)}")
    click.echo(f"next: flowblend render {printable(target)}")


def _is_schema(path: Path, title: str) -> bool:
    """Whether a file is the schema of some version of flowblend; an older one is left as it is."""
    try:
        return path.is_file() and bool(json.loads(path.read_bytes())["title"] == title)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _files(path: Path) -> list[str]:
    """The files that a recipe reads: pictures, wildcards, prompts; relative to its folder."""
    from flowblend_cli.recipe.loader import load_recipe

    recipe = load_recipe(path)
    return sorted({*(picture.path for picture in recipe.pictures.values()), *recipe.prompts.files})


def _copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that is made where it is missing; the same one may be there."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target.parent} can't be made: {error.strerror}") from error
    write_new(target, content)


def _headline(path: Path) -> str:
    """The comment in a recipe's first line."""
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
