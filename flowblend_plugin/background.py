"""Load a denoiser while another one works.

Building a module changes settings of the whole process for a moment (the default dtype, how
parameters are registered), so it happens in the caller's thread, without any weight. The thread in
the background only reads files, and hands each weight to its layer.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from torch import nn

from flowblend_plugin.errors import SwitchError

_PAGE_BYTES = 4096
# Who is being loaded, or couldn't be.
_pending: weakref.WeakKeyDictionary[nn.Module, Future[None]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Pending:
    """A denoiser that is to be loaded in the background; made by ``load_in_background``."""

    source: str | os.PathLike[str]
    subfolder: str | None = None


def load_in_background(source: str | os.PathLike[str], subfolder: str | None = None) -> Pending:
    """Have a switch load a denoiser while the first stages run.

    The switch checks the config when it is attached, then reads the weights in a thread, and waits
    for them where a stage needs them. What goes wrong in the thread is raised there. Only plain
    safetensors are loaded like this; quantised denoisers are loaded at once.

    Args:
        source: A denoiser's folder, a pipeline's folder, or a Hub id, as ``DenoiserSwitch`` takes.
        subfolder: Where in it the denoiser lies, if known.

    Returns:
        What to give the switch in the place of a denoiser: ``small=load_in_background(folder)``.
    """
    return Pending(source, subfolder)


def is_pending(module: nn.Module) -> bool:
    """Whether a denoiser's weights are still being loaded, or couldn't be."""
    return module in _pending


def wait(module: nn.Module) -> None:
    """Wait until a denoiser's weights are there.

    Raises:
        SwitchError: They couldn't be loaded.
    """
    future = _pending.get(module)
    if future is None:
        return
    try:
        future.result()
    except Exception as error:  # whatever a disk, a damaged file or a device says
        reason = " ".join(str(error).split())[:200]
        raise SwitchError(
            f"a {type(module).__name__} couldn't be loaded in the background ({reason}): check its "
            "folder, or load it first and give the switch the module"
        ) from error
    _pending.pop(module, None)


def begin(
    kind: Any,
    config: dict[str, Any],
    files: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module | None:
    """Make a denoiser, and begin to read its weights.

    Args:
        kind: Its class, a diffusers model.
        config: Its config.
        files: Its safetensors files.
        dtype: The dtype to load it in; what the class keeps in float32 stays in float32.
        device: Where the weights go.

    Returns:
        The denoiser, in evaluation mode, whose weights aren't there before ``wait``; None if the
        files don't hold just its weights, and diffusers' own loading has to say what to do.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights():
            module: nn.Module = kind.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)
    wanted = {key: list(value.shape) for key, value in module.state_dict().items()}
    try:
        if _shapes(files) != wanted:
            return None
    except SafetensorError:
        return None
    kept = kind._keep_in_fp32_modules or ()
    float32 = {kept} if isinstance(kept, str) else set(kept)
    thread = ThreadPoolExecutor(1, thread_name_prefix="flowblend-load")
    _pending[module] = thread.submit(_read, module, files, dtype, float32, device)
    thread.shutdown(wait=False)
    return module


def _shapes(files: Sequence[str]) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    return shapes


def _read(
    module: nn.Module,
    files: Sequence[str],
    dtype: torch.dtype,
    float32: set[str],
    device: torch.device,
) -> None:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if not threading.main_thread().is_alive():
                    return  # the program ends: nobody waits for these weights
                value = file.get_tensor(key)
                if value.is_floating_point():
                    value = value.to(torch.float32 if float32 & set(key.split(".")) else dtype)
                _read_pages(value)
                _put(module, key, value.to(device))
    module.to(device)  # the buffers that no file holds


def _read_pages(value: torch.Tensor) -> None:
    """Touch a mapped tensor's pages, which are otherwise read in its first forward."""
    value.reshape(-1).view(torch.uint8)[::_PAGE_BYTES].sum()


def _put(module: nn.Module, key: str, value: torch.Tensor) -> None:
    # Past register_parameter, which another thread that is building a module may have replaced.
    place, _, name = key.rpartition(".")
    owner = module.get_submodule(place)
    old = owner._parameters.get(name)
    if old is None:
        owner._buffers[name] = value
    else:
        owner._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)
