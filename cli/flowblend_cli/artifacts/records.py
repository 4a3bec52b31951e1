"""Records: the measurements of each job, as JSON files in ``DIR/.flowblend`` beside the clips.

Runs write them, reports read them. A clip's own document says what the clip is; its measurements
and the seconds that it took stand here, so that no byte of a clip depends on the machine that
rendered it. All of these files can be deleted: reports then measure the clips themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from flowblend_cli.errors import OutputError
from flowblend_cli.study import Selection
from flowblend_cli.utils.files import publish, read_regular
from flowblend_cli.utils.folders import FOLDER, opened
from flowblend_cli.utils.limits import MAX_JSON_BYTES

RECORD_VERSION = 1
LOOKS_VERSION = 1
# What files call ``measurement_key``.
_KEY_IN_FILES = "asked"


def record_path(output_dir: Path, job_id: str) -> Path:
    """Path of a job's record."""
    return output_dir / FOLDER / "jobs" / f"{job_id}.json"


def recipe_path(output_dir: Path, recipe_name: str) -> Path:
    """Path of a recipe as it was last rendered into a folder: its text, overrides and study."""
    return output_dir / FOLDER / "recipes" / f"{recipe_name}.json"


def run_path(output_dir: Path, recipe_name: str) -> Path:
    """Path of the state of a recipe's last or present run."""
    return output_dir / FOLDER / "runs" / f"{recipe_name}.json"


def looks_path(output_dir: Path, draft: str) -> Path:
    """Path of the early looks at a selection's drafts, by the id of the first draft."""
    return output_dir / FOLDER / "selections" / f"{draft}.json"


def review_path(output_dir: Path, review: str) -> Path:
    """Path of the key of a review, by the review's id."""
    return output_dir / FOLDER / "reviews" / f"{review}.json"


@dataclass(frozen=True)
class JobRecord:
    """The measurements of one job, and what its renders took.

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
        measurement_key: Names of the metrics that were measured, the reference's pixels and the
            version of the measures, as one text; a run with another key measures again. Files
            call it ``asked``.
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
    measurement_key: str = ""


def write_record(output_dir: Path, record: JobRecord) -> None:
    """Publish a job's record, which replaces the former one.

    Raises:
        OutputError: It can't be written.
    """
    document = asdict(record)
    document[_KEY_IN_FILES] = document.pop("measurement_key")
    write_json(record_path(output_dir, record.job), {"v": RECORD_VERSION, **document})


def read_record(output_dir: Path, job_id: str) -> JobRecord | None:
    """Read a job's record, which anybody may have edited; None where there is no sound one."""
    document = read_json(record_path(output_dir, job_id))
    if document is None or document.pop("v", None) != RECORD_VERSION:
        return None
    document["measurement_key"] = document.pop(_KEY_IN_FILES, "")
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


def is_measured(output_dir: Path, job_id: str, pixels: str, measurement_key: str) -> bool:
    """Whether a job's record is of these pixels, and measured under this key.

    Both are searched for in the text as ``write_record`` writes it: a record holds thousands of
    numbers, and parsing those of a large batch takes longer than all else of a run with nothing to
    do. False only means that the record has to be read.

    Args:
        output_dir: Folder of the clips.
        job_id: Id of the job.
        pixels: Hash of the published pixels.
        measurement_key: See ``JobRecord``.
    """
    try:
        text = read_regular(record_path(output_dir, job_id), MAX_JSON_BYTES)
    except OSError:
        return False
    is_whole = text.startswith(b'{"v": %d, ' % RECORD_VERSION) and text.endswith(b"}\n")
    wanted = {"pixels_sha256": pixels, _KEY_IN_FILES: measurement_key}
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


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value read from JSON is a finite number, and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


@dataclass(frozen=True)
class Look:
    """An early look at a draft: a preview after its first steps, measured.

    Args:
        score: Score of the preview; None where it has none.
        elapsed_s: Seconds that the preview took, without loading models and measuring.
    """

    score: float | None = None
    elapsed_s: float = 0.0


def write_looks(
    output_dir: Path,
    selection: Selection,
    measurement_key: str,
    keys: Mapping[str, str],
    looks: Mapping[str, Look],
) -> None:
    """Publish the early looks at a selection's drafts, so that a later run drops the same ones.

    Args:
        output_dir: The output folder.
        selection: The selection.
        measurement_key: See ``JobRecord``.
        keys: Job key of each draft.
        looks: The looks by the drafts' ids; a draft without one is left out.

    Raises:
        OutputError: They can't be written.
    """
    write_json(
        looks_path(output_dir, selection.drafts[0]),
        {
            "v": LOOKS_VERSION,
            "scene": selection.scene,
            _KEY_IN_FILES: measurement_key,
            "after_steps": selection.reject_after,
            "looks": {
                draft: {"job_key": key, **asdict(looks[draft])}
                for draft, key in keys.items()
                if draft in looks
            },
        },
    )


def read_looks(
    output_dir: Path, selection: Selection, measurement_key: str, keys: Mapping[str, str]
) -> dict[str, Look]:
    """Read the early looks of earlier runs at a selection's drafts.

    Args:
        output_dir: The output folder.
        selection: The selection.
        measurement_key: See ``JobRecord``; looks under another key don't count.
        keys: Job key of each draft; looks at another job of the draft's name don't count.

    Returns:
        The looks by the drafts' ids.
    """
    document = _read_looks(output_dir, selection)
    if document.get(_KEY_IN_FILES) != measurement_key:
        return {}
    return {
        draft: Look(look["score"], look["elapsed_s"])
        for draft, look in document["looks"].items()
        if look.get("job_key") == keys.get(draft)
    }


def looks_s(output_dir: Path, selection: Selection) -> dict[str, float]:
    """Seconds of each early look at a selection's drafts, by the drafts' ids."""
    looks = _read_looks(output_dir, selection).get("looks", {})
    return {draft: look["elapsed_s"] for draft, look in looks.items() if look["elapsed_s"]}


def _read_looks(output_dir: Path, selection: Selection) -> dict[str, Any]:
    """The document of a selection's looks; empty where there is none after as many steps."""
    document = read_json(looks_path(output_dir, selection.drafts[0])) or {}
    looks: Any = document.get("looks")
    wanted = (LOOKS_VERSION, selection.reject_after)
    is_same = (document.get("v"), document.get("after_steps")) == wanted
    if selection.reject_after is None or not is_same or not isinstance(looks, dict):
        return {}
    known = {
        draft: look
        for draft, look in looks.items()
        if isinstance(look, dict)
        and isinstance(look.get("score"), (float, type(None)))
        and isinstance(look.get("elapsed_s"), float)
    }
    return {**document, "looks": known}


def write_json(path: Path, document: Mapping[str, Any], *, durable: bool = True) -> None:
    """Publish one JSON object in a folder below ``.flowblend``, which is made if it is missing.

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
    """Make ``.flowblend`` and the folders below it that a file is to lie in.

    Raises:
        OutputError: They can't be made, or a link sits where one of them should be.
    """
    try:
        with opened(path.parent, make=True):
            pass
    except OutputError:  # an OSError too, and complete already
        raise
    except OSError as error:
        folder = path.parent if error.filename is None else Path(error.filename)
        raise OutputError(
            f"{folder}: {error.strerror or error}, and what is known of jobs is kept there: free "
            "the name or the disk, and run the same command again"
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one JSON object; None where the file isn't there or holds none."""
    try:
        document = json.loads(read_regular(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
