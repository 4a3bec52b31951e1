"""Calibration files: their name beside a pipeline, and reading them."""

from __future__ import annotations

import json
from pathlib import Path

from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.errors import CalibrationError

# Beside a pipeline's own files. What was chosen from it is in the job's stages.
BUNDLED_NAME = "calibration.json"
_MAX_BYTES = 16 * 2**20


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from a file that nobody vouches for.

    Raises:
        CalibrationError: It can't be read, or is none.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file; make it with flowblend probe")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise CalibrationError(f"calibration {str(path)!r} can't be read: {error}") from error
    if len(data) > _MAX_BYTES:
        raise CalibrationError(f"calibration {str(path)!r} is larger than {_MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path} is no calibration ({error}): probe again") from error
    try:
        return Calibration.from_document(document)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
