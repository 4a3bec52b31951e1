"""Errors that end a ``flowblend`` command on purpose, each with its exit code.

::

    FlowBlendError
    ├── RecipeError (ValueError)         2   problems in a recipe, all of them at once; or 3
    ├── UsageError (ValueError)          2   a name, path or option that can't be used
    │   ├── ModelNameError                   a model that no recipe may name
    │   ├── ImageError                       a picture that can't be used
    │   └── DocumentError                    a recorded job that can't be read back
    ├── ModelMissingError (RuntimeError) 3   a model that isn't there, is gated or offline
    │   └── ModelFaultError                  models whose files are missing, damaged or don't fit
    ├── OutputError (OSError)            4   the disk is full or refuses
    ├── DeviceLostError (RuntimeError)   5   the device is gone or out of memory after retries
    │   └── DeviceFailedError                a device that was there: a new process may get it back
    ├── WorkerDiedError (RuntimeError)   1   a job that ended the process which rendered it, twice
    ├── FileChangedError (RuntimeError)  1   a file that was changed before a worker had it
    ├── RemoteError (RuntimeError)       *   anything else that went wrong in the render process
    └── LockedError (RuntimeError)       75  another run holds the output folder
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowblend_cli.text import printable
from flowblend_plugin.errors import FlowBlendError

# What to give up first where memory is short; sampling deterministically costs none.
LESS_MEMORY = (
    'use a smaller denoiser, then a lower resolution, then fewer steps; mode = "ode" can stay'
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe, and where.

    Args:
        path: The recipe as it was named.
        line: 1-based line, or None where the file itself is the problem.
        column: 1-based column, counted in characters, or None likewise.
        location: The key, such as ``"scene[1].num_inference_steps"``; may be empty.
        message: What was found, what was expected, what to do.
    """

    path: str
    line: int | None
    column: int | None
    location: str
    message: str

    def __str__(self) -> str:
        place = "" if self.line is None else f":{self.line}:{self.column}"
        location = f"{self.location}: " if self.location else ""
        return printable(f"{self.path}{place}: {location}{self.message}")


class RecipeError(FlowBlendError, ValueError):
    """A recipe that can't be rendered; holds every problem, in the order of the file.

    Args:
        problems: The problems.
        exit_code: 2, or that of the only kind of problem where it is none of the recipe's own: 3
            where all of them are model files that aren't whole.
        warnings: What is legal and probably not meant, of the parts that are sound.
    """

    exit_code = 2

    def __init__(
        self,
        problems: Iterable[Problem],
        exit_code: int = exit_code,
        warnings: Iterable[str] = (),
    ) -> None:
        self.warnings = tuple(warnings)
        self.exit_code = exit_code
        in_order = sorted(
            set(problems),
            key=lambda one: (one.path, one.line or 0, one.column or 0, one.location, one.message),
        )
        self.problems = tuple(in_order)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(FlowBlendError, ValueError):
    """A name, path or option that can't be used as given."""

    exit_code = 2


class ModelNameError(UsageError):
    """A model name that is neither bundled, nor a folder, nor a Hub id."""


class ImageError(UsageError):
    """A scene's picture that isn't there, isn't in the recipe's folder, or can't be decoded."""


class DocumentError(UsageError):
    """A job's recorded document that is damaged or of another version."""


class ModelMissingError(FlowBlendError, RuntimeError):
    """A model that isn't on this machine: missing, gated, or offline."""

    exit_code = 3


class ModelFaultError(ModelMissingError):
    """Models of a recipe that can't be loaded as they are; one line a problem."""


class OutputError(FlowBlendError, OSError):
    """A file that couldn't be written or published."""

    exit_code = 4


class DeviceLostError(FlowBlendError, RuntimeError):
    """A device that isn't there, or is gone."""

    exit_code = 5


class DeviceFailedError(DeviceLostError):
    """A device that failed at its work: what this process has of it is lost."""


class WorkerDiedError(FlowBlendError, RuntimeError):
    """A job whose render ended the whole process, and a second one as well."""

    exit_code = 1


class FileChangedError(FlowBlendError, RuntimeError):
    """A file of a recipe that isn't what it was when its job was made: no worker gets it."""

    exit_code = 1


class RemoteError(FlowBlendError, RuntimeError):
    """What went wrong in a render process, where that is no error of the command's own.

    Args:
        kind: Name of its class there.
        text: What it said.
        exit_code: What the command exits with where it ends the batch.
    """

    def __init__(self, kind: str, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.kind = kind
        self.exit_code = exit_code


class LockedError(FlowBlendError, RuntimeError):
    """Another run holds the output folder."""

    exit_code = 75


# What no further job could be rendered after.
ENDS_THE_BATCH = (ModelMissingError, OutputError, DeviceLostError)


class StopRequested(BaseException):
    """A signal asked to stop; raised between two steps, so that nothing is half done."""
