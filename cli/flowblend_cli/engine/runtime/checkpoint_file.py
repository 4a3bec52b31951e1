"""CheckpointFile: a job's stored state on the disk, read and written without a model library.

``DIR/.flowblend/checkpoints/JOB.safetensors``; it is there as long as the job has no finished file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowblend_cli.artifacts.records import make_folders
from flowblend_cli.errors import DocumentError
from flowblend_cli.utils.files import (
    SEAL_KEY,
    UNSEALED,
    open_regular,
    publish,
    read_regular,
    remove,
    seal,
    seal_holds,
    temporary_path,
)
from flowblend_cli.utils.folders import FOLDER
from flowblend_cli.utils.json_files import NotJson, parse_json
from flowblend_cli.utils.limits import MAX_TENSOR_BYTES
from flowblend_plugin.checkpoints.safetensors_header import LENGTH_BYTES, header_length, metadata_of
from flowblend_plugin.errors import CheckpointError

STATE_VERSION = 1
_ABOUT = "about"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a stored state says of itself.

    Args:
        job_key: Key of its job.
        seed: Seed of its job, as drawn where the recipe says 0.
        step: Index of the step that comes next.
        total: Number of steps.
        surroundings: What its bits hang on besides the job: versions, device, number format.
        elapsed_s: Seconds that it took.
        step_s: Seconds of each step so far.
        roles: The denoiser that ran each step so far.
        v: Version of all this.
    """

    job_key: str
    seed: int
    step: int
    total: int
    surroundings: dict[str, str]
    elapsed_s: float
    step_s: tuple[float, ...]
    roles: tuple[str, ...]
    v: int = STATE_VERSION

    def to_metadata(self) -> dict[str, str]:
        """What goes into the file's header; its last entry is for ``write``."""
        return {_ABOUT: json.dumps(asdict(self)), SEAL_KEY: UNSEALED}


@dataclass(frozen=True)
class CheckpointFile:
    """Where a job's state is kept, and how often it is stored.

    Args:
        path: Its file.
        job_key: Key of the job.
        every: Number of steps from one storing to the next; 0 only goes on from what is there.
    """

    path: Path
    job_key: str
    every: int = 0

    @classmethod
    def of(cls, output_dir: Path, job_id: str, job_key: str, every: int) -> CheckpointFile:
        """That of a job whose file goes to a folder."""
        path = output_dir / FOLDER / "checkpoints" / f"{job_id}.safetensors"
        return cls(path, job_key, every)

    def to_document(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"path": str(self.path), "job_key": self.job_key, "every": self.every}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> CheckpointFile:
        """Read ``to_document``'s values."""
        return cls(Path(document["path"]), document["job_key"], document["every"])

    def seed(self) -> int | None:
        """Seed of the state that is there; None where none is, or it is another job's."""
        try:
            with open_regular(self.path, MAX_TENSOR_BYTES) as file:
                start = file.read(LENGTH_BYTES)
                header = _header_of(start + file.read(header_length(start)))
        except (OSError, CheckpointError):
            return None
        return header.seed if header.job_key == self.job_key else None

    def read(self) -> tuple[CheckpointHeader, bytes] | None:
        """The state that is there, and its file; None where there is none.

        Raises:
            CheckpointError: The file is damaged, or can't be read.
        """
        try:
            data = self.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"can't be read ({error.strerror or error})") from error
        header = _header_of(data)
        if not seal_holds(data):
            raise CheckpointError("is damaged")
        return header, data

    def read_bytes(self) -> bytes:
        """What the file holds.

        Raises:
            OSError: It isn't there, or can't be read.
        """
        return read_regular(self.path, MAX_TENSOR_BYTES)

    def write(self, data: bytes) -> None:
        """Publish a state, whose metadata ``CheckpointHeader.to_metadata`` gave.

        Raises:
            OutputError: It can't be written.
        """
        make_folders(self.path)
        publish(self.path, seal(data))

    def forget(self) -> None:
        """Remove what is there."""
        for path in (self.path, temporary_path(self.path)):
            with contextlib.suppress(OSError):
                remove(path)


@dataclass(frozen=True)
class CarriedCheckpoint(CheckpointFile):
    """A stored state of another machine, which its driver keeps: it came along, and goes back.

    Args:
        carry: Takes a state to the driver; None tells it to remove what is there.
        held: The sealed state, in a list; an empty one holds none.
    """

    carry: Callable[[bytes | None], None] = lambda _: None
    held: list[bytes] = field(default_factory=list)

    def read_bytes(self) -> bytes:
        """See ``CheckpointFile``."""
        if not self.held:
            raise FileNotFoundError
        return self.held[0]

    def write(self, data: bytes) -> None:
        """See ``CheckpointFile``; the driver writes it."""
        self.held[:] = [seal(data)]
        self.carry(data)

    def forget(self) -> None:
        """See ``CheckpointFile``."""
        self.held.clear()
        self.carry(None)


def _header_of(data: bytes) -> CheckpointHeader:
    from flowblend_cli.artifacts.schema.records import CheckpointDocument

    try:
        about = parse_json(metadata_of(data)[_ABOUT])
    except (KeyError, NotJson, CheckpointError) as error:
        raise CheckpointError("is damaged") from error
    if isinstance(about, dict) and about.get("v") not in (None, STATE_VERSION):
        raise CheckpointError("is of another version of flowblend")
    try:
        found = CheckpointDocument.read(about)
    except DocumentError as error:
        raise CheckpointError("is damaged") from error
    lists = {"step_s": tuple(found.step_s), "roles": tuple(found.roles)}
    return CheckpointHeader(**{**dict(found), **lists})
