"""``flowblend recipes``: lists the bundled recipes, or copies one to start from."""

from __future__ import annotations

import itertools
import shutil
import sys
import textwrap
from pathlib import Path

import click

from flowblend_cli.commands._new_file import write_new
from flowblend_cli.commands._next_steps import recipe_steps, say_next
from flowblend_cli.errors import OutputError, UsageError
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.text import printable
from flowblend_cli.utils.json_files import NotJson, read_json

_NO_END = 1_000_000
SCHEMA = "flowblend.schema.json"


@click.group()
def recipes() -> None:
    """List the bundled recipes, or copy one."""


@recipes.command()
def ls() -> None:
    """List the bundled recipes, with what each one shows, and what has to be fetched first."""
    found = bundled_recipes()
    width = max((len(name) for name in found), default=0)
    # A terminal's lines are broken between words; other programs get a line for each recipe.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _NO_END
    indent = width + 2 if columns >= 2 * width else 4
    for name, path in found.items():
        lines = textwrap.wrap(
            f"{name:<{width}}  {printable(_shown(name, path))}",
            max(columns - 1, 20),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        click.echo("\n".join(lines))


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
    from flowblend_cli.recipe.loader import load_batch
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
    say_next(*recipe_steps(target, load_batch(target, settle=False)))


def _is_schema(path: Path, title: str) -> bool:
    """Whether a file is the schema of some version of flowblend; an older one is left as it is."""
    try:
        return path.is_file() and bool(read_json(path, follow=True)["title"] == title)
    except (OSError, NotJson, KeyError, TypeError):
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


def _shown(name: str, path: Path) -> str:
    """A recipe's headline; where its models aren't here, with what to fetch before a render."""
    headline, absent = _headline(path), _absent(path)
    if not absent:
        return headline
    fetch = f"flowblend models fetch {name}"
    what = f"models to fetch first ({', '.join(absent)})"
    shown, command, options = headline.partition(f"flowblend render {name}")
    if not command:
        return f"{headline} {what[0].upper()}{what[1:]}: {fetch}"
    return f"{shown.rstrip(' :')}; {what}: {fetch}, then {command}{options}"


def _absent(path: Path) -> list[str]:
    """The repositories that a bundled recipe needs, and that aren't whole on this machine."""
    from flowblend_cli.models.hub.requirements import bundled_requirements, find_in_cache

    needed = bundled_requirements(path)
    absent = [one.repo for one in needed if find_in_cache(one).state != "complete"]
    return list(dict.fromkeys(absent))


def _headline(path: Path) -> str:
    """The first paragraph of the comment that a recipe begins with."""
    lines = path.read_text("utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
    return " ".join(line.removeprefix("#").strip() for line in comment)
