"""Versions, disk, encoder and Hub cache of this machine, looked up without a model library."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any


def tested_versions() -> dict[str, Any]:
    """The shipped table of what flowblend needs, and what it was tested with."""
    text = (files("flowblend_cli") / "data" / "tested_versions.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None where there is none."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def look_at_disk(folder: Path) -> tuple[int, str | None]:
    """Free bytes for a folder, which may be yet to be made, and why it can't be written to."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"flowblend")
    except OSError as error:
        return 0, error.strerror or str(error)
    return free, None


def try_encoder() -> str | None:
    """Encode two frames as H.264 and read them back: what went wrong, or None."""
    try:
        import numpy as np

        from flowblend_cli.artifacts.video import count_frames, encode_mp4

        data = encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), fps=8, crf=10, comment="")
        found, _ = count_frames(io.BytesIO(data))
    except (ImportError, OSError, ValueError, RuntimeError, LookupError) as error:
        return f"{type(error).__name__}: {error}"
    return None if found == 2 else f"2 frames were encoded, and {found} read back"


def look_at_hub() -> tuple[str | None, bool, bool]:
    """The Hub's cache folder, whether it is there, and whether it can be written to."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None, False, False
    folder = Path(HF_HUB_CACHE)
    return str(folder), folder.is_dir(), os.access(folder, os.W_OK)
