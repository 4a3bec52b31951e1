"""Modules of ours in a process of their own, so that this one never loads torch."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flowblend_plugin import errors as plugin_errors

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

_LENGTH_BYTES = 8


def run_worker(module: str, told: str, *, doing: str, patience_s: int) -> tuple[str, str]:
    """Run a module as a process.

    Args:
        module: Its dotted name.
        told: What it reads on stdin.
        doing: What it does, for messages: ``"counting"``.
        patience_s: Seconds after which it is ended.

    Returns:
        What it wrote on stdout, and what went wrong if that isn't everything.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=told.encode(),
            capture_output=True,
            timeout=patience_s,
            env=worker_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return output.decode(errors="replace"), f"{doing} took longer than {patience_s} s"
    except OSError as error:
        return "", f"the {doing} process can't be started ({error})"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    problem = f"the {doing} process ended with code {done.returncode}: {lines[-1]}"
    return done.stdout.decode(errors="replace"), problem


def worker_environment() -> dict[str, str]:
    """The environment of such a process: it finds both packages however this one found them."""
    packages = [Path(__file__).parents[2], Path(plugin_errors.__file__).parents[1]]
    given = os.environ.get("PYTHONPATH")
    paths = [*dict.fromkeys(map(str, packages)), *([given] if given else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def write_frames(stream: IO[bytes], frames: Frames) -> None:
    """Write frames to a pipe: 8 bytes that tell the length of a .npy, and the .npy itself."""
    import numpy as np

    whole = np.ascontiguousarray(frames)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(whole))
    length = len(head.getvalue()) + whole.nbytes
    stream.write(length.to_bytes(_LENGTH_BYTES, "big") + head.getvalue())
    stream.write(whole.data)


def read_frames(stream: IO[bytes]) -> Any:
    """Read what ``write_frames`` wrote.

    Raises:
        ValueError: The pipe ended before.
    """
    import numpy as np

    length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
    return np.load(io.BytesIO(stream.read(length)), allow_pickle=False)
