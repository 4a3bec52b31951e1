"""Why every job is rendered alone: what rendering several together does to their pixels.

``benchmarks/batching.py --write`` measures it, and writes the table that this reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Deviation:
    """How far clips that were rendered together are from the same clips alone.

    Args:
        pair: The pair that was rendered.
        device: Where, and with which numbers, such as ``"cpu float32"``.
        steps: Steps of each clip.
        difference: Greatest difference of a pixel from 0 to 1, before rounding to 8 bits.
        share: Greatest share of a run's 8-bit values that differ.
        levels: Greatest difference of an 8-bit value.
    """

    pair: str
    device: str
    steps: int
    difference: float
    share: float
    levels: int

    def __str__(self) -> str:
        return (
            f"up to {self.difference:.1e} before rounding, {self.share:.4%} of the 8-bit values "
            f"by up to {self.levels}, on {self.pair}, {self.device}, {self.steps} steps"
        )


@cache
def measured_deviations() -> dict[str, Deviation]:
    """What was measured, by the pipeline's class; none of them is 0."""
    text = (files("flowblend_cli") / "data" / "batching.json").read_text("utf-8")
    return {name: Deviation(**entry) for name, entry in json.loads(text).items()}


def why_alone(pipeline_class: str | None) -> str:
    """Say why a pipeline's jobs aren't rendered together, and what to do.

    Args:
        pipeline_class: Class of the pipeline; None where it isn't known.
    """
    found = measured_deviations().get(pipeline_class or "")
    if found is None:
        reason = f"{pipeline_class or 'this pipeline'} is not proven to give the same bits as alone"
    else:
        reason = f"{pipeline_class} then gives other bits than alone (measured: {found})"
    return f"{reason}; leave batch_size out, and each job is rendered alone"
