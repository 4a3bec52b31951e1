"""``flowblend info``: shows how a finished file was rendered."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from flowblend_cli.artifacts.finished import FileState, inspect_final
from flowblend_cli.errors import DocumentError, UsageError
from flowblend_cli.text import printable
from flowblend_plugin.errors import StageError
from flowblend_plugin.stages import LETTERS, Stage

_SHORT_HASH = 12


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole record as one JSON object.")
def info(file: Path, as_json: bool) -> None:
    """Show how FILE was rendered: prompt, seed, stages, models, versions.

    FILE is a clip or an image that flowblend wrote. Rendering it again gives the same pixels.

    \b
    Examples:
      flowblend info out/square-s1-n50.mp4
      flowblend info out/square-s1-n50.mp4 --json | jq .job.prompt
    """
    found = inspect_final(file, follow=True)
    document = found.document
    if document is None:
        raise UsageError(
            f"{file}: holds no record of a render: it isn't flowblend's, or another tool removed "
            "its 'comment' tag; give a file that `flowblend render` wrote"
        )
    from flowblend_cli.artifacts.schema.description import describe as check

    try:
        check(document)
    except DocumentError as error:
        raise DocumentError(f"{file}: {error}") from error
    note = ""
    if found.state is FileState.EDITED:
        note = f"the file {found.change}"
    elif found.state is FileState.DAMAGED:
        note = "the file was altered since it was rendered, and can't be decoded"
    if as_json:
        if note:
            click.echo(f"{printable(file)}: {note}", err=True)
        click.echo(json.dumps(document))
        return
    rows = [("file", str(file.absolute())), *describe(document), *_present("note", note)]
    for label, value in rows:
        click.echo(f"{label:<16} {printable(value)}")


def describe(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say a document in labelled lines, leaving out what it lacks.

    Args:
        document: A document; its values are shown, never trusted to have any shape.

    Yields:
        Label and value, not yet made harmless to a terminal.
    """
    job, resolved = _mapping(document.get("job")), _mapping(document.get("resolved"))
    steps = resolved.get("denoisers")
    yield from _present("job", job.get("id"))
    yield from _present("prompt", job.get("prompt"))
    yield from _present("negative prompt", job.get("negative_prompt"))
    yield from _present("image", _mapping(job.get("image")).get("path"))
    yield from _present("seed", resolved.get("seed", job.get("seed")))
    yield from _present("stages", job.get("stage_string"))
    if isinstance(steps, str) and steps:
        yield "denoisers", describe_denoisers(steps)
    if isinstance(resolved.get("memory"), list):
        yield "memory ran out", ", ".join(map(str, resolved["memory"]))
    yield from _stage_settings(job.get("stages"))
    yield from _caches(resolved.get("caches"))
    for key in ("arguments", "sampling", "model"):
        yield from _present(key, _flat(job.get(key)))
    yield from _present("model hashes", _flat(document.get("models")))
    versions = {"flowblend": document.get("flowblend"), **_mapping(document.get("versions"))}
    yield from _present("versions", _flat(versions))
    yield from _present("pixels sha256", document.get("pixels_sha256"))


def _stage_settings(stages: object) -> Iterator[tuple[str, str]]:
    """What each stage sets besides its denoiser."""
    for number, stage in enumerate(stages if isinstance(stages, list) else [], 1):
        try:
            settings = Stage.from_document(stage).describe_settings()
        except (StageError, TypeError, ValueError):
            continue
        yield from _present(f"stage {number}", settings)


def _caches(reports: object) -> Iterator[tuple[str, str]]:
    """What each stage's cache saved."""
    for report in reports if isinstance(reports, list) else []:
        saved = _mapping(report)
        stage, computed = saved.get("stage"), saved.get("computed")
        if isinstance(stage, int) and isinstance(computed, float):
            forwards = f"{saved.get('skipped')} of {saved.get('forwards')} forwards cut short"
            text = f"{saved.get('kind')}: {forwards}, {computed:.0%} computed"
            yield f"cache, stage {stage + 1}", text


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _present(label: str, value: object) -> Iterator[tuple[str, str]]:
    if value not in (None, ""):
        yield label, str(value)


def _flat(value: object) -> str:
    """Write nested values on one line, keys joined by dots, long hashes shortened."""
    return ", ".join(f"{key} {shown}" for key, shown in _leaves(value, ""))


def _leaves(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        shown = str(value)
        is_hash = len(shown) >= 40 and set(shown) <= set(string.hexdigits)
        yield name, shown[:_SHORT_HASH] if is_hash else shown


def describe_denoisers(letters: str) -> str:
    """Say who ran which step: ``"LLS"`` becomes ``"steps 0-1 large, 2 small"``.

    Args:
        letters: One letter a step.
    """
    parts, start = [], 0
    for letter, run in itertools.groupby(letters):
        end = start + len(list(run)) - 1
        span = str(start) if start == end else f"{start}-{end}"
        parts.append(f"{span} {LETTERS.get(letter, letter)}")
        start = end + 1
    return f"{'step' if len(letters) == 1 else 'steps'} " + ", ".join(parts)
