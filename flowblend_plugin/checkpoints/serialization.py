"""Serialization: packs plain values and tensors into one safetensors file, for ``Checkpoint``.

Nothing in such a file is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers.utils.outputs import BaseOutput

from flowblend_plugin.checkpoints.safetensors_header import metadata_of
from flowblend_plugin.errors import CheckpointError

DOCUMENT_KEY = "values"
_PLAIN = (type(None), bool, int, float, str)


def pack(values: Mapping[str, Any], more: Mapping[str, str] | None = None) -> bytes:
    """Write values as a safetensors file.

    Args:
        values: None, booleans, numbers, strings, tensors, numpy arrays, outputs of diffusers, and
            lists, tuples and dicts (with strings as keys) of all these.
        more: Further entries of the file's metadata.

    Returns:
        The file. Equal values give equal bytes.

    Raises:
        CheckpointError: A value is of another type.
    """
    tensors: dict[str, torch.Tensor] = {}

    def store(tensor: torch.Tensor) -> dict[str, Any]:
        name = str(len(tensors))
        # A copy each: the format holds no two names for one storage.
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "device": tensor.device.type}

    document = {key: _encode(value, store) for key, value in values.items()}
    metadata = {DOCUMENT_KEY: json.dumps(document), **(more or {})}
    try:
        return safetensors.torch.save(tensors, metadata)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"tensors can't be stored: {error}") from error


def unpack(data: bytes, device: torch.device) -> dict[str, Any]:
    """Read what ``pack`` wrote.

    Args:
        data: The file.
        device: Where tensors go that didn't live in main memory.

    Returns:
        The values; outputs of diffusers are of a class of the same fields.

    Raises:
        CheckpointError: The file isn't one of these.
    """
    try:
        tensors = safetensors.torch.load(data)
        document = json.loads(metadata_of(data)[DOCUMENT_KEY])
        return {key: _decode(value, tensors, device) for key, value in document.items()}
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise CheckpointError(f"the file can't be read: {error}") from error


def outline(value: Any) -> Any:
    """Describe the structure of a denoiser's output as plain JSON, for ``blank``.

    Raises:
        CheckpointError: It holds something that ``pack`` wouldn't take.
    """

    def shape(tensor: torch.Tensor) -> dict[str, Any]:
        kind = str(tensor.dtype).removeprefix("torch.")
        return {"zeros": list(tensor.shape), "dtype": kind, "device": tensor.device.type}

    return _encode(value, shape)


def blank(outlined: Any, device: torch.device) -> Any:
    """Make a value of a structure that ``outline`` gave, with zeros for its tensors."""
    return _decode(outlined, {}, device)


def _encode(value: Any, store: Callable[[torch.Tensor], dict[str, Any]]) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return store(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "fiub":
        array = np.ascontiguousarray(value)
        return {"numpy": store(torch.from_numpy(array)), "shape": list(np.shape(value))}
    if type(value) is list:
        return [_encode(one, store) for one in value]
    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if type(value) is tuple:
        return {"tuple": [_encode(one, store) for one in value]}
    if isinstance(value, BaseOutput):
        return {"output": {key: _encode(one, store) for key, one in value.items()}}
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"dict": {key: _encode(one, store) for key, one in value.items()}}
    raise CheckpointError(f"a {type(value).__name__} can't be stored")


def _decode(value: Any, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode(one, tensors, device) for one in value]
    if not isinstance(value, dict):
        return value
    where = torch.device("cpu") if value.get("device") == "cpu" else device
    if "tensor" in value:
        return tensors[value["tensor"]].to(where)
    if "zeros" in value:
        kind = getattr(torch, value["dtype"])
        return torch.zeros(value["zeros"], dtype=kind, device=where)
    if "numpy" in value:
        array = tensors[value["numpy"]["tensor"]].numpy().reshape(value["shape"])
        return array if value["shape"] else array[()]
    if "size" in value:
        return torch.Size(value["size"])
    if "tuple" in value:
        return tuple(_decode(one, tensors, device) for one in value["tuple"])
    if "output" in value:
        fields = {key: _decode(one, tensors, device) for key, one in value["output"].items()}
        return make_dataclass("Output", list(fields), bases=(BaseOutput,))(**fields)
    return {key: _decode(one, tensors, device) for key, one in value["dict"].items()}
