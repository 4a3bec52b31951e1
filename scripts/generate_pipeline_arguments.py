"""Write the table of pipeline arguments that a recipe may set, from diffusers' own signatures.

Run after a change of the diffusers version::

    python scripts/generate_pipeline_arguments.py

The command line validates recipes against the table, so that it never has to import diffusers.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers

TABLE = Path(__file__).parents[1] / "cli" / "flowblend_cli" / "data" / "pipeline_arguments.json"

FAMILIES = (
    "AnimateDiff",
    "CogVideoX",
    "Cosmos2",
    "Flux",
    "HunyuanVideo",
    "I2VGenXL",
    "Kandinsky5",
    "LTX",
    "Mochi",
    "QwenImage",
    "SanaVideo",
    "SkyReelsV2",
    "StableDiffusion3",
    "StableDiffusionXL",
    "Wan",
)

# What the renderer itself decides, or what one job can't have: a job is one file from one seed,
# and its steps come from num_inference_steps alone, or plan and blend would disagree.
OWNED = {
    "return_dict",
    "output_type",
    "seed",
    "sigmas",
    "timesteps",
    "num_images_per_prompt",
    "num_videos_per_prompt",
}
OWNED_PREFIXES = ("_", "callback", "prompt", "negative_prompt")
OWNED_EXCEPTIONS = {"prompt_enhancement_seed", "prompt_max_new_tokens"}
# Pipelines that begin with a picture, although some of them give it a default of None.
NEEDS_IMAGE = ("ImageToVideo", "I2V", "I2I", "Img2Img", "Inpaint", "InstructPix2Pix", "ImageEdit")
SCALARS: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str"}


def pipeline_classes() -> Iterator[type]:
    """Every pipeline of the families above that this diffusers can import."""
    for name in sorted(dir(diffusers)):
        if not name.startswith(FAMILIES) or not name.endswith("Pipeline"):
            continue
        cls = getattr(diffusers, name)
        # A modular pipeline's __call__ takes its arguments from blocks, not from a signature.
        if isinstance(cls, type) and "Modular" not in name and "__call__" in dir(cls):
            yield cls


def toml_types(annotation: Any) -> set[str]:
    """The TOML-expressible types of an annotation; empty if there is none."""
    if annotation in SCALARS:
        return {SCALARS[annotation]}
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(toml_types(member) for member in members))
    if origin is list and len(members) == 1 and members[0] in SCALARS:
        return {f"list[{SCALARS[members[0]]}]"}
    return set()


def is_owned(name: str) -> bool:
    """Whether the renderer decides the argument, so that no recipe may."""
    return name in OWNED or (name.startswith(OWNED_PREFIXES) and name not in OWNED_EXCEPTIONS)


def annotation_of(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    """A parameter's annotation; None where a postponed one can't be evaluated (images only)."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        return eval(parameter.annotation, namespace)
    except (NameError, TypeError):
        return None


def arguments_of(cls: type) -> dict[str, set[str]]:
    """The arguments of one pipeline that a recipe may set, with their types."""
    function = inspect.unwrap(cls.__call__)
    found = {
        name: toml_types(annotation_of(parameter, vars(inspect.getmodule(function))))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and not is_owned(name)
    }
    return {name: kinds for name, kinds in found.items() if kinds}


def image_of(cls: type) -> str | None:
    """Whether a pipeline's ``image`` is "required" or "optional"; None where it takes none."""
    parameter = inspect.signature(inspect.unwrap(cls.__call__)).parameters.get("image")
    if parameter is None:
        return None
    needed = parameter.default is inspect.Parameter.empty
    return "required" if needed or any(m in cls.__name__ for m in NEEDS_IMAGE) else "optional"


def build_table() -> dict[str, Any]:
    """The whole table: each argument's types, and the arguments and image of each pipeline."""
    kinds: dict[str, set[str]] = {}
    pipelines: dict[str, list[str]] = {}
    images: dict[str, str] = {}
    for cls in pipeline_classes():
        arguments = arguments_of(cls)
        if "num_inference_steps" not in arguments:
            continue
        pipelines[cls.__name__] = sorted(arguments)
        for name, types_ in arguments.items():
            kinds.setdefault(name, set()).update(types_)
        if image := image_of(cls):
            images[cls.__name__] = image
    return {
        "diffusers": diffusers.__version__,
        "arguments": {name: sorted(kinds[name]) for name in sorted(kinds)},
        "pipelines": pipelines,
        "images": images,
    }


def render_table() -> str:
    """The table as the text of its file: one argument or pipeline a line."""
    table = build_table()
    lines = [f'{{\n  "diffusers": {json.dumps(table["diffusers"])},']
    for part, end in (("arguments", ","), ("pipelines", ","), ("images", "")):
        rows = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in table[part].items()]
        lines.append(f'  "{part}": {{\n' + ",\n".join(rows) + f"\n  }}{end}")
    return "\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TABLE.write_text(render_table(), encoding="utf-8")
    print(f"wrote {TABLE}")
