"""Records: the measurements of each job, as JSON files in ``DIR/.flowblend`` beside the clips.

Runs write them, reports read them. A clip's own document says what the clip is; its measurements
and the seconds that it took stand here, so that no byte of a clip depends on the machine that
rendered it. All of these files can be deleted: reports then measure the clips themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.errors import DocumentError, OutputError
from flowblend_cli.jobs import Shard
from flowblend_cli.study import Selection
from flowblend_cli.text import shorten
from flowblend_cli.utils.files import publish, read_regular
from flowblend_cli.utils.folders import FOLDER, opened
from flowblend_cli.utils.json_files import NotJson, read_json
from flowblend_cli.utils.limits import MAX_JSON_BYTES

if TYPE_CHECKING:
    from flowblend_cli.artifacts.schema.base import Document

RECORD_VERSION = 1
LOOKS_VERSION = 1
# What files call ``measurement_key``.
_KEY_IN_FILES = "asked"
_SHARDS = "shards"


def record_path(output_dir: Path, job_id: str) -> Path:
    """Path of a job's record."""
    return output_dir / FOLDER / "jobs" / f"{job_id}.json"


def recipe_path(output_dir: Path, recipe_name: str) -> Path:
    """Path of a recipe as it was last rendered into a folder: its text, overrides and study."""
    return output_dir / FOLDER / "recipes" / f"{recipe_name}.json"


def own_folder(output_dir: Path, shard: Shard | None = None) -> Path:
    """Folder of what only one run writes: that of a shard, or of all jobs."""
    ours = output_dir / FOLDER
    return ours if shard is None else ours / _SHARDS / shard.slug


def run_path(output_dir: Path, recipe_name: str, shard: Shard | None = None) -> Path:
    """Path of the state of a recipe's last or present run, of all jobs or of a shard."""
    return own_folder(output_dir, shard) / "runs" / f"{recipe_name}.json"


def shards_of(output_dir: Path) -> list[Shard]:
    """The shards that have a folder of their own, in order."""
    try:
        slugs = [entry.name for entry in os.scandir(output_dir / FOLDER / _SHARDS)]
    except OSError:
        return []
    found = []
    for slug in slugs:
        with contextlib.suppress(ValueError):
            found.append(Shard.parse(slug.replace("-of-", "/")))
    return sorted(found, key=lambda shard: (shard.count, shard.index))


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


def read_record(
    output_dir: Path, job_id: str, warn: Callable[[str], None] | None = None
) -> JobRecord | None:
    """Read a job's record, which anybody may have edited; None where there is no sound one.

    Args:
        output_dir: Folder of the clips.
        job_id: Id of the job.
        warn: Called with what is wrong with it.
    """
    from flowblend_cli.artifacts.schema.records import RecordDocument

    path = record_path(output_dir, job_id)
    document = read_checked(path, RecordDocument, warn)
    if document is None:
        return None
    if document["job"] != job_id:
        _tell(warn, path, f"is of job {shorten(document['job'])}")
        return None
    document["measurement_key"] = document.pop(_KEY_IN_FILES, "")
    known = JobRecord.__match_args__
    return JobRecord(**{name: _tuple(document[name]) for name in known if name in document})


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
    from flowblend_cli.artifacts.schema.records import LooksDocument

    document = read_checked(looks_path(output_dir, selection.drafts[0]), LooksDocument) or {}
    is_same = document.get("after_steps") == selection.reject_after
    return document if is_same and selection.reject_after is not None else {}


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


def read_checked(
    path: Path, schema: type[Document], warn: Callable[[str], None] | None = None
) -> dict[str, Any] | None:
    """Read one JSON object that a run wrote, and that anybody may have edited.

    Args:
        path: The file.
        schema: What it must hold.
        warn: Called with what is wrong with it, where it is there.

    Returns:
        The object; None where it isn't there, or isn't what it should be.
    """
    try:
        document = read_json(path)
        schema.read(document)
    except FileNotFoundError:
        return None
    except (OSError, NotJson, DocumentError) as error:
        _tell(warn, path, f"can't be used ({getattr(error, 'strerror', None) or error})")
        return None
    assert isinstance(document, dict)
    return document


def _tell(warn: Callable[[str], None] | None, path: Path, what: str) -> None:
    if warn is not None:
        warn(f"{'/'.join(path.parts[-3:])} {what}, and is left out")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
