"""A job's file made of its frames: by the driver, or by the worker that rendered them.

Both make the same bytes of the same render. The driver checks them in both cases, and no other
process ever gives a file its name.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from flowblend_cli import __version__
from flowblend_cli.engine.executors.base import (
    EncodedFile,
    FilePlan,
    RenderRequest,
    RenderResult,
)
from flowblend_cli.errors import OutputError, RemoteError
from flowblend_cli.jobs import Job
from flowblend_cli.models.identity import Identity

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

Document = dict[str, Any]
Check = Callable[[BinaryIO], None]


def document_of(
    job: Job, job_key: str, identity: Identity, source: str, render: RenderResult
) -> Document:
    """What a job's file says about itself.

    Args:
        job: The job.
        job_key: Its job key.
        identity: The models that the key covers.
        source: Folder that model folders are relative to.
        render: The render.
    """
    resolved: Document = {
        "seed": render.seed,
        "denoisers": render.denoisers,
        "device": render.device,
        "sampling_s": round(render.elapsed_s, 3),
        "source": source,
    }
    if render.memory:
        resolved["memory"] = list(render.memory)
    if render.caches:
        resolved["caches"] = list(render.caches)
    return {
        "flowblend": __version__,
        "v": 1,
        "job": job.to_document(),
        "job_key": job_key,
        "resolved": resolved,
        "models": identity,
        "versions": render.versions,
        "pixels_sha256": render.pixels_sha256,
    }


def encode(frames: Frames, name: str, job: Job, document: Document) -> tuple[bytes, Check]:
    """Encode what the job's recipe asks for, a picture or a clip.

    Returns:
        The whole file, and the check that it reads back as it should.

    Raises:
        FramesError: Nothing can be made of these frames.
    """
    output = job.output
    if PurePath(name).suffix == ".png":
        from flowblend_cli.artifacts.image import encode_image

        return encode_image(frames[0], name, document=document, scale=output.scale)
    from flowblend_cli.artifacts.video import encode_video

    return encode_video(
        frames, name, fps=output.fps, document=document, scale=output.scale, crf=output.crf
    )


def with_file(result: RenderResult, request: RenderRequest, plan: FilePlan) -> RenderResult:
    """Make a render's file where it was rendered, and decode it to its end.

    Args:
        result: The render, with its frames.
        request: What was asked for.
        plan: What the file is to be called, and to say.

    Returns:
        The render with its file, and with its frames where they are wanted.

    Raises:
        FramesError: Nothing can be made of these frames.
        OutputError: What was made doesn't hold what it should.
    """
    began, frames = time.monotonic(), result.frames
    assert frames is not None
    identity = request.models.identity
    document = document_of(request.job, plan.job_key, identity, plan.source, result)
    data, check = encode(frames, plan.name, request.job, document)
    check(io.BytesIO(data))
    file = EncodedFile(data, frames.shape, round(time.monotonic() - began, 3))
    return replace(result, frames=frames if plan.keeps_frames else None, file=file)


def check_file(file: EncodedFile, name: str, job: Job, document: Document) -> Check:
    """See that a file that a worker made is whole, and is this job's.

    Its checksum holds for the bytes that the worker has decoded; so clips aren't decoded again,
    which one process couldn't do for a thousand workers. Their frames are counted, and the pixels
    of a picture compared with their hash.

    Args:
        file: The file.
        name: Its final name.
        job: The job.
        document: The document that it must hold.

    Returns:
        The check that what was written is what came.

    Raises:
        RemoteError: It isn't.
    """
    from flowblend_cli.artifacts.finished import FileState, inspect_open
    from flowblend_cli.artifacts.metadata import from_text, to_text

    opened = io.BytesIO(file.data)
    found = inspect_open(opened, len(file.data))
    problem = ""
    if found.state is not FileState.INTACT:
        problem = f"is {found.state.value}"
    elif found.document != from_text(to_text(document)):
        problem = "is of another render"
    elif PurePath(name).suffix != ".png":
        from flowblend_cli.artifacts.video import count_packets

        frames, height, width, _ = file.shape
        size = (width * job.output.scale, height * job.output.scale)
        if count_packets(opened) != (frames, size):
            problem = f"doesn't have {frames} frames of {size[0]}x{size[1]}"
    if problem:
        told = f"{name}: what its worker made of the frames {problem}"
        raise RemoteError("EncodingError", told, 1)

    def check(written: BinaryIO) -> None:
        if written.read() != file.data:
            raise OutputError(
                f"{name}: reads back differently from what was written, so it wasn't published: "
                "check the disk, then run the same command again"
            )

    return check
