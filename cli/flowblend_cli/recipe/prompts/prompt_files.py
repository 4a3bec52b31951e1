"""Prompt files: one prompt a line, with musubi-tuner's flags for the settings of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from flowblend_cli.recipe.prompts.foreign_settings import json_problem
from flowblend_cli.recipe.schema import tables
from flowblend_cli.recipe.schema.explanations import SEED_HINT, explain
from flowblend_cli.recipe.schema.fields import FlowShift, Seed, Text
from flowblend_cli.recipe.source.text_files import Entry, entries, read_lines
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
# Flags of musubi-tuner and sd-scripts that nothing here stands for.
_REFUSED = {
    "g": "the embedded guidance isn't guidance_scale of every model: write --l",
    "ei": "an end picture isn't supported: take it out",
    "ci": "control pictures aren't supported: take it out",
    "cim": "masks of control pictures aren't supported: take it out",
    "cn": "control videos and pictures aren't supported: take it out",
    "of": "one-frame inference isn't supported: take it out",
    "o": "files are named by filename in [recipe]: take it out",
    "ss": "the solver is scheduler in [sampling]: take it out",
    "cs": "a guidance_scale for some steps is one of a [[blend.stage]]: take it out",
    "ctr": "cutting guidance off isn't supported: take it out",
    "rcfg": "renormalised guidance isn't supported: take it out",
    "am": "weights of LoRAs are adapters of a [[blend.stage]]: take it out",
    "ref": "references aren't supported: take it out",
    "rj": "references aren't supported: take it out",
    "fsa": "sound isn't made here: take it out",
    "ofps": "frames per second are fps in [output]: take it out",
    "skb": "temporal stretching isn't supported: take it out",
}
_NUMERIC = "fs|[whfdslg]"
_FLAG = re.compile(
    rf"(?:^|\s)(?:--(?P<name>[A-Za-z][\w-]*)(?=\s|=|$)"
    # What word processors make of two hyphens; before a word it is a dash.
    rf"|[\u2010-\u2015\u2212]{{1,2}}-?(?P<dashed>(?:{_NUMERIC})(?=\s*=?\s*[+-]?[\d.])|n(?=[\s=])"
    r"|i(?=[\s=]+\S+\.(?:png|jpe?g|webp|bmp)\b)))\s*=?",
    re.IGNORECASE,
)
_GLUED = re.compile(rf"({_NUMERIC})\d+", re.IGNORECASE)
# What other programs call them at full length.
_LONG = {
    "steps": "s",
    "sample_steps": "s",
    "infer_steps": "s",
    "cfg": "l",
    "cfg_scale": "l",
    "scale": "l",
    "frames": "f",
    "video_length": "f",
    "length": "f",
    "flow-shift": "fs",
    "negative": "n",
    "neg": "n",
    "image_path": "i",
}
_NEARLY = re.compile(
    rf"(?P<glued>(?<=[^\s-])(?:--|[\u2010-\u2015\u2212])(?P<a>{_NUMERIC})(?=\s*=?\s*[+-]?\d))"
    rf"|(?:^|(?<=\s))(?P<single>-(?P<b>{_NUMERIC})(?=\s*=?\s*[+-]?\d|$))"
    rf"|(?:^|(?<=\s))(?P<parted>(?:--|[\u2010-\u2015\u2212])\s+(?P<d>{_NUMERIC})(?=\s*=?\s*\d))"
    rf"|(?:^|(?<=\s))(?P<hyphens>-{{3,}}(?P<f>{_NUMERIC})(?=\s*=?\s*[+-]?\d))"
    rf"|(?:^|(?<=\s))(?P<colon>--(?P<g>{_NUMERIC}):(?=\s*[+-]?\d))"
    r"|(?:^|(?<=\s))(?P<text>-(?P<e>[in])(?=\s+\S))",
    re.IGNORECASE,
)
_NEARLY_IS = {
    "glued": "is glued to the word before it: write a space before --{flag}",
    "single": "has one hyphen, and flags have two: write --{flag}",
    "parted": "has a space in it: write --{flag}",
    "hyphens": "has more than two hyphens: write --{flag}",
    "colon": "has a colon: write --{flag} and a space",
    "text": "has one hyphen, and flags have two: write --{flag}",
}
_DASH = re.compile("-|[\u2010-\u2015\u2212]")
_OTHER_FORMATS = (".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv")
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
        column: The column that the text begins at, from 1.
    """

    file: str
    line: int
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    flow_shift: float | None = None
    image: str | None = None
    column: int = 1

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

    def place(self, offset: int) -> str:
        """File, line and column of a character of the text, as messages about it begin."""
        return f"{self.file}:{self.line}:{self.column + offset}: "


class LineProblem(NamedTuple):
    """Something that is wrong with a file of prompts; its line and column from 1, if it has any."""

    line: int | None
    column: int | None
    message: str

    def place(self, file: str) -> str:
        """The file with line and column, as messages begin; nothing for the file as a whole."""
        if self.line is None:
            return ""
        return f"{file}:{self.line}:{'' if self.column is None else f'{self.column}:'} "


def read_prompts(name: str, recipe_dir: Path, problems: list[LineProblem]) -> list[PromptLine]:
    """Read a file of prompts.

    Args:
        name: As the recipe writes it: a path below ``recipe_dir``.
        recipe_dir: The recipe's folder.
        problems: Where problems go.

    Returns:
        The prompts that are sound; blank lines and ``#`` comments are none.
    """
    suffix = Path(name).suffix.lower()
    if suffix in _OTHER_FORMATS:
        message = f"{name} is {suffix[1:].upper()}: a prompts file is text with one prompt a line"
        message += _in_json(name, recipe_dir) if suffix == ".json" else ""
        problems.append(LineProblem(None, None, message))
        return []
    try:
        written = read_lines(name, recipe_dir)
    except ValueError as error:
        problems.append(LineProblem(None, None, str(error)))
        return []
    problem = json_problem("\n".join(written))
    if problem is not None:
        problems.append(LineProblem(1, 1, problem))
        return []
    lines = entries(written)
    if not lines:
        problems.append(LineProblem(None, None, f"{name} has no prompt: write one a line"))
    found = []
    for entry in lines:
        if _DASH.search(entry.text) is None:
            found.append(PromptLine(name, entry.line, entry.text, column=entry.column))
            continue
        line = _parse(name, entry, problems)
        if line is not None:
            found.append(line)
    return found


def _in_json(name: str, recipe_dir: Path) -> str:
    """What a file of JSON holds, for a message that it is one."""
    try:
        problem = json_problem("\n".join(read_lines(name, recipe_dir)))
    except ValueError:
        return ""
    return "" if problem is None else f"; this one {problem}"


def _parse(name: str, entry: Entry, problems: list[LineProblem]) -> PromptLine | None:
    """A line that may have flags; None if something is wrong with it."""
    found = list(_FLAG.finditer(entry.text))
    text = entry.text[: found[0].start()] if found else entry.text
    values: dict[str, Any] = {}
    wrong: dict[int, str] = {}
    if not text.strip():
        wrong[0] = "has flags and no prompt: the prompt comes first"
    starts = [match.start() for match in found] + [len(entry.text)]
    for match, end in zip(found, starts[1:], strict=True):
        flag = match["name"] or match["dashed"]
        at = match.start() + (len(match.group()) - len(match.group().lstrip()))
        try:
            key = _key(flag)
            if key in values:
                raise ValueError(f"--{flag} is there twice: keep one of them")
            values[key] = _value(flag.lower(), key, entry.text[match.end() : end].strip())
        except ValueError as error:
            wrong.setdefault(at, str(error))
    for match in _NEARLY.finditer(entry.text):
        if not any(flag.start() <= match.start() < flag.end() for flag in found):
            flag = next(match[group] for group in "abdefg" if match[group]).lower()
            message = _NEARLY_IS[str(match.lastgroup)].format(flag=flag)
            wrong[match.start()] = f"{match.group()!r} {message}"
    if wrong:
        problems += [
            LineProblem(entry.line, entry.column + at, message)
            for at, message in sorted(wrong.items())
        ]
        return None
    special = {key: values.pop(key, None) for key in (SEED, FLOW_SHIFT, IMAGE)}
    return PromptLine(name, entry.line, text.strip(), values, **special, column=entry.column)


def _key(flag: str) -> str:
    if flag.lower() in FLAGS:
        return FLAGS[flag.lower()]
    if flag.lower() in _REFUSED:
        raise ValueError(f"--{flag}: {_REFUSED[flag.lower()]}")
    glued = _GLUED.fullmatch(flag)
    if glued is not None:
        raise ValueError(f"unknown flag --{flag}: write a space after --{glued[1].lower()}")
    meant = _LONG.get(flag.lower()) or closest(flag, [*FLAGS, *FLAG_OF])
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
        message = explain(error.errors(include_url=False)[0])
        hint = f": {SEED_HINT}" if key == SEED and written.startswith("-") else ""
        raise ValueError(f"--{flag} ({key}) {message}{hint}") from error
