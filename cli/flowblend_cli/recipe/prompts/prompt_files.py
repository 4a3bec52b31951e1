"""Prompt files: one prompt a line, with musubi-tuner's flags for the settings of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from flowblend_cli.recipe.schema import tables
from flowblend_cli.recipe.schema.tables import FlowShift, Seed, Text
from flowblend_cli.recipe.schema.validation import explain
from flowblend_cli.recipe.source.text_files import entries, read_lines
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest

SEED, IMAGE, FLOW_SHIFT = "seed", "image", "flow_shift"
# What each flag sets, by diffusers' names.
FLAGS = {
    "w": "width",
    "h": "height",
    "f": "num_frames",
    "d": SEED,
    "s": "num_inference_steps",
    "l": "guidance_scale",
    "fs": FLOW_SHIFT,
    "i": IMAGE,
    "n": "negative_prompt",
}
FLAG_OF = {key: flag for flag, key in FLAGS.items()}
_FLAG = re.compile(r"(?:^|\s)--([A-Za-z][\w-]*)(?=\s|$)")
_NUMBER = re.compile(r"[+-]?\d{1,19}(\.\d{1,19})?")


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file.

    Args:
        file: The file as the recipe names it.
        line: Its line in the file, from 1.
        text: The prompt as it is written, without its flags.
        settings: Pipeline arguments that its flags set, by diffusers' names.
        seed: Its own seed, if it has one.
        flow_shift: Its own shift of the noise levels, if it has one.
        image: Its own picture, if it has one.
    """

    file: str
    line: int
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    flow_shift: float | None = None
    image: str | None = None

    @property
    def has_flags(self) -> bool:
        """Whether it sets anything."""
        own = (self.seed, self.flow_shift, self.image)
        return bool(self.settings) or any(value is not None for value in own)

    @property
    def identity(self) -> str:
        """What its flags set, without the seed, as text; empty where they set nothing."""
        if not self.has_flags:
            return ""
        values = {**self.settings, FLOW_SHIFT: self.flow_shift, IMAGE: self.image}
        return " ".join(f"{k}={v!r}" for k, v in sorted(values.items()) if v is not None)

    @property
    def where(self) -> str:
        """File and line, as messages about it begin."""
        return f"{self.file}:{self.line}: "


class LineProblem(NamedTuple):
    """Something that is wrong with a file of prompts, and its line from 1; None for no line."""

    line: int | None
    message: str


def read_prompts(name: str, recipe_dir: Path, problems: list[LineProblem]) -> list[PromptLine]:
    """Read a file of prompts.

    Args:
        name: As the recipe writes it: a path below ``recipe_dir``.
        recipe_dir: The recipe's folder.
        problems: Where problems go.

    Returns:
        The prompts that are sound; blank lines and ``#`` comments are none.
    """
    try:
        lines = entries(read_lines(name, recipe_dir))
    except ValueError as error:
        problems.append(LineProblem(None, str(error)))
        return []
    if not lines:
        problems.append(LineProblem(None, f"{name} has no prompt: write one a line"))
    found = []
    for number, line in lines:
        if "--" not in line:
            found.append(PromptLine(name, number, line))
            continue
        try:
            found.append(_parse(name, number, line))
        except ValueError as error:
            problems += [LineProblem(number, message) for message in error.args]
    return found


def _parse(name: str, number: int, line: str) -> PromptLine:
    """A line with flags.

    Raises:
        ValueError: Something is wrong; each argument is one problem.
    """
    text, *pieces = _FLAG.split(line)
    values: dict[str, Any] = {}
    problems = [] if text.strip() else ["has flags and no prompt: the prompt comes first"]
    for flag, written in zip(pieces[::2], pieces[1::2], strict=True):
        try:
            key = _key(flag)
            if key in values:
                raise ValueError(f"--{flag} is there twice: keep one of them")
            values[key] = _value(flag, key, written.strip())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(*problems)
    special = {key: values.pop(key, None) for key in (SEED, FLOW_SHIFT, IMAGE)}
    return PromptLine(name, number, text.strip(), values, **special)


def _key(flag: str) -> str:
    if flag in FLAGS:
        return FLAGS[flag]
    meant = closest(flag, [*FLAGS, *FLAG_OF])
    known = ", ".join(f"--{short} {key}" for short, key in FLAGS.items())
    hint = f"did you mean --{FLAG_OF.get(meant, meant)}?" if meant else f"known are: {known}"
    raise ValueError(f"unknown flag --{shorten(flag)}; {hint}; write a space after -- that is text")


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    kinds: dict[str, Any] = {
        **tables.SETTINGS,
        SEED: Seed,
        IMAGE: Text,
        FLOW_SHIFT: FlowShift,
    }
    return TypeAdapter(kinds[key])


def _value(flag: str, key: str, written: str) -> Any:
    if not written:
        raise ValueError(f"--{flag} ({key}) needs a value")
    value: Any = written
    if key not in (IMAGE, "negative_prompt"):
        match = _NUMBER.fullmatch(written)
        if match is None:
            raise ValueError(f"--{flag} ({key}) needs a number, got {shorten(repr(written))}")
        value = float(written) if match[1] else int(written)
    try:
        return _adapter(key).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(f"--{flag} ({key}) {explain(error.errors(include_url=False)[0])}") from (
            error
        )
