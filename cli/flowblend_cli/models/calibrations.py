"""Calibration files: their name beside a pipeline, and reading them."""

from __future__ import annotations

from pathlib import Path

from flowblend_cli.utils.json_files import NotJson, read_json
from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.errors import CalibrationError

# Beside a pipeline's own files. What was chosen from it is in the job's stages.
BUNDLED_NAME = "calibration.json"


def read_calibration(path: Path) -> Calibration:
    """Read a calibration from a file that nobody vouches for.

    Raises:
        CalibrationError: It can't be read, or is none.
    """
    try:
        document = read_json(path, follow=True)
    except FileNotFoundError as error:
        raise CalibrationError(
            f"calibration {str(path)!r} can't be read: there is no such file; make it with "
            "flowblend probe"
        ) from error
    except NotJson as error:
        raise CalibrationError(f"{path} is no calibration (it {error}): probe again") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CalibrationError(f"calibration {str(path)!r} can't be read: {reason}") from error
    try:
        return Calibration.from_document(document)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
