"""Fields: what a single value of a recipe may be, for its tables and for what is read back."""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.recipe.schema.names import check_name
from flowblend_cli.recipe.schema.ranges import MAX_SEED, MAX_STEPS

Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
FlowShift = Annotated[float, Field(gt=0, le=100)]
Guidance = Annotated[float, Field(ge=1)]
SigmaMax = Annotated[float, Field(gt=0)]
Threshold = Annotated[float, Field(ge=0)]
StepCount = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Mode = Literal["ode", "sde"]
History = Literal["keep", "reset"]
StageSolver = Literal[
    "flow_match_euler", "unipc", "dpmpp_2m", "dpmpp_2m_sde", "deis", "sa_solver", "lcm"
]
Solver = Literal[
    "flow_match_euler",
    "heun",
    "unipc",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "deis",
    "sa_solver",
    "lcm",
    "dpmpp_2m_karras",
    "euler_a",
]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?|xpu(:\d+)?)$")]
Variant = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]
Offload = Literal["none", "model", "group", "sequential"]
Container = Literal["mp4", "png"]
Fps = Annotated[int, Field(ge=1, le=240)]
Scale = Annotated[int, Field(ge=1, le=64)]
Crf = Annotated[int, Field(ge=0, le=51)]

_KINDS: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
}
_BOUNDS: dict[str, Any] = {
    "num_inference_steps": Field(ge=1, le=MAX_STEPS),
    "num_frames": Field(ge=1, le=100_000),
    "height": Field(ge=1, le=16_384),
    "width": Field(ge=1, le=16_384),
    "max_sequence_length": Field(ge=1),
    "guidance_scale": Field(ge=0),
    "guidance_scale_2": Field(ge=0),
}


def _annotation(name: str, kinds: tuple[str, ...]) -> Any:
    """The type of a pipeline argument; a whole number is a float too, so float wins over int."""
    kept = [_KINDS[kind] for kind in kinds if not (kind == "int" and "float" in kinds)]
    union = functools.reduce(operator.or_, kept)
    return Annotated[union, _BOUNDS[name]] if name in _BOUNDS else union


@functools.cache
def argument_types() -> dict[str, Any]:
    """The type of each pipeline argument that a recipe may set."""
    return {name: _annotation(name, kinds) for name, kinds in argument_table().arguments.items()}
