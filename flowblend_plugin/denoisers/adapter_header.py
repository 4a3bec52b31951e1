"""Header of a LoRA file: what its weights are, told from their names and shapes. Pure Python."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowblend_plugin.errors import AdapterError

Shape = tuple[int, ...]

# Layers for a picture's embedding, which Wan's text-to-video denoisers haven't.
PICTURE_LAYERS = ("add_k_proj", "add_v_proj", "image_embedder")
PEFT_NAME = "adapter_model.safetensors"

_LENGTH_BYTES = 8
_LONGEST = 100_000_000  # as in the format's own reader
_SHOWN = 3
_HALF = re.compile(
    r"(?P<layer>.+?)(?P<lora>[._]lora(?:_linear_layer)?\d*)[._](?P<half>A|B|down|up)"
    r"(?:\.\w+)?\.(?P<kind>weight|bias)"
)
_HALF_END = re.compile(r"[._]lora(?:_linear_layer)?\d*$")
_OWN_PREFIX = re.compile(r"^(?:transformer|unet|base_model\.model)\.")
_MAGNITUDE = re.compile(r"(?P<layer>.+?)\.lora_magnitude_vector(?:\.\w+)*")
_DIFFERENCE = re.compile(r"(?P<layer>.+)\.(?P<kind>diff|diff_b|w_norm|b_norm)")
_TEXT = re.compile(
    r"(?:transformer\.|diffusion_model\.|base_model\.model\.)?(?:text_encoders?(?:_\d)?\.|"
    r"lora_te\d?_|te\d?\.|cond_stage_model\.|conditioner\.|clip_[gl]\.|t5xxl\.|"
    r"text_embedding_projection\.|connectors\.|text_conditioner\.|llm_adapter\.)"
)
# What other trainers make, by the names of its weights.
_KINDS = {
    "LoHa": re.compile(r"[._]hada_"),
    "LoKr": re.compile(r"[._]lokr_"),
    "OFT": re.compile(r"[._]b?oft_"),
    "IA3": re.compile(r"[._]ia3_|\.on_input$"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "VeRA": re.compile(r"[._]vera_"),
    "Tucker LoCon": re.compile(r"[._]lora_mid\."),
    "kohya's DoRA": re.compile(r"\.dora_scale$"),
}
_SPELLINGS = {
    "musubi-tuner": re.compile(r"lora_unet_blocks_\d+_(?:self_attn|cross_attn|ffn)_"),
    "kohya": re.compile(r"lora_unet_"),
    "ComfyUI": re.compile(r"diffusion_model\."),
    "peft": re.compile(r"base_model\.model\."),
    "XLabs": re.compile(r".+\.processor\.(?:qkv|proj)_lora\d*\."),
    "diffusers": re.compile(r"(?:transformer|unet)\."),
}
_ADVICE = (
    "diffusers loads plain LoRA only: save it as one, or merge it into a denoiser, with the tool "
    "it was made with"
)


@dataclass(frozen=True)
class AdapterHeader:
    """What the header of a LoRA file says.

    Args:
        path: The file.
        shapes: The shape of each weight, by its name in the file.
        metadata: What its maker wrote beside them.
        places: Where each weight's bytes begin and end, counted from the file's start.
    """

    path: Path
    shapes: dict[str, Shape]
    metadata: dict[str, str]
    places: dict[str, tuple[int, int]]

    @property
    def spelling(self) -> str:
        """Whose spelling the names are in, such as ``"kohya"``; ``"plain"`` where nobody's."""
        for name, pattern in _SPELLINGS.items():
            if any(map(pattern.match, self.shapes)):
                return name
        return "plain"

    @cached_property
    def text_keys(self) -> tuple[str, ...]:
        """Names of the weights that a text encoder, or what follows it, is to have."""
        return tuple(filter(_TEXT.match, self.shapes))

    def is_zero(self, name: str) -> bool:
        """Whether a weight holds nothing but zeros, so that leaving it out changes nothing."""
        begin, end = self.places[name]
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin).count(0) == end - begin

    def problems(self) -> list[str]:
        """List why diffusers can't use the whole file, each reason in one line."""
        names = [name for name in self.shapes if not _TEXT.match(name)]
        if not names:
            about = ", only of a text encoder" if self.shapes else ""
            return [f"it holds no weights of a denoiser{about}"]
        pairs = _Pairs(self.shapes, names)
        found = list(pairs.problems())
        for kind, pattern in _KINDS.items():
            of_kind = [name for name in pairs.others if pattern.search(name)]
            if of_kind:
                found.append(f"{_named(of_kind)} {_are(of_kind)} {kind}'s; {_ADVICE}")
        rest = [n for n in pairs.others if not any(p.search(n) for p in _KINDS.values())]
        return [*found, *self._strangers(rest, pairs.is_whole)]

    def misfits(self, denoiser: Mapping[str, Shape]) -> list[str]:
        """List the layers that a denoiser hasn't, or has in another size.

        Only where the file's names are the denoiser's own: of others, loading tells.

        Args:
            denoiser: The shapes of the denoiser's weights.
        """
        names = [n for n in self.shapes if not _TEXT.match(n) and ".processor." not in n]
        layers = {
            _OWN_PREFIX.sub("", _HALF_END.sub("", layer)): both
            for layer, both in _Pairs(self.shapes, names).halves.items()
        }
        here = {layer: None for layer in layers if f"{layer}.weight" in denoiser}
        other = [layer for layer in here if not _is_of(layers[layer], denoiser[f"{layer}.weight"])]
        lost = [
            layer
            for layer in layers
            if here and layer not in here and not any(word in layer for word in PICTURE_LAYERS)
        ]
        problems = ((lost, "not in the denoiser"), (other, "of another size in the denoiser"))
        return [f"{_named(wrong, 'layer')}: {problem}" for wrong, problem in problems if wrong]

    def _strangers(self, names: Iterable[str], is_whole: Callable[[str], bool]) -> Iterator[str]:
        differences, strangers = [], []
        for name in names:
            match = _DIFFERENCE.fullmatch(name)
            if match is None:
                strangers.append(name)
            elif not _is_read(match, is_whole) and not self.is_zero(name):
                differences.append(name)
        if differences:
            yield (
                f"{_named(differences)} {_are(differences)} to be added to norms, biases or whole "
                "weights, and diffusers leaves that out; save the file without them to have the "
                "rest alone"
            )
        if strangers:
            yield f"{_named(strangers)} {_are(strangers)} no LoRA's; {_ADVICE}"


class _Pairs:
    """The two halves of every layer's LoRA, and what in a file belongs to no layer.

    Args:
        shapes: The shapes of the file's weights.
        names: The weights to look at.
    """

    def __init__(self, shapes: dict[str, Shape], names: list[str]) -> None:
        self.halves: dict[str, dict[str, Shape]] = {}
        self._first: dict[str, str] = {}
        biases, of_layers = [], []
        self.others: list[str] = []
        for name in names:
            match = _HALF.fullmatch(name)
            if match is not None and match["kind"] == "weight":
                layer = match["layer"] + match["lora"]
                half = "A" if match["half"] in ("A", "down") else "B"
                self.halves.setdefault(layer, {})[half] = shapes[name]
                self._first.setdefault(layer, name)
            elif match is not None:
                biases.append((name, match["layer"]))
            elif name.endswith(".alpha"):
                of_layers.append((name, name.removesuffix(".alpha")))
            elif (magnitude := _MAGNITUDE.fullmatch(name)) is not None:
                of_layers.append((name, magnitude["layer"]))
            else:
                self.others.append(name)
        self._layers = {_HALF_END.sub("", layer) for layer in self.halves}
        self._alone = [
            name
            for name, layer in (*biases, *of_layers)
            if _HALF_END.sub("", layer) not in self._layers
        ]

    def is_whole(self, layer: str) -> bool:
        """Whether a layer has a LoRA."""
        return layer in self._layers

    def problems(self) -> Iterator[str]:
        half = [self._first[layer] for layer, both in self.halves.items() if len(both) == 1]
        if half:
            yield f"{_named(half)} {_are(half)} one half of a LoRA, and the other half isn't there"
        unequal = [
            f"{self._first[layer]} {both['A']} with {both['B']}"
            for layer, both in self.halves.items()
            if len(both) == 2 and not _fits(both["A"], both["B"])
        ]
        if unequal:
            yield f"halves of different rank: {_named(unequal)}"
        if self._alone:
            yield f"{_named(self._alone)} {_are(self._alone)} of layers without a LoRA in the file"


def read_adapter_header(path: Path) -> AdapterHeader:
    """Read the header of a LoRA file.

    Raises:
        AdapterError: The file can't be read, is no safetensors file, or isn't whole.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size = file.seek(0, 2)
            file.seek(_LENGTH_BYTES)
            data = file.read(length) if length <= min(size, _LONGEST) else b""
    except OSError as error:
        raise AdapterError(f"{path} can't be read: {error.strerror}") from error
    try:
        entries = json.loads(data)
        metadata = {str(k): str(v) for k, v in entries.pop("__metadata__", {}).items()}
        start = _LENGTH_BYTES + length
        shapes = {name: _shape(entry["shape"]) for name, entry in entries.items()}
        places = {name: _place(entry["data_offsets"], start) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AdapterError(
            f"{path} is no safetensors file, or only its beginning: expected the whole file, "
            "which .safetensors names"
        ) from error
    end = max((end for _, end in places.values()), default=start)
    if end != size:
        raise AdapterError(
            f"{path} isn't whole: its header tells of {end} bytes, and it has {size}: fetch or "
            "copy it again"
        )
    return AdapterHeader(path, shapes, metadata, places)


def scale_file(path: Path) -> Path | None:
    """Find the file that scales an adapter which peft saved; None where there is none."""
    beside = path.with_name("adapter_config.json")
    return beside if path.name == PEFT_NAME and beside.is_file() else None


def _shape(value: Any) -> Shape:
    shape = tuple(int(size) for size in value)
    if any(size < 0 for size in shape) or math.prod(shape) > 2**48:
        raise ValueError(value)
    return shape


def _place(value: Any, start: int) -> tuple[int, int]:
    begin, end = (int(offset) for offset in value)
    if not 0 <= begin <= end:
        raise ValueError(value)
    return start + begin, start + end


def _fits(down: Shape, up: Shape) -> bool:
    return len(down) > 1 and len(up) > 1 and down[0] == up[1]


def _is_of(halves: Mapping[str, Shape], weight: Shape) -> bool:
    """Whether a LoRA can be of a layer; a narrower one can, where its class pads it with zeros."""
    down, up = halves.get("A"), halves.get("B")
    if len(weight) < 2 or not down or not up or len(down) < 2:
        return True
    return down[1] <= weight[1] and up[0] == weight[0]


def _is_read(difference: re.Match[str], is_whole: Callable[[str], bool]) -> bool:
    """Whether diffusers may know a place for a difference, which loading tells for certain."""
    layer, kind = difference["layer"], difference["kind"]
    return (kind == "diff_b" and is_whole(layer)) or layer.endswith("head.head")


def _named(names: list[str], what: str = "weight") -> str:
    """Name the first few, with how many there are."""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown}{more})"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
