"""Learned metrics: by a network's weights that lie on this machine; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowblend_plugin.errors import MeasureError
from flowblend_plugin.metrics.checks import Frames

DEFAULT_MODELS: Mapping[str, str] = {
    "lpips": "microsoft/resnet-50",
    "clip_similarity": "openai/clip-vit-large-patch14",
    "dino_similarity": "facebook/dinov2-base",
}
"""The network of each metric, by its name on the Hub."""

_BATCH = 8


def compare(name: str, frames: Frames, reference: Frames, model: str | Path | None = None) -> float:
    """Compute one learned metric of a clip against its reference.

    Args:
        name: One of ``DEFAULT_MODELS``.
        frames: uint8 RGB, (T, H, W, 3).
        reference: The same shape.
        model: Folder or name on the Hub of the network; None for the default one.

    Raises:
        MeasureError: The network isn't on this machine, or isn't of the kind that the metric needs.
    """
    import torch

    source = str(model or DEFAULT_MODELS[name])
    network, processor = _load(name, source)
    if name == "clip_similarity" and not hasattr(network, "visual_projection"):
        raise MeasureError(
            f"{source} is a {type(network).__name__}, but clip_similarity needs a whole CLIP: "
            f"name one such as {DEFAULT_MODELS[name]}"
        )
    found = []
    with torch.no_grad():
        for start in range(0, len(frames), _BATCH):
            pixels = [
                processor(images=list(clip[start : start + _BATCH]), return_tensors="pt")
                for clip in (frames, reference)
            ]
            if name == "lpips":
                layers = [network(**p, output_hidden_states=True).hidden_states for p in pixels]
                _check_layers(layers[0], source)
                found.append(_distance(*layers))
            else:
                a, b = (_embedding(name, network, p) for p in pixels)
                found.append(torch.nn.functional.cosine_similarity(a, b, dim=-1))
    return float(np.mean(torch.cat(found).double().numpy()))


def _load(name: str, source: str) -> tuple[Any, Any]:
    from huggingface_hub import snapshot_download
    from transformers import AutoImageProcessor, AutoModel

    try:
        folder = Path(source)
        if not folder.is_dir():
            # By its folder: transformers asks the Hub for a name even with local_files_only.
            folder = Path(snapshot_download(source, local_files_only=True))
        network, info = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise MeasureError(
            f"{name} needs a network that isn't on this machine, or can't be read: {source}. "
            f"Fetch it with 'hf download {source}', name a folder that holds it as safetensors, "
            f"or leave {name} out. ({str(error).splitlines()[0]})"
        ) from error
    amiss = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if amiss:  # transformers makes them up at random, and only warns
        raise MeasureError(
            f"the network of {name} ({source}) lacks {len(amiss)} weights, such as {amiss[0]}: "
            f"fetch it again, or name another one than a {type(network).__name__}"
        )
    return network.eval(), processor


def _embedding(name: str, network: Any, pixels: Any) -> Any:
    if name == "dino_similarity":
        return network(**pixels).last_hidden_state[:, 0]
    return network.visual_projection(network.vision_model(**pixels).pooler_output)


def _check_layers(layers: Any, source: str) -> None:
    if not layers or any(layer.ndim != 4 for layer in layers):
        raise MeasureError(
            f"lpips compares layers of shape (channels, height, width), which {source} doesn't "
            "give: name a convolutional network, such as microsoft/resnet-50"
        )


def _distance(ours: Any, theirs: Any) -> Any:
    """Squared distance of unit-length features, the mean over places and layers, per frame."""
    import torch

    found = [
        (torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1))
        .square()
        .sum(1)
        .mean((1, 2))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(found).mean(0)
