"""``flowblend import``: makes a recipe of a file of prompts, one scene a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flowblend_cli.commands._new_file import from_folder, name_of, write_new
from flowblend_cli.commands._next_steps import recipe_steps, say_next
from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.jobs import Batch
from flowblend_cli.models.registry import find_pair, resolve_model, resolve_small
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.prompts.prompt_files import LineProblem, PromptLine, read_prompts
from flowblend_cli.recipe.prompts.syntax import InvalidPrompt, Values, parse_template
from flowblend_cli.recipe.prompts.template import Alternatives, Template
from flowblend_cli.recipe.schema.names import check_name, same_file_key, slug
from flowblend_cli.recipe.source.text_files import read_lines
from flowblend_cli.text import count, printable
from flowblend_cli.utils.toml_positions import quote

_MOST_WORDS_BYTES = 32
_HEADER = """\
# Made of {file} by flowblend import: one scene a line.

[recipe]
name = {name}
output_dir = {output_dir}  # relative to this file

[model]
pipeline = {pipeline}
"""


@click.command(name="import")
@click.argument("prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The recipe to write; never overwritten.  [default: PROMPTS with .toml as its ending]",
)
@click.option(
    "--pipeline", default="sprites", show_default=True, metavar="MODEL", help="The pipeline."
)
@click.option("--small", metavar="MODEL", help="The small denoiser; a known pair has its own.")
def import_(prompts: Path, output: Path | None, pipeline: str, small: str | None) -> None:
    """Make a recipe of the file PROMPTS: one prompt a line, each a scene of its own.

    Lines may have musubi-tuner's flags: --w --h --f --d --s --l --fs --i --n. Comments become
    comments of the recipe. MODEL is the name of a known pair, ./folder, an absolute folder, or
    owner/name on the Hub.

    \b
    Examples:
      flowblend import prompts.txt
      flowblend import prompts.txt -o night.toml --pipeline wan2.1-t2v
    """
    here = Path.cwd()
    target = output or prompts.with_suffix(".toml")
    lines = _read(prompts)
    folder = target.absolute().parent
    source = resolve_model(pipeline, here)
    pair = find_pair(pipeline)
    header = _HEADER.format(
        file=printable(prompts.name),
        name=quote(name_of(prompts.stem)),
        output_dir=quote(f"out/{name_of(prompts.stem)}"),
        pipeline=quote(from_folder(source, folder)),
    )
    if small is not None:
        header += f"small = {quote(from_folder(resolve_small(small, here), folder))}\n"
    elif pair is None or pair.implied_small is None:
        header += '\n[blend]\nstages = "L"  # without a small denoiser\n'
    shifts = {line.flow_shift for line in lines} - {None}
    if shifts:
        header += f"\n[sampling]\nflow_shift = {shifts.pop()}\n"
    comments = _comments(prompts)
    scenes = [_scene(line, name, comments) for line, name in zip(lines, _names(lines), strict=True)]
    write_new(target, "\n".join([header, *scenes]))
    shown = printable(target)
    batch = _load(target, prompts, lines)
    click.echo(f"wrote {shown}: {count(len(lines), 'scene')}, {count(len(batch.jobs), 'job')}")
    say_next(*recipe_steps(target, batch))


def _read(path: Path) -> list[PromptLine]:
    """Read the prompts of a file, if a recipe can hold all of them.

    Raises:
        RecipeError: Something is wrong; holds every problem.
    """
    problems: list[LineProblem] = []
    lines = read_prompts(path.name, path.absolute().parent, problems)
    shifts: dict[float | None, PromptLine] = {}
    for line in lines:
        shifts.setdefault(line.flow_shift, line)
        try:
            parse_template(line.text, wildcard=_any_wildcard)
        except InvalidPrompt as error:
            problems.append(LineProblem(line.line, line.column + error.offset, str(error)))
    if len(shifts) > 1:
        one, other, *_ = shifts.values()
        message = (
            f"has another --fs than line {one.line}, and a recipe has one flow_shift for all of "
            "its scenes: split the file, or write a recipe with a scene that names it as its "
            "prompts_file"
        )
        problems.append(LineProblem(other.line, other.column, message))
    if problems:
        raise RecipeError(
            Problem(str(path), problem.line, problem.column, "", problem.message)
            for problem in problems
        )
    return lines


def _load(target: Path, prompts: Path, lines: Sequence[PromptLine]) -> Batch:
    """Load the jobs of the recipe that was written.

    Raises:
        RecipeError: It is wrong, and is removed; the problems have the prompts' lines.
    """
    try:
        return load_batch(target)
    except RecipeError as error:
        target.unlink()
        raise RecipeError(_of_line(problem, prompts, lines) for problem in error.problems) from None


def _of_line(problem: Problem, prompts: Path, lines: Sequence[PromptLine]) -> Problem:
    scene = re.match(r"scene\[(\d+)\]\.?", problem.location)
    if scene is None:
        return replace(problem, path=str(prompts), line=None, column=None)
    line, key = lines[int(scene[1])].line, problem.location[scene.end() :]
    return replace(problem, path=str(prompts), line=line, column=1, location=key)


def _any_wildcard(name: str, values: Values, /) -> Alternatives:
    """A placeholder for a wildcard file, which is looked up beside the recipe later."""
    return Alternatives((Template((name,)),), (name,))


def _comments(path: Path) -> dict[int, list[str]]:
    """The comments above each line, by the line's number."""
    found: dict[int, list[str]] = {}
    above: list[str] = []
    for number, line in enumerate(read_lines(path.name, path.absolute().parent), 1):
        text = line.strip()
        if text.startswith("#"):
            above.append(f"# {printable(text.lstrip('#').strip())}".rstrip())
        elif text:
            found[number], above = above, []
    return found


def _names(lines: Sequence[PromptLine]) -> Iterator[str]:
    """A name for each scene, of its prompt's first words; the same words get a number."""
    taken: set[str] = set()
    for line in lines:
        words = slug(line.text, _MOST_WORDS_BYTES)
        try:
            check_name(words)
        except ValueError:  # a name that some systems keep for devices
            words = f"scene-{words}"
        name, number = words, 1
        while same_file_key(name) in taken:
            number += 1
            name = f"{words}-{number}"
        taken.add(same_file_key(name))
        yield name


def _scene(line: PromptLine, name: str, comments: dict[int, list[str]]) -> str:
    values: dict[str, Any] = {"name": name, "prompt": line.text, **line.settings}
    if line.image is not None:
        values["image"] = line.image
    if line.seed is not None:
        values["seeds"] = [line.seed]
    written = [f"{k} = {quote(v) if isinstance(v, str) else v}" for k, v in values.items()]
    return "\n".join([*comments.get(line.line, ()), "[[scene]]", *written, ""])
