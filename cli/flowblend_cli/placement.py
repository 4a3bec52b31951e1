"""Where the models of a batch live: device and data type, and what to say when memory runs out."""

from __future__ import annotations

import errno
from typing import Any

import torch

from flowblend_cli.errors import DeviceLostError
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.text import shorten

# What allocators say, which raise a plain RuntimeError in main memory.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class Placement:
    """The device and the data type of a batch's models, and the way there.

    Args:
        model: The models as the recipe names them.

    Raises:
        DeviceLostError: The device isn't there.
    """

    def __init__(self, model: ModelSpec) -> None:
        self.device = _device(model.device)
        self.dtype = _dtype(model.dtype, self.device)
        self._offload = model.offload

    def move(self, name: str, module: Any) -> None:
        """Move a model to the device.

        Args:
            name: The model as the recipe names it.
            module: The pipeline or the denoiser.

        Raises:
            DeviceLostError: The device failed, or has no memory left.
        """
        try:
            module.to(self.device)
        except Exception as error:  # each backend has its own ways to fail
            doing = f"model {name!r} was moved to {self.device}"
            if is_out_of_memory(error):
                raise DeviceLostError(self.no_memory(doing, self.device, error)) from error
            raise DeviceLostError(
                f"{self.device} failed while {doing} ({reason(error)}): check the device and its "
                'driver, or set model.device to "cpu"'
            ) from error

    def no_memory(self, doing: str, device: torch.device, error: Exception) -> str:
        """Say what was tried when memory ran out, and what may help.

        Args:
            doing: What was done, such as ``"model 'x' was loaded"``.
            device: Whose memory ran out.
            error: What the allocator raised.
        """
        where = "main memory" if device.type == "cpu" else f"memory on {device}"
        dtype = str(self.dtype).removeprefix("torch.")
        why = reason(error)
        halved = 'set model.dtype to "bfloat16", ' if self.dtype is torch.float32 else ""
        elsewhere = "" if device.type == "cpu" else 'set model.device to "cpu", '
        return (
            f"out of {where} while {doing} as {dtype} with offload = {self._offload!r}"
            f"{f' ({why})' if why else ''}: free what else holds it, {halved}{elsewhere}"
            "use a smaller model"
        )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory ran out."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        said = str(error).lower() if isinstance(error, RuntimeError) else ""
        if any(words in said for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: Exception) -> str:
    """The first line of what an error says, cut short."""
    return shorten(str(error).strip().split("\n")[0], 160)


def _device(name: str) -> torch.device:
    if name != "auto":
        device = torch.device(name)
        there = device.type == "cpu" or getattr(torch, device.type, None) is not None
        if there and device.type != "cpu":
            there = bool(getattr(torch, device.type).is_available())
        if not there:
            raise DeviceLostError(
                f"device {name!r} isn't there: torch {torch.__version__} sees none on this "
                'machine; set model.device to "auto" or "cpu"'
            )
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
