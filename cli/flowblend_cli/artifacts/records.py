"""What was measured of each job: small JSON files beside the clips, in ``DIR/.flowblend``.

A clip's own record says what it is; what was measured of it, and how long it took, stands here, so
that nothing about a clip's bytes depends on the machine's mood. Everything here can be deleted:
reports then measure the files themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowblend_cli.errors import OutputError
from flowblend_cli.study import Selection
from flowblend_cli.utils.files import publish
from flowblend_cli.utils.streams import without_waiting

FOLDER = ".flowblend"
RECORD_VERSION = 1


_VERSION = 1


@dataclass(frozen=True)
class JobRecord:
    """What one job's renders took and gave.

    Args:
        job: Id of the job.
        recipe: Name of its recipe.
        pixels_sha256: Hash of the published pixels, which ties this record to its file.
        elapsed_s: Seconds of each render of this job, the published one first: sampling, decoding
            and publishing.
        pixels: Hash of each of these renders.
        step_s: Seconds of each step of the published render.
        peak_rss_bytes: Most main memory during the published render.
        peak_vram_bytes: Most accelerator memory likewise; None on a CPU.
        metrics: Values by name, see ``flowblend_plugin.metrics``.
        measured_on: ``"frames"`` as rendered, or ``"file"`` where only the encoded file was left.
        tracks: Paths of points through the clip, (points, frames, 2), as fractions of the frame's
            diagonal: what ``trajectory_spread`` compares between renders.
        accepted: Whether an adapted job is the one to keep; None where nothing was adapted.
        asked: What was asked to be measured, of which reference, by which version of the measures:
            where a run asks for something else, the metrics are taken anew.
    """

    job: str
    recipe: str
    pixels_sha256: str
    elapsed_s: tuple[float, ...] = ()
    pixels: tuple[str, ...] = ()
    step_s: tuple[float, ...] = ()
    peak_rss_bytes: int | None = None
    peak_vram_bytes: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = "frames"
    tracks: tuple[Any, ...] = ()
    accepted: bool | None = None
    asked: str = ""


def record_path(output_dir: Path, job_id: str) -> Path:
    """Where the record of a job lies."""
    return output_dir / FOLDER / "jobs" / f"{job_id}.json"


def recipe_path(output_dir: Path, recipe_name: str) -> Path:
    """Where the recipe, as last rendered into a folder, is kept: text, overrides, study."""
    return output_dir / FOLDER / "recipes" / f"{recipe_name}.json"


def run_path(output_dir: Path, recipe_name: str) -> Path:
    """Where the state of a recipe's last run is kept, or of the one that works now."""
    return output_dir / FOLDER / "runs" / f"{recipe_name}.json"


def looks_path(output_dir: Path, draft: str) -> Path:
    """Where early looks at drafts are kept, by the id of the first of them."""
    return output_dir / FOLDER / "selections" / f"{draft}.json"


def write_record(output_dir: Path, record: JobRecord) -> None:
    """Publish a job's record, replacing the former one.

    Raises:
        OutputError: It can't be written.
    """
    write_json(record_path(output_dir, record.job), {"v": RECORD_VERSION, **asdict(record)})


def read_record(output_dir: Path, job_id: str) -> JobRecord | None:
    """A job's record, or None where there is none that can be read, whoever edited it."""
    document = read_json(record_path(output_dir, job_id))
    if document is None or document.pop("v", None) != RECORD_VERSION:
        return None
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in document.items()
        if key in JobRecord.__match_args__
    }
    try:
        record = JobRecord(**known)
    except TypeError:
        return None
    return record if _is_sound(record) else None


def has_answered(output_dir: Path, job_id: str, pixels: str, asked: str) -> bool:
    """Whether a job's record is of these pixels, and holds what is asked of them.

    Looks for both in the text as ``write_record`` writes it: a record holds thousands of numbers,
    and reading those of a large batch takes longer than all else of a run with nothing to do.
    False only means that the record is to be read.

    Args:
        output_dir: Folder of the clips.
        job_id: Id of the job.
        pixels: Hash of the published pixels.
        asked: See ``JobRecord.asked``.
    """
    try:
        text = record_path(output_dir, job_id).read_bytes()
    except OSError:
        return False
    is_whole = text.startswith(b'{"v": %d, ' % RECORD_VERSION) and text.endswith(b"}\n")
    wanted = {"pixels_sha256": pixels, "asked": asked}
    return is_whole and all(json.dumps({k: v})[1:-1].encode() in text for k, v in wanted.items())


def _is_sound(record: JobRecord) -> bool:
    """Whether a record's values have the types that they should."""
    numbers = (record.elapsed_s, record.step_s)
    whole = (record.peak_rss_bytes, record.peak_vram_bytes)
    return (
        all(isinstance(some, tuple) and all(map(is_number, some)) for some in numbers)
        and isinstance(record.pixels, tuple)
        and all(isinstance(digest, str) for digest in record.pixels)
        and all(value is None or is_number(value) for value in whole)
        and isinstance(record.metrics, dict)
        and all(is_number(value) for value in record.metrics.values())
        and record.measured_on in ("frames", "file")
        and record.accepted in (None, True, False)
        and isinstance(record.tracks, tuple)
    )


def is_number(value: object) -> bool:
    """Whether a value out of a JSON file is a number that can be worked with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def write_json(path: Path, document: Mapping[str, Any], *, durable: bool = True) -> None:
    """Publish one JSON object; the folders of ours that it lies in are made where they are missing.

    Args:
        path: The file.
        document: The object.
        durable: Wait until it is on the disk.

    Raises:
        OutputError: It can't be written, or a link sits where a folder of ours should be.
    """
    make_folders(path)
    publish(path, (json.dumps(document, allow_nan=False) + "\n").encode(), durable=durable)


def make_folders(path: Path) -> None:
    """Make the folders of ours that a file is to lie in.

    Raises:
        OutputError: They can't be made, or a link sits where one of them should be.
    """
    for folder in reversed([parent for parent in path.parents if FOLDER in parent.parts]):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: can't be made ({error.strerror or error}), and what is known of jobs "
                "is kept there: free the name or the disk, and run the same command again"
            ) from error
        if folder.is_symlink():
            raise OutputError(
                f"{folder}: is a symbolic link, and nothing is written through one: remove it, "
                "then run the same command again"
            )


def read_json(path: Path) -> dict[str, Any] | None:
    """One JSON object, or None where the file isn't there or holds none."""
    try:
        with open(path, encoding="utf-8", opener=without_waiting) as file:
            document = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True)
class Look:
    """What a look at a draft's first steps told.

    Args:
        score: Score of what they lead to; None where nothing could be told.
        elapsed_s: Seconds that it took, without loading models and measuring.
    """

    score: float | None = None
    elapsed_s: float = 0.0


def read_looks(
    output_dir: Path, selection: Selection, asked: str, keys: Mapping[str, str]
) -> dict[str, Look]:
    """What earlier runs saw of a selection's drafts, so that the same ones are dropped again.

    Args:
        output_dir: The output folder.
        selection: The selection.
        asked: What was asked to be measured; what another question led to isn't told.
        keys: Job key of each draft; what another job of its name led to isn't told either.
    """
    document = _looks_of(output_dir, selection)
    if document.get("asked") != asked:
        return {}
    return {
        draft: Look(look["score"], look["elapsed_s"])
        for draft, look in document["looks"].items()
        if look.get("job_key") == keys.get(draft)
    }


def looks_s(output_dir: Path, selection: Selection) -> dict[str, float]:
    """Seconds of each look that was taken at a selection's drafts, by their ids."""
    looks = _looks_of(output_dir, selection).get("looks", {})
    return {draft: look["elapsed_s"] for draft, look in looks.items() if look["elapsed_s"]}


def _looks_of(output_dir: Path, selection: Selection) -> dict[str, Any]:
    """What is kept of a selection's looks; empty where there are none after as many steps."""
    document = read_json(looks_path(output_dir, selection.drafts[0])) or {}
    looks: Any = document.get("looks")
    same = (document.get("v"), document.get("after_steps")) == (_VERSION, selection.reject_after)
    if selection.reject_after is None or not same or not isinstance(looks, dict):
        return {}
    known = {
        draft: look
        for draft, look in looks.items()
        if isinstance(look, dict)
        and isinstance(look.get("score"), (float, type(None)))
        and isinstance(look.get("elapsed_s"), float)
    }
    return {**document, "looks": known}


def write_looks(
    output_dir: Path,
    selection: Selection,
    asked: str,
    keys: Mapping[str, str],
    looks: Mapping[str, Look],
) -> None:
    """Keep what was seen of a selection's drafts; those that no look was taken at aren't told.

    Raises:
        OutputError: It can't be written.
    """
    told = {draft: looks[draft] for draft in keys if draft in looks}
    write_json(
        looks_path(output_dir, selection.drafts[0]),
        {
            "v": _VERSION,
            "scene": selection.scene,
            "asked": asked,
            "after_steps": selection.reject_after,
            "looks": {d: {"job_key": keys[d], **asdict(look)} for d, look in told.items()},
        },
    )
