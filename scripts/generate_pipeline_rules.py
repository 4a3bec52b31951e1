"""Write the table of what pipelines refuse or change: sizes, frames, inputs, length of prompts.

Run after a change of the diffusers version::

    python scripts/generate_pipeline_rules.py

What ``check_inputs`` of a pipeline refuses is found by asking it, on instances without weights.
What a pipeline changes later, without a word or with a warning, is in the short tables here; the
tests run it on tiny pipelines. The command line reads the table, and never imports diffusers.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import diffusers
from generate_pipeline_arguments import pipeline_classes
from PIL import Image

TABLE = Path(__file__).parents[1] / "cli" / "flowblend_cli" / "data" / "pipeline_rules.json"

# The first part of a class's name that fits, the longest first, tells its row.
# How much smaller latents are than pixels, where the VAE's config isn't here; in space and time.
VAE = {
    "": (8, 1), "CogVideoX": (8, 4), "Cosmos2VideoToWorld": (8, 4), "HunyuanVideo": (8, 4),
    "HunyuanVideo15": (16, 4), "Kandinsky5": (8, 4), "LTX": (32, 8), "Mochi": (8, 6),
    "SanaVideo": (32, 4), "SkyReelsV2": (8, 4), "Wan": (8, 4),
}  # fmt: skip
# Latent pixels that become one token, along each side: a number, or what the denoiser's config
# says, whose usual value stands here, too.
PATCH: dict[str, tuple[int, str]] = {
    "": (1, ""), "CogVideoX": (2, "patch_size"), "Cosmos2": (2, "patch_size"), "Flux": (2, ""),
    "HunyuanVideo": (2, "patch_size"), "HunyuanVideo15": (1, "patch_size"),
    "Kandinsky5": (2, "patch_size"), "LTX": (1, "patch_size"), "Mochi": (2, "patch_size"),
    "QwenImage": (2, ""), "SkyReelsV2": (2, "patch_size"),
    "StableDiffusion3": (2, "patch_size"), "Wan": (2, "patch_size"),
}  # fmt: skip
# Frames beyond a multiple of the VAE's factor in time (of twice that, for CogVideoX, whose VAE
# decodes two latent frames at once); no row for pipelines that render any number.
FRAMES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "CogVideoX": ("num_frames", 2, (0, 1)), "Cosmos2VideoToWorld": ("num_frames", 1, (1,)),
    "HunyuanVideo": ("num_frames", 1, (1,)), "Kandinsky5": ("num_frames", 1, (1,)),
    "LTX": ("num_frames", 1, (1,)), "Mochi": ("num_frames", 1, (1,)),
    "SanaVideo": ("frames", 1, (1,)), "SkyReelsV2": ("num_frames", 1, (1,)),
    "Wan": ("num_frames", 1, (1,)),
}  # fmt: skip
ANY_FRAMES = ("HunyuanVideoFramepackPipeline", "SkyReelsV2DiffusionForcingVideoToVideoPipeline")
# The denoiser's channels in, as a multiple of the latent's and a number more.
CHANNELS = {
    "AnimateDiffPipeline": (1, 0), "CogVideoXPipeline": (1, 0),
    "CogVideoXImageToVideoPipeline": (2, 0), "FluxPipeline": (4, 0),
    "HunyuanVideoPipeline": (1, 0), "LTXConditionPipeline": (1, 0),
    "LTXImageToVideoPipeline": (1, 0), "LTXPipeline": (1, 0), "MochiPipeline": (1, 0),
    "QwenImagePipeline": (4, 0), "SkyReelsV2Pipeline": (1, 0),
    "StableDiffusion3Pipeline": (1, 0), "StableDiffusionXLPipeline": (1, 0),
    "WanPipeline": (1, 0),
}  # fmt: skip
# Who reads the prompt: the tokenizers, and what limits each: an argument, its own length, a number.
_OWN, _ARGUMENT = "model_max_length", "max_sequence_length"
READERS: dict[str, list[tuple[str, str]]] = {
    "AnimateDiff": [("tokenizer", _OWN)],
    "AnimateDiffSDXL": [("tokenizer", _OWN), ("tokenizer_2", _OWN)],
    "CogVideoX": [("tokenizer", _ARGUMENT)],
    "Cosmos2TextToImage": [("tokenizer", _ARGUMENT)],
    "Cosmos2_5": [("tokenizer", _ARGUMENT)],
    "Cosmos2VideoToWorld": [("tokenizer", _ARGUMENT)],
    "Flux": [("tokenizer", _OWN), ("tokenizer_2", _ARGUMENT)],
    "Flux2": [], "Flux2Klein": [("tokenizer", _ARGUMENT)],
    "HunyuanVideo": [("tokenizer", _ARGUMENT), ("tokenizer_2", _OWN)],
    "HunyuanVideo15": [("tokenizer", "1000")],
    "I2VGenXL": [("tokenizer", _OWN)],
    "Kandinsky5": [("tokenizer", _ARGUMENT), ("tokenizer_2", _OWN)],
    "LTX": [("tokenizer", _ARGUMENT)],
    "Mochi": [("tokenizer", _ARGUMENT)],
    "QwenImage": [("tokenizer", _ARGUMENT)],
    "QwenImage2": [], "QwenImageEdit": [],  # these cut nothing off
    "SkyReelsV2": [("tokenizer", _ARGUMENT)],
    "StableDiffusion3": [
        ("tokenizer", _OWN), ("tokenizer_2", _OWN), ("tokenizer_3", _ARGUMENT)
    ],
    "StableDiffusionXL": [("tokenizer", _OWN), ("tokenizer_2", _OWN)],
    "Wan": [("tokenizer", _ARGUMENT)],
}  # fmt: skip
# What Qwen's chat template makes of the messages that these build; it isn't in diffusers.
_USER = "<|im_start|>user\n{}<|im_end|>\n"
CHATS = {
    "Cosmos2_5": ("<|im_start|>system\n{system}<|im_end|>\n", ""),
    "Flux2Klein": ("", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
}
# Prompts that go through ftfy and lose doubled spaces first.
CLEANED = ("SkyReelsV2", "Wan")
# Inputs that a recipe can't give. Some have a default of None, and are needed all the same.
_FOREIGN = ("video", "conditioning_frames", "control_image", "control_video", "mask_image",
            "pose_video", "face_video", "controls", "control_mask")  # fmt: skip
_NEEDS = {
    "video": ("VideoToVideo",),
    "conditioning_frames": ("AnimateDiffControlNet", "SparseControlNet", "VideoToVideoControlNet"),
    "control_image": ("FluxControl", "QwenImageControlNet", "StableDiffusion3ControlNet",
                      "ControlNetImg2Img", "ControlNetInpaint", "ControlNetUnion",
                      "ControlNetPAGImg2Img"),
    "control_video": ("FunControl",),
    "mask_image": ("Inpaint", "FluxFill"),
}  # fmt: skip
_LARGE = 1536  # a multiple of every side that is asked for


def row_of(name: str, rows: dict[str, Any]) -> Any:
    """The row of the longest beginning of a class's name; None without one."""
    fitting = [start for start in rows if name.startswith(start)]
    return rows[max(fitting, key=len)] if fitting else None


def bare(cls: type) -> Any:
    """An instance of a pipeline without weights, in which every factor is 1."""
    parameters = list(inspect.signature(inspect.unwrap(cls.__init__)).parameters.values())[1:]
    needed = [one.name for one in parameters if one.default is inspect.Parameter.empty]
    try:
        pipe: Any = cls(**dict.fromkeys(needed))
    except (AttributeError, ImportError):  # it reads something of a component, or asks for one
        pipe = SimpleNamespace(
            config=SimpleNamespace(boundary_ratio=None), transformer=MagicMock(),
            _callback_tensor_inputs=[], resolutions=[], check_conditioning_image=MagicMock(),
        )  # fmt: skip
        pipe.check_inputs = (
            inspect.unwrap(cls.check_inputs).__get__(pipe) if hasattr(cls, "check_inputs") else None
        )
    for name in ("vae_scale_factor", "vae_scale_factor_spatial", "vae_scale_factor_temporal",
                 "vae_spatial_compression_ratio", "patch_size"):  # fmt: skip
        setattr(pipe, name, 1)
    return pipe


def asker(cls: type) -> Callable[..., str | None] | None:
    """A function that asks ``check_inputs`` about some arguments: its refusal, or None."""
    pipe = bare(cls)
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return None
    taken = inspect.signature(check).parameters

    def ask(**given: Any) -> str | None:
        image = Image.new("RGB", (_LARGE, _LARGE))
        values: dict[str, Any] = {
            "prompt": "a", "height": _LARGE, "width": _LARGE, "image": image, "num_frames": 17,
            "strength": 0.5, "callback_steps": 1, "num_inference_steps": 4, "mask_image": image,
            "control_image": image, "latent_window_size": 9,
        }  # fmt: skip
        values |= given
        arguments = {
            name: values.get(name, None if p.default is inspect.Parameter.empty else p.default)
            for name, p in taken.items()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        }
        try:
            check(**arguments)
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            return str(error) or type(error).__name__
        return None

    return ask


def sides(cls: type, ask: Callable[..., str | None] | None) -> int:
    """The multiple that is asked of height and width, whatever the models are."""
    if ask is None or ask() is not None:  # it wants more than can be given here: its words tell
        told = re.findall(r"(?:have to|must) be divisible by (\d+)", inspect.getsource(cls))
        return max(map(int, told), default=1)
    for step in (1, 2, 4, 8, 16, 32, 64, 128):
        if ask(height=_LARGE + step) is None and ask(width=_LARGE + step) is None:
            return step
    raise AssertionError("no multiple found")


def longest_text(ask: Callable[..., str | None] | None, default: int | None) -> int | None:
    """The most that ``max_sequence_length`` may be; None where nothing limits it."""
    if ask is None or default is None or ask(max_sequence_length=default) is not None:
        return None
    low, high = default, 1_000_000
    if ask(max_sequence_length=high) is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ask(max_sequence_length=middle) else (middle, high)
    return low


def needs(cls: type) -> list[str]:
    """Inputs that the pipeline does nothing without, and that no recipe can give."""
    parameters = inspect.signature(inspect.unwrap(cls.__call__)).parameters
    return [
        name
        for name in _FOREIGN
        if name in parameters
        and (
            parameters[name].default is inspect.Parameter.empty
            or any(part in cls.__name__ for part in _NEEDS.get(name, ()))
        )
    ]


def template_of(cls: type, pipe: Any) -> dict[str, Any]:
    """The text that a pipeline puts around prompts, and how many of its tokens are dropped."""
    text = getattr(pipe, "prompt_template_encode", None)
    if isinstance(text, str):
        return {"template": text, "start": pipe.prompt_template_encode_start_idx}
    text = getattr(pipe, "prompt_template", None)
    if isinstance(text, str):
        return {"template": text, "start": pipe.prompt_template_encode_start_idx}
    chat = row_of(cls.__name__, CHATS)
    if chat is not None:
        told = re.search(r'"role": "system".*?"text": "([^"]+)"', inspect.getsource(cls), re.DOTALL)
        before = chat[0].replace("{system}", told[1] if told else "")
        return {"template": before + _USER + chat[1], "start": 0}
    known = vars(inspect.getmodule(cls)).get("DEFAULT_PROMPT_TEMPLATE")
    if isinstance(known, dict) and "crop_start" in known:
        return {"template": known["template"], "start": known["crop_start"]}
    return {}


def rules_of(cls: type) -> dict[str, Any]:
    """The row of one class."""
    name, ask = cls.__name__, asker(cls)
    called = inspect.signature(inspect.unwrap(cls.__call__)).parameters
    spatial, temporal = row_of(name, VAE)
    patch, key = row_of(name, PATCH)
    default = called[_ARGUMENT].default if _ARGUMENT in called else None
    readers = row_of(name, READERS) or []
    rules: dict[str, Any] = {
        "sides": sides(cls, ask),
        "vae": [spatial, temporal],
        "patch": [patch, key],
        "negative_prompt": "negative_prompt" in called,
        "needs": needs(cls),
    }
    frames = row_of(name, FRAMES)
    if frames is not None and frames[0] in called and name not in ANY_FRAMES:
        rules["frames"] = [frames[0], frames[1], list(frames[2])]
    if name in CHANNELS:
        rules["channels"] = list(CHANNELS[name])
    if default is not None:
        rules["text_tokens"] = default
        rules["most_text_tokens"] = longest_text(ask, default)
    if readers:
        rules["readers"] = [list(reader) for reader in readers]
        rules |= template_of(cls, bare(cls))
    if name.startswith(CLEANED):
        rules["cleans"] = True
    sizes = getattr(bare(cls), "resolutions", None)
    if sizes:
        rules["sizes"] = [list(size) for size in sizes]
    if ask is not None and ask() is None and "guidance_scale_2" in called:
        rules["second_guidance_needs_boundary"] = ask(guidance_scale_2=3.0) is not None
    return rules


def build_table() -> dict[str, Any]:
    """The whole table, by class."""
    found = {
        cls.__name__: rules_of(cls)
        for cls in pipeline_classes()
        if "num_inference_steps" in inspect.signature(inspect.unwrap(cls.__call__)).parameters
    }
    return {"diffusers": diffusers.__version__, "pipelines": found}


def render_table() -> str:
    """The table as the text of its file: one pipeline a line."""
    table = build_table()
    rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in table["pipelines"].items()]
    head = f'{{\n  "diffusers": {json.dumps(table["diffusers"])},\n  "pipelines": {{\n'
    return head + ",\n".join(rows) + "\n  }\n}\n"


if __name__ == "__main__":
    TABLE.write_text(render_table(), encoding="utf-8")
    print(f"wrote {TABLE}")
