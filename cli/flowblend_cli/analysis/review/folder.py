"""The folder that raters are given: the page, the anonymous clips, and the key kept beside it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.collect import find_clips, kept_recipe
from flowblend_cli.analysis.review.anonymize import AnonymousCopy, copy_anonymously
from flowblend_cli.analysis.review.arrangement import Arrangement, arrange
from flowblend_cli.analysis.web import render_page
from flowblend_cli.artifacts.records import read_checked, review_path, write_json
from flowblend_cli.artifacts.schema.reviews import ReviewKeyDocument
from flowblend_cli.errors import OutputError, UsageError
from flowblend_cli.study import Study
from flowblend_cli.utils.files import publish, read_regular, remove
from flowblend_cli.utils.folders import FOLDER, holding, opened
from flowblend_cli.utils.limits import MAX_JSON_BYTES

PAGE = "review/index.html"
COPIES = "review/clips"
_MARK = '<meta name="generator" content="flowblend review">'
_COPY_NAME = re.compile(r"[a-z0-9]{12}\.(mp4|png)")
# The time of every copy, 2000-01-01: what was rendered when would tell the order of the recipe.
_NO_TIME = 946_684_800


@dataclass(frozen=True)
class ReviewFiles:
    """The files of a review.

    Args:
        page: The page.
        key: The key that un-blinds the ratings.
        arrangement: The sets of clips that are compared.
        warnings: Files of the folder that weren't used, and why.
    """

    page: Path
    key: Path
    arrangement: Arrangement
    warnings: tuple[str, ...]


def write_review(
    output_dir: Path, *, seed: int = 0, criteria: Sequence[str] = (), scenes: Sequence[str] = ()
) -> ReviewFiles:
    """Write the page of a blind review, its anonymous clips, and the key.

    Args:
        output_dir: Folder of finished files.
        seed: Seed of the shuffle.
        criteria: What is asked, instead of what the recipes say.
        scenes: Names of the only scenes to show; all without any.

    Raises:
        UsageError: There is nothing to review, or the extra ``report`` isn't installed.
        OutputError: A file can't be read or written, or the page's name is somebody else's.
    """
    found, warnings = find_clips(output_dir)
    clips = _of_scenes(output_dir, found, scenes)
    recipes = {clip.job.recipe for clip in clips}
    kept = {name: kept_recipe(output_dir, name, warnings.append) for name in sorted(recipes)}
    studies = {name: recipe.study if recipe else Study() for name, recipe in kept.items()}
    asked = {name: tuple(criteria) or study.review.criteria for name, study in studies.items()}
    axes = {name: study.axes for name, study in studies.items()}
    arrangement = arrange(clips, seed=seed, criteria=asked, axes=axes)
    page = output_dir / PAGE
    with holding(output_dir):
        _require_ours(page)
    copies = {
        item.id: copy_anonymously(output_dir / item.clips[0].name) for item in arrangement.items
    }
    html = render_page(
        "review.html.j2",
        scripts=("player.js", "review.js"),
        styles=("player.css", "review.css"),
        mark=_MARK,
        review=_page_values(arrangement, copies),
    )
    key = review_path(output_dir, arrangement.id)
    with holding(output_dir):
        _require_ours(page)
        write_json(key, arrangement.key())
        _write_copies(output_dir, arrangement, copies)
        publish(page, html.encode())
        _remove_former(output_dir, {item.filename for item in arrangement.items})
    return ReviewFiles(page, key, arrangement, tuple(warnings))


def _of_scenes(output_dir: Path, clips: Sequence[Clip], scenes: Sequence[str]) -> list[Clip]:
    known = list(dict.fromkeys(clip.job.scene for clip in clips))
    unknown = [scene for scene in scenes if scene not in known]
    if unknown:
        raise UsageError(
            f"{output_dir}: holds no clip of scene {', '.join(unknown)}: its scenes are "
            f"{', '.join(known)}"
        )
    return [clip for clip in clips if not scenes or clip.job.scene in scenes]


def _page_values(arrangement: Arrangement, copies: Mapping[str, AnonymousCopy]) -> dict[str, Any]:
    """Everything that the page knows of the clips."""
    sets = []
    for one in arrangement.sets:
        clips = [
            {
                "id": item.id,
                "label": item.letter,
                "url": f"clips/{item.filename}",
                "poster": None,
                "fps": copies[item.id].fps or None,
                "frames": copies[item.id].frames,
                "kind": "image" if item.clips[0].is_picture else "video",
            }
            for item in one.items
        ]
        sets.append({"prompt": one.prompt, "criteria": one.criteria, "clips": clips})
    return {"review": arrangement.id, "sets": sets}


def _require_ours(page: Path) -> None:
    """Raise if a file of the page's name is no review of ours."""
    try:
        text = read_regular(page, MAX_JSON_BYTES)
    except FileNotFoundError:
        return
    except OutputError:  # an OSError too, and complete already
        raise
    except OSError as error:
        raise OutputError(
            f"{page}: {error.filename} {error.strerror}, and nothing is written through or over "
            "it: move it away"
        ) from error
    if _MARK.encode() not in text:
        raise OutputError(f"{page} isn't a review of flowblend and is left alone: move it away")


def _write_copies(
    output_dir: Path, arrangement: Arrangement, copies: Mapping[str, AnonymousCopy]
) -> None:
    folder = output_dir / COPIES
    try:
        with opened(folder, make=True) as inside:
            # In the order of their names, which is drawn: how they lie on the disk tells nothing.
            for item in sorted(arrangement.items, key=lambda item: item.id):
                publish(folder / item.filename, copies[item.id].data)
                os.utime(item.filename, (_NO_TIME, _NO_TIME), dir_fd=inside, follow_symlinks=False)
    except OutputError:  # an OSError too, and complete already
        raise
    except OSError as error:
        raise OutputError(f"{folder}: can't be made ({error.strerror})") from error


def _remove_former(output_dir: Path, kept: set[str]) -> None:
    """Remove the copies of former reviews: only names that a key of this folder holds."""
    former: set[str] = set()
    for key in (output_dir / FOLDER / "reviews").glob("*.json"):
        items = (read_checked(key, ReviewKeyDocument) or {}).get("items", {})
        former |= {f"{item}{suffix}" for item in items for suffix in (".mp4", ".png")}
    for name in former - kept:
        path = output_dir / COPIES / name
        if _COPY_NAME.fullmatch(name):
            with contextlib.suppress(OSError):
                remove(path)
