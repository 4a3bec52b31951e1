"""The recipe that ``report --promote`` writes: the winners' settings and seeds, fixed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.variants import group
from flowblend_cli.analysis.compare.findings import RecipeReport, Report
from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import Job
from flowblend_cli.text import printable
from flowblend_plugin.stages import LETTERS, Stage

_DECIDES_NO_FILE = ("scene", "prompt", "negative_prompt", "image")


def promoted(report: Report, out: Path) -> str:
    """Write a recipe that renders a report's winners.

    Args:
        report: The report.
        out: The recipe's future place, which its relative paths start from.

    Returns:
        Its text.

    Raises:
        UsageError: Nothing won, or several recipes have winners.
    """
    parts = [part for part in report.parts if part.comparison.winners]
    if not parts:
        raise UsageError(
            "nothing to promote: no clip won; a report needs scores (the extra metrics) and "
            "something to choose from, a [sweep] or several seeds"
        )
    if len(parts) > 1:
        names = ", ".join(part.section.name for part in parts)
        raise UsageError(
            f"{len(parts)} recipes have winners here ({names}): render each into a folder of its "
            "own, and promote one of them"
        )
    (part,) = parts
    clips = [clip for clip in part.section.clips if clip.id in part.winners]
    first = next(clip for clip in clips if clip.id == part.comparison.winners[0].job)
    winners = [clip for clip in clips if _once(clip) == _once(first)]
    rest = [clip for clip in clips if clip not in winners]
    return "\n".join([*_head(part, report, winners, rest), *_body(winners, part, out)]) + "\n"


def _once(clip: Clip) -> list[str]:
    """The tables that a recipe has once, for all of its scenes."""
    job = clip.job
    return [
        *_model(job, Path(clip.source)),
        *_blend(clip),
        *_table("sampling", _set(asdict(job.sampling))),
        *_table("output", _output(job)),
    ]


def _head(
    part: RecipeReport, report: Report, winners: list[Clip], rest: list[Clip]
) -> Iterator[str]:
    first = part.comparison.winners[0]
    chosen = first.label or "its seed"
    files = ", ".join(clip.name for clip in winners)
    yield f"# What won among the clips of recipe {printable(part.section.name)}, in the folder"
    yield f"# {printable(report.folder.name)}: {printable(chosen)}, score {first.score:.3f}"
    yield f"# ({printable(files)})."
    yield "# Seed, steps and all else are fixed here. Vary the prompt: what changes in the clips is"
    yield '# then the prompt\'s doing. A list of prompts renders each: prompt = ["...", "..."].'
    if rest:
        files = ", ".join(clip.name for clip in rest)
        yield "# Winners that aren't here, since a recipe has one [model], [blend], [sampling] and"
        yield f"# [output], and theirs differ: {printable(files)}."
    yield ""


def _body(winners: list[Clip], part: RecipeReport, out: Path) -> Iterator[str]:
    jobs = [clip.job for clip in winners]
    first = winners[0]
    name = f"{part.section.name}-promoted"
    yield from _table("recipe", {"name": name, "output_dir": f"out/{name}"})
    yield from _once(first)
    shared = _shared([dict(job.arguments) for job in jobs])
    yield from _table("defaults", shared)
    for clips in group(winners, lambda clip: clip.job.scene).values():
        yield from _scene(clips, shared, out)


def _scene(clips: list[Clip], shared: Mapping[str, Any], out: Path) -> Iterator[str]:
    """One scene; its prompts stand apart where their winning seeds do."""
    for number, clip in enumerate(clips):
        job = clip.job
        values: dict[str, Any] = {
            "name": job.scene if number == 0 else f"{job.scene}-{number + 1}",
            # Braces would offer alternatives; doubled, they stand for themselves.
            "prompt": job.prompt.replace("{", "{{").replace("}", "}}"),
            "negative_prompt": job.negative_prompt,
            "image": _image(clip, out) if job.image else None,
            "seeds": [clip.seed],
        }
        own = {k: v for k, v in job.arguments if shared.get(k) != v}
        yield from _lines("[[scene]]", {**_set(values), **own})


def _image(clip: Clip, out: Path) -> str:
    """The picture's path from the new recipe's folder, which must hold it."""
    assert clip.job.image is not None
    place = (Path(clip.source) / clip.job.image.path).resolve()
    folder = out.absolute().parent.resolve()
    if not place.is_relative_to(folder):
        raise UsageError(
            f"{out}: this recipe begins with the picture {place}, which must lie in the recipe's "
            f"folder or below it: write to a file in {place.parent}"
        )
    return place.relative_to(folder).as_posix()


def _model(job: Job, source: Path) -> Iterator[str]:
    spec = job.model
    values = {
        "pipeline": _place(spec.pipeline, source),
        "small": None if spec.small is None else _place(spec.small, source),
        "dtype": None if spec.dtype == "auto" else spec.dtype,
        "device": None if spec.device == "auto" else spec.device,
        "offload": None if spec.offload == "none" else spec.offload,
    }
    yield from _table("model", _set(values))
    further = {letter: _place(where, source) for letter, where in spec.denoisers}
    yield from _table("model.denoisers", further)
    adapters: dict[str, dict[str, str]] = {}
    for one in job.adapters:
        adapters.setdefault(one.name, {})[one.role] = _place(one.source, source)
    yield from _table("model.adapters", adapters)


def _place(name: str, source: Path) -> str:
    """A model's name, valid from any folder."""
    return str((source / name).resolve()) if name.startswith("./") else name


def _blend(clip: Clip) -> Iterator[str]:
    stages = clip.job.stages
    if clip.job.adaptive is not None and clip.denoisers:
        stages = tuple(_as_ran(clip.denoisers, clip.job.num_inference_steps))
    plain = all(not stage.settings for stage in stages)
    ends = [stage.until for stage in stages[:-1]]
    letters = clip.job.stage_string
    is_short = (
        plain
        and clip.job.adaptive is None
        and None not in ends
        and [_letter(stage.denoiser) for stage in stages] == list(letters)
    )
    if is_short:
        values: dict[str, Any] = {"stages": letters}
        if ends:
            values["boundaries"] = ends
        yield from _table("blend", values)
        return
    for stage in stages:
        yield from _lines("[[blend.stage]]", _stage(stage))


def _letter(role: str) -> str:
    return next((letter for letter, name in LETTERS.items() if name == role), role)


def _stage(stage: Stage) -> dict[str, Any]:
    values = stage.to_document()
    if stage.cache is not None:
        values["cache"] = {"kind": stage.cache.kind, **dict(stage.cache.options)}
    if stage.adapters:
        values["adapters"] = [_set(asdict(adapter)) for adapter in stage.adapters]
    return values


def _as_ran(denoisers: str, steps: int) -> Iterator[Stage]:
    """Stages that end where they did end, for those that were found while sampling."""
    done = 0
    for letter, run in itertools.groupby(denoisers):
        done += len(list(run))
        role = LETTERS.get(letter, letter)
        yield Stage(role, None if done == len(denoisers) else done / steps)


def _output(job: Job) -> dict[str, Any]:
    values: dict[str, Any] = asdict(job.output)
    if job.argument("num_frames") == 1:
        del values["container"]
    return values


def _shared(tables: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: value
        for key, value in tables[0].items()
        if all(table.get(key) == value for table in tables)
    }


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _table(name: str, values: Mapping[str, Any]) -> Iterable[str]:
    return _lines(f"[{name}]", values) if values else ()


def _lines(head: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield head
    for key, value in values.items():
        yield f"{_key(key)} = {to_toml(value)}"
    yield ""


def _key(key: str) -> str:
    plain = key.replace("_", "").replace("-", "")
    return key if plain.isalnum() and key.isascii() else to_toml(key)


def to_toml(value: Any) -> str:
    """Write one plain value as TOML reads it back.

    Raises:
        TypeError: It is of a kind that TOML lacks.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(str(k))} = {to_toml(v)}" for k, v in value.items())
        return "{ " + inner + " }"
    raise TypeError(f"{value!r} can't be written as TOML")
