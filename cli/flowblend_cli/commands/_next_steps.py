"""What to type next, as commands say it: lines that a shell runs as they are."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.text import is_unsafe, printable

if TYPE_CHECKING:
    from flowblend_cli.jobs import Batch


def say_next(*commands: Sequence[str | Path], after: str = "", to_stderr: bool = False) -> None:
    """Print commands, one a line, in the order in which they are typed.

    Args:
        commands: The words of each, without ``flowblend``.
        after: What stands at the end of each, for the shell to read.
        to_stderr: Whether stdout holds something for programs.
    """
    for number, words in enumerate(commands):
        line = " ".join([*map(_quoted, ("flowblend", *map(str, words))), *after.split()])
        click.echo(f"{'next: ' if number == 0 else '      '}{line}", err=to_stderr)


def recipe_steps(recipe: Path, batch: Batch) -> Iterator[Sequence[str | Path]]:
    """What to do with a new recipe: fetch the models that aren't here, look at it, render it.

    Args:
        recipe: The file, as it was named.
        batch: Its jobs.
    """
    from flowblend_cli.models.hub.requirements import batch_requirements, find_in_cache

    name = as_argument(recipe)
    if any(find_in_cache(one).state != "complete" for one in batch_requirements(batch)):
        yield "models", "fetch", name
    yield "plan", name
    yield "render", name


def as_argument(path: Path) -> str:
    """A path that no command takes for an option, or for a bundled recipe."""
    written = str(path)
    is_other = written.startswith("-") or written in bundled_recipes()
    return f"./{written}" if is_other else written


def _quoted(word: str) -> str:
    """A word as a shell reads it; control characters are escaped, as bash and zsh read them."""
    if not any(is_unsafe(character) for character in word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(escaped)}'"
