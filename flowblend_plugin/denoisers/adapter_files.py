"""load_adapter: puts a LoRA file into a denoiser as ``pipe.load_lora_weights`` would."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import nn

from flowblend_plugin.denoisers.adapter_header import (
    PEFT_NAME,
    PICTURE_LAYERS,
    AdapterHeader,
    read_adapter_header,
    scale_file,
)
from flowblend_plugin.denoisers.loading import denoiser_name
from flowblend_plugin.errors import AdapterError

AdapterSource = str | os.PathLike[str]
Weights = dict[str, torch.Tensor]

_SUFFIX = ".safetensors"
_SHOWN = 5
# Of a file that names no part of a pipeline, as peft and denoisers by themselves save it.
_PREFIXES = ("transformer.", "unet.", "diffusion_model.", "base_model.model.")
_HALVES = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias")
_MAGNITUDE = ".lora_magnitude_vector"
_OTHER = "\nA LoRA fits the denoiser that it was trained on: give each denoiser its own."
_CONTROL = (
    f"{_OTHER}\nA control LoRA widens its denoiser, which no stage can: load it with "
    "pipe.load_lora_weights, and attach the switch then."
)

_logger = logging.getLogger(__name__)


@dataclass
class _Adapter:
    """What a file holds for a denoiser, by diffusers' names.

    ``has_own_names`` says that the file names a denoiser's layers and no part of a pipeline. Such a
    file is one of ``denoiser.save_lora_adapter``, and the pipeline would load nothing of it.
    """

    weights: Weights
    alphas: dict[str, Any] | None
    metadata: dict[str, Any] | None
    has_own_names: bool
    problems: list[str]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA file, equal to another one that holds the same.

    Args:
        path: Where it is; of two equal ones this may differ.
        digests: SHA-256 of it, and of the file beside it that says how it is scaled.
    """

    path: Path = field(compare=False)
    digests: tuple[str, ...]

    @classmethod
    def of(cls, source: AdapterSource) -> AdapterFile:
        """Find a file on this machine, or fetch it from the Hub.

        Raises:
            AdapterError: It isn't there, isn't safetensors, or can't be read.
        """
        path = _local_file(source)
        files = (path, scale_file(path))
        try:
            digests = tuple(_digest(file) for file in files if file is not None)
        except OSError as error:
            raise AdapterError(f"adapter {path} can't be read: {error.strerror}") from error
        return cls(path, digests)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_adapter(pipe: Any, role: str, module: nn.Module, name: str, source: AdapterSource) -> None:
    """Load a LoRA file into a denoiser, with the weights that ``load_lora_weights`` would give it.

    What a text encoder would have of it is left out, which a warning says. Offloading of the
    denoiser is for the caller to lift: the pipeline would set up that of all its models anew.

    Args:
        pipe: The pipeline, whose class knows how published LoRA files name their weights.
        role: The denoiser's role, for messages.
        module: The denoiser; it need not be the pipe's own.
        name: The adapter's name.
        source: A safetensors file, or a Hub id, optionally with the file's name after it.

    Raises:
        AdapterError: The file isn't there, isn't safetensors, is damaged or of a kind that
            diffusers doesn't load, or doesn't fit; every reason is listed, with the weights.
    """
    if not hasattr(module, "load_lora_adapter"):
        raise AdapterError(
            f"adapter {name!r} can't be loaded: diffusers' {type(module).__name__} takes no LoRA"
        )
    header = read_adapter_header(_local_file(source))
    place = denoiser_name(pipe)
    adapter = _read(pipe, place, module, header)
    misfits = _misfits(module, place, adapter.weights)
    strangers = [] if adapter.problems else _strangers(pipe, place, adapter.weights)
    problems = [*adapter.problems, *strangers, *misfits]
    if problems:
        listed = "\n".join(f"  - {line}" for line in problems[:_SHOWN])
        more = f"\n  - and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        advice = _CONTROL if hasattr(pipe, "_control_lora_supported_norm_keys") else _OTHER
        raise AdapterError(
            f"adapter {name!r} ({header.path.name}, in {header.spelling} spelling) doesn't fit the "
            f"{role} denoiser ({type(module).__name__}):\n{listed}{more}{advice * bool(misfits)}"
        )
    if header.text_keys:
        _logger.warning(
            "adapter %r: %d weights are a text encoder's (%s, ...) and are left out: stages give "
            "adapters to denoisers only",
            name, len(header.text_keys), header.text_keys[0],
        )  # fmt: skip
    try:
        _inject(pipe, place, module, name, adapter)
    except Exception as error:  # whatever peft has against a layer
        raise AdapterError(
            f"adapter {name!r} ({header.path.name}) can't be loaded into the {role} denoiser "
            f"({type(module).__name__}): {_one_line(error)}"
        ) from error


def _inject(pipe: Any, place: str, module: nn.Module, name: str, adapter: _Adapter) -> None:
    options: dict[str, Any] = {
        "adapter_name": name,
        "metadata": adapter.metadata,
        "network_alphas": adapter.alphas,
    }
    load = getattr(pipe, f"load_lora_into_{place}", None)
    if adapter.has_own_names or load is None:
        module.load_lora_adapter(adapter.weights, prefix=place, **options)  # type: ignore[operator]
        return
    takes = inspect.signature(load).parameters
    options |= {place: module, "low_cpu_mem_usage": True}  # which keeps the file's dtype
    load(adapter.weights, **{key: value for key, value in options.items() if key in takes})


# Reading.


def _local_file(source: AdapterSource) -> Path:
    """Find a file on this machine, or fetch it from the Hub."""
    place = os.fspath(source)
    path = Path(place)
    if path.exists() or place.startswith((".", "/", "~")):
        if path.exists() and not place.endswith(_SUFFIX):
            raise AdapterError(
                f"adapter {place} is no safetensors file: other formats can run code while they "
                "load"
            )
        if not path.is_file():
            raise AdapterError(f"adapter {place} doesn't exist: expected a {_SUFFIX} file")
        return path
    try:
        if place.endswith(_SUFFIX) and place.count("/") >= 2:
            owner, name, file = place.split("/", 2)
            return Path(hf_hub_download(f"{owner}/{name}", file))
        with suppress(EntryNotFoundError):
            return Path(hf_hub_download(place, LORA_WEIGHT_NAME_SAFE))
        files = [file for file in list_repo_files(place) if file.endswith(_SUFFIX)]
        if len(files) == 1:
            return Path(hf_hub_download(place, files[0]))
    except Exception as error:  # no network, no such repository, no leave to read it
        raise AdapterError(f"adapter {place} can't be read: {_one_line(error)}") from error
    found = ", ".join(files[:_SHOWN]) or "none"
    raise AdapterError(
        f"adapter {place} isn't one safetensors file, but a repository with {len(files)} of them "
        f"({found}): write {place}/FILE{_SUFFIX}"
    )


def _read(pipe: Any, place: str, module: nn.Module, header: AdapterHeader) -> _Adapter:
    """Read a file by the names of the pipeline's denoiser, and account for each of its weights."""
    problems = header.problems()
    try:
        adapter, left_out = _converted(pipe, place, module, header)
    except Exception as error:  # noqa: BLE001 - whatever unexpected names make a converter raise
        if not problems:
            problems.append(_unreadable(pipe, header, error))
        return _Adapter({}, None, None, False, problems)
    known = "\n".join(problems)
    lost = [n for n in left_out if n not in known and not header.is_zero(n)]
    if lost and not problems:
        problems.append(
            f"diffusers leaves out {len(lost)} of its weights, such as {', '.join(lost[:3])}, "
            f"when {type(pipe).__name__} reads it: save it without them to have the rest alone"
        )
    adapter.problems = problems
    return adapter


def _converted(
    pipe: Any, place: str, module: nn.Module, header: AdapterHeader
) -> tuple[_Adapter, list[str]]:
    """Convert a file as its pipeline's class does; also name the weights that this leaves out."""
    text = set(header.text_keys)
    with torch.inference_mode(False), torch.enable_grad():
        # Gradients tell which weights of the file each converted weight is made of.
        file = {k: v for k, v in load_file(header.path).items() if k not in text}
        traced = {k: v.requires_grad_() for k, v in file.items() if _is_traced(k, v)}
        copies = {k: v.clone() for k, v in file.items()}
        weights, alphas = _by_class(pipe, module, copies)
        made_of = _leaves(weights.values())
        left_out = [k for k, v in traced.items() if id(v) not in made_of]
        weights = {k: v.detach() for k, v in weights.items()}
    told = header.metadata.get(LORA_ADAPTER_METADATA_KEY)
    metadata = json.loads(told) if told else None
    prefix = f"{place}."
    has_own_names = not any(key.startswith(prefix) for key in weights)
    if has_own_names:
        own = {k: float(weights.pop(k)) for k in list(weights) if k.endswith(".alpha")}
        weights, alphas = _renamed(weights, prefix), _renamed(alphas or own, prefix)
        metadata = metadata or _pefts_config(header.path)
        metadata = _renamed(metadata, prefix) if metadata else metadata
    weights = _in_peft_spelling(weights, prefix)
    _leave_out_picture_layers(module, weights)
    _fill_biases(weights)
    with torch.inference_mode(False):
        weights = _expanded(pipe, module, weights, prefix)
    return _Adapter(weights, alphas or None, metadata, has_own_names, []), left_out


def _by_class(pipe: Any, module: nn.Module, file: Weights) -> tuple[Weights, dict[str, Any] | None]:
    """Let the pipeline's class name a file's weights, and tell network alphas where it does."""
    read = getattr(type(pipe), "lora_state_dict", None)
    if read is None:  # with the denoiser's own names, or none
        prefix = f"{denoiser_name(pipe)}."
        return {k.removeprefix(prefix): v for k, v in file.items()}, None
    options: dict[str, Any] = {"return_lora_metadata": True}
    if "return_alphas" in inspect.signature(read).parameters:
        options["return_alphas"] = True
    if isinstance(pipe, StableDiffusionXLLoraLoaderMixin):
        options["unet_config"] = module.config
    weights, *alphas, _ = read(file, **options)
    return weights, alphas[0] if alphas else None


def _pefts_config(path: Path) -> dict[str, Any] | None:
    """Read rank and alpha of an adapter that peft saved, which stand in a file beside it."""
    beside = scale_file(path)
    if beside is None:
        if path.name == PEFT_NAME:
            _logger.warning("%s has no adapter_config.json beside it: alpha counts as rank", path)
        return None
    from peft import LoraConfig

    known = {one.name for one in fields(LoraConfig)}
    return {k: v for k, v in json.loads(beside.read_text("utf-8")).items() if k in known}


def _is_traced(name: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and not name.endswith(".alpha")


def _leaves(made: Iterable[torch.Tensor]) -> set[int]:
    """The ids of all tensors that others were made of."""
    todo = [one.grad_fn for one in made if one.grad_fn is not None]
    seen, found = set(todo), set()
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        new = {n for n, _ in node.next_functions if n is not None and n not in seen}
        seen |= new
        todo += new
    return found


def _renamed(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        prefix + next((key[len(p) :] for p in _PREFIXES if key.startswith(p)), key): value
        for key, value in values.items()
    }


def _in_peft_spelling(weights: Weights, prefix: str) -> Weights:
    """Turn older names, as diffusers itself would while it loads them."""
    ours = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if ours and "lora_A" not in next(iter(ours)):
        ours = convert_unet_state_dict_to_peft(ours)
    others = {k: v for k, v in weights.items() if not k.startswith(prefix)}
    return {prefix + k: v for k, v in ours.items()} | others


def _leave_out_picture_layers(module: nn.Module, weights: Weights) -> None:
    """Drop what an image-to-video LoRA has for layers that text-to-video hasn't, and say so."""
    if getattr(getattr(module, "config", None), "image_dim", 0) is not None:
        return
    lost = [key for key in weights if any(f".{layer}." in key for layer in PICTURE_LAYERS)]
    for key in lost:
        del weights[key]
    if lost:
        _logger.warning(
            "%d weights of a LoRA (%s, ...) are for the picture that image-to-video starts from, "
            "which this denoiser has no layers for; they are left out",
            len(lost), lost[0],
        )  # fmt: skip


def _fill_biases(weights: Weights) -> None:
    """Give layers without a LoRA bias one of zeros: peft gives it to all of them, or to none."""
    up, bias = _HALVES[1:]
    if any(key.endswith(bias) for key in weights):
        for key in [key for key in weights if key.endswith(up)]:
            value = weights[key]
            weights.setdefault(key.removesuffix(up) + bias, value.new_zeros(value.shape[0]))


def _expanded(pipe: Any, module: nn.Module, weights: Weights, prefix: str) -> Weights:
    """Pad weights of narrower or text-only LoRA with zeros, for the classes that do."""
    pad = getattr(pipe, "_maybe_expand_t2v_lora_for_i2v", None)
    if pad is not None:
        return dict(pad(transformer=module, state_dict=weights))
    pad = getattr(pipe, "_maybe_expand_lora_state_dict", None)
    if pad is None or _misfits(module, prefix[:-1], weights, is_narrower_right=True):
        return weights
    return dict(pad(transformer=module, lora_state_dict=weights))


def _unreadable(pipe: Any, header: AdapterHeader, error: Exception) -> str:
    kind = type(pipe).__name__
    if isinstance(error, KeyError):
        return (
            f"{error.args[0]} isn't in the file: in {header.spelling} spelling, diffusers' {kind} "
            "reads only files that train all layers of a block; convert it to diffusers' own names"
        )
    reason = _one_line(error) or "they are of layers, or in sizes, that it doesn't expect"
    return f"diffusers' {kind} can't read weights in {header.spelling} spelling: {reason}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# Whether it fits.


def _strangers(pipe: Any, place: str, weights: Weights) -> list[str]:
    """List, in one line, the weights that are no halves of a denoiser's LoRA."""
    names = [k for k in weights if not (k.startswith(f"{place}.") and _split(k)[1])]
    if not names:
        return []
    kinds = "network alphas" if all(k.endswith(".alpha") for k in names) else "weights"
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return [f"diffusers doesn't load {len(names)} {kinds} ({shown}) for {type(pipe).__name__}"]


def _misfits(
    module: nn.Module, place: str, weights: Weights, *, is_narrower_right: bool = False
) -> list[str]:
    """List the weights that have no layer in a denoiser, or not in that size."""
    layers = {
        key.removesuffix(".base_layer"): layer
        for key, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
    }
    magnitudes = {key.partition(_MAGNITUDE)[0] for key in weights if _split(key)[1] == _MAGNITUDE}
    wrong = []
    for key, value in weights.items():
        name = key.removeprefix(f"{place}.")
        layer_name, kind = _split(name)
        if not kind:
            continue
        if layer_name not in layers:
            wrong.append(f"{name}: no such layer")
        elif problem := _misfit(layers[layer_name], kind, value, is_narrower_right):
            wrong.append(f"{name}: {problem}")
        elif magnitudes and kind == _HALVES[0] and key.removesuffix(kind) not in magnitudes:
            wrong.append(f"{name}: its layer has no magnitude, though others have one (DoRA)")
    return wrong


def _split(name: str) -> tuple[str, str]:
    """A layer's name, and which weight of its LoRA this is; empty where none."""
    for kind in _HALVES:
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    layer, found, end = name.partition(_MAGNITUDE)
    return (layer, _MAGNITUDE) if found and end in ("", ".weight") else (name, "")


def _misfit(layer: nn.Module, kind: str, value: torch.Tensor, is_narrower_right: bool) -> str:
    """What is wrong with a weight's size; empty where nothing is."""
    out, into, *kernel = _size(layer)
    got = list(value.shape)
    if kind == ".lora_A.weight":
        want, got = [into, *kernel], got[1:]
    elif kind == ".lora_B.weight":
        want, got = [out, *[1] * len(kernel)], got[:1] + got[2:]
    else:
        want, got = [out], got[:1]
    if got == want or (is_narrower_right and got and got[0] < want[0]):
        return ""
    if len(got) == len(want) == 1:
        return f"{got[0]} wide, the layer has {want[0]}"
    return f"shape {tuple(value.shape)}, and the layer's is {(out, into, *kernel)}"


def _size(layer: nn.Module) -> Collection[int]:
    """A layer's outputs, inputs and kernel, also where its weight is stored packed."""
    out, into = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    if isinstance(out, int) and isinstance(into, int):
        return out, into
    return layer.weight.shape  # type: ignore[return-value]
