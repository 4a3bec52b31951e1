"""Placement: the device, data type and offloading of models, and errors about their memory."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from flowblend_cli.errors import LESS_MEMORY, DeviceFailedError, DeviceLostError, UsageError
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.text import shorten

_CPU = torch.device("cpu")
OFFLOADS = ("none", "model", "group", "sequential")
# What needs less of the device's memory, and more time.
_SMALLER = {
    "none": 'set model.offload to "model"',
    "model": 'set model.offload to "group" or "sequential"',
    "group": 'set model.offload to "sequential"',
}
# Where diffusers can copy weights to the device while it computes.
_WITH_STREAMS = ("cuda", "xpu")
# What backends say when a device fails, after which this process can't use it any more.
_DEVICE_LOST = (
    "cuda error",
    "hip error",
    "device-side assert",
    "unspecified launch failure",
    "device not available",
    "device unavailable",
    "device lost",
    "no cuda-capable device",
    "has fallen off the bus",
)
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
        self.offload = "none" if self.device == _CPU else model.offload
        self._written = model

    @property
    def note(self) -> str | None:
        """What the recipe asks for and this machine has no use for, if anything."""
        if self.offload == self._written.offload:
            return None
        return (
            f"offload = {self._written.offload!r} does nothing here: the device is the CPU, so "
            "that every model is in main memory anyway"
        )

    @property
    def stronger(self) -> str:
        """The next way of offloading, with less in the device's memory; empty for none."""
        return "" if self.device == _CPU else stronger_than(self.offload)

    @property
    def surroundings(self) -> dict[str, str]:
        """What bits hang on: the device by its name, or a CPU's kernels, and the number format."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"device": device_class(self.device), "dtype": dtype}

    def move(self, name: str, denoiser: torch.nn.Module) -> None:
        """Move a further denoiser to the device; where the pipeline is offloaded, it follows that.

        Args:
            name: The denoiser as the recipe names it.
            denoiser: The denoiser, in main memory.

        Raises:
            DeviceLostError: The device failed, or has no memory left.
        """
        if self.offload == "none":
            with self._reaching_device(f"model {name!r} was moved to {self.device}"):
                denoiser.to(self.device)

    def place(self, name: str, pipe: Any, denoiser: str) -> None:
        """Move a pipeline to the device, or let diffusers bring its parts there when they run.

        Args:
            name: The pipeline as the recipe names it.
            pipe: The pipeline, in main memory.
            denoiser: Its attribute that holds the denoiser.

        Raises:
            DeviceLostError: The device failed, or has no memory left.
            UsageError: The pipeline can't be offloaded in the way that the recipe asks for.
        """
        if self.offload == "none":
            with self._reaching_device(f"model {name!r} was moved to {self.device}"):
                pipe.to(self.device)
            return
        with self._reaching_device(f"model {name!r} was prepared for offloading"):
            try:
                _offload(pipe, self.offload, self.device, denoiser)
            except ValueError as error:
                raise UsageError(
                    f"model {name!r} can't be rendered with offload = {self.offload!r} "
                    f"({reason(error)}): choose another of {', '.join(map(repr, OFFLOADS))}"
                ) from error

    @contextmanager
    def _reaching_device(self, doing: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # each backend has its own ways to fail
            if is_out_of_memory(error):
                raise DeviceLostError(self.no_memory(doing, self.device, error)) from error
            raise self.device_failed(doing, error) from error

    def device_failed(self, doing: str, error: Exception) -> DeviceFailedError:
        """The error that says what the device failed at.

        Args:
            doing: What was done, such as ``"model 'x' was loaded"``.
            error: What the backend raised.
        """
        return DeviceFailedError(
            f"{self.device} failed while {doing} ({reason(error)}): check the device and its "
            f"driver, or {self._cpu_instead}"
        )

    def no_memory(self, doing: str, device: torch.device, error: Exception) -> str:
        """Say what was tried when memory ran out, and what may help.

        Args:
            doing: What was done, such as ``"model 'x' was loaded"``.
            device: Whose memory ran out.
            error: What the allocator raised.
        """
        where = "main memory" if device == _CPU else f"memory on {device}"
        dtype = str(self.dtype).removeprefix("torch.")
        why = reason(error)
        advice = ["free what else holds it"]
        if device != _CPU and self.offload in _SMALLER:
            advice.append(_SMALLER[self.offload])
        if self.dtype is torch.float32:
            advice.append('set model.dtype to "bfloat16"')
        if device != _CPU:
            advice.append(self._cpu_instead)
        return (
            f"out of {where} while {doing} as {dtype} with offload = {self.offload!r}"
            f"{f' ({why})' if why else ''}: {', '.join(advice)}, {LESS_MEMORY}"
        )

    @property
    def _cpu_instead(self) -> str:
        stay = "" if self.offload == "none" else ' and model.offload to "none"'
        return f'set model.device to "cpu"{stay}'


def _offload(pipe: Any, way: str, device: torch.device, denoiser: str) -> None:
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
        return
    if way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
        return
    # A part that can't be split stays on the device whole; a denoiser that can't raises.
    whole = [
        name
        for name, part in pipe.components.items()
        if name != denoiser and not getattr(part, "_supports_group_offloading", True)
    ]
    pipe.enable_group_offload(
        onload_device=device,
        offload_type="leaf_level",  # finds the layers of every kind of model; blocks it doesn't
        use_stream=device.type in _WITH_STREAMS,
        exclude_modules=[*pipe._exclude_from_cpu_offload, *whole],
    )


def stronger_than(offload: str) -> str:
    """The way of offloading after this one, which keeps less on the device; empty for none."""
    return dict(pairwise(OFFLOADS)).get(offload, "")


def share_memory(share: int) -> None:
    """Take no more than a part of the device's memory, where several processes use it.

    Args:
        share: How many they are.
    """
    if share > 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1 / share)


def free_memory() -> None:
    """Let go of what nobody needs any more, also of what allocators keep for later."""
    gc.collect()
    for backend in (torch.cuda, torch.xpu):
        if backend.is_available():
            backend.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


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


def is_device_lost(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the device failed."""
    while error is not None:
        said = str(error).lower() if isinstance(error, RuntimeError) else ""
        if any(words in said for words in _DEVICE_LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: Exception) -> str:
    """The first line of what an error says, cut short."""
    return shorten(str(error).strip().split("\n")[0], 160)


def device_class(device: torch.device) -> str:
    """What bits hang on of a device: its name, or a CPU's kernels."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def usual_device() -> dict[str, Any]:
    """The device that is used where a recipe names none, and its memory, as plain values."""
    device = _device("auto")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"device": device_class(device), "memory_bytes": memory}


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
