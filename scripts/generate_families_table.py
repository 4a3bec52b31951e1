"""Write docs/families.md, the table of what is proven, from the tests' own list of families.

Run after a change of tests/families::

    python scripts/generate_families_table.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import diffusers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families.base import Family  # noqa: E402 - found through the path above
from families.registry import FAMILIES, UNPROVEN  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
ORACLES = ROOT / "tests" / "families" / "test_families.py"

TEXT = """\
# Pipelines

<!-- Made by scripts/generate_families_table.py from the tests' own list. -->

The switch swaps whatever module a pipeline holds in `transformer` or `unet`, driven by the
scheduler. What that is worth is shown for each of these pipelines of diffusers {version}, with
tiny random pairs of its real classes:

{table}

For each of them, a test says:

{oracles}

{counts}

## What must match inside a pair

`DenoiserSwitch` compares the two configs when it attaches, and lists every mismatch in one error:
class, latent channels, patch size, text and image embedding widths, embedded guidance, and
whatever else a pipeline reads from the denoiser that it happens to hold. Depth and width may
differ. So may what a pipeline never sees: SD3's `caption_projection_dim`, or
`cross_attention_dim` where captions are projected inside.

Two things are translated instead of compared:

- **VACE.** The pipeline makes one conditioning scale for each conditioned layer of the large
  denoiser (8 in the 14B model). The small one (15 in the 1.3B model) reads them at the relative
  depth of its own layers, linearly between the large one's; equal scales stay exactly equal.
- **SkyReels V2.** The pipeline sets the frames of a causal block on the denoiser that it holds;
  the switch sets them on both, and gives the small one its own back.

Boundaries in sigma are shares of noise, 1 to 0, for all of them: Mochi's scheduler counts signal
instead, and Cosmos-Predict2's sigmas reach 80; both are converted.

## Frames that begin one after another

With `ar_step` above 0, SkyReels V2's diffusion forcing runs more iterations than a frame has steps,
and every iteration has frames at several steps. One denoiser runs them all, so the stages are
spread over the iterations: `boundaries` are fractions of `pipe.num_timesteps`, in each chunk of a
long video anew, and `switch.denoisers` has a role for every iteration. Refused, with the reason,
are `boundary_sigmas` and caches, which need a step that all frames share, and a first stage so
short that it gets an iteration but no step. Without the callback the second iteration raises.

## Modular pipelines

They have no step callback. `DenoiserSwitch` works on them as on any other pipeline. Or a block
goes first into the denoise loop, and the small denoiser is a component of its own, which moves
to devices and dtypes with the others:

```python
from diffusers import WanBlocks
from flowblend_plugin import FlowBlendBlock

blocks = WanBlocks()
loop = blocks.sub_blocks["denoise"].sub_blocks["denoise"]
loop.sub_blocks.insert("flowblend", FlowBlendBlock("LSL", boundaries=(0.4, 0.8)), 0)
pipe = blocks.init_pipeline()
pipe.update_components(transformer=large, transformer_small=small, scheduler=scheduler)
```

## Not proven

| what | why |
|---|---|
{unproven}
"""


def driver(family: Family) -> str:
    """Who tells the switch that a step is over."""
    if family.needs_callback:
        return "the callback"
    return "the scheduler" if family.has_callback else "the scheduler (no callback)"


def row(family: Family) -> str:
    """One family's line of the table."""
    place = ", ".join(f"`{name}`" for name in family.attributes)
    cells = [family.name, f"`{family.pipeline}`", f"`{family.denoiser}`", place]
    return "| " + " | ".join([*cells, driver(family), family.note]) + " |"


def oracles() -> list[str]:
    """What the tests say of every family, in their own words."""
    tests = [
        node
        for node in ast.parse(ORACLES.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return [node.name.removeprefix("test_").replace("_", " ") for node in tests]


def render() -> str:
    """The whole page."""
    head = [
        "| family | pipeline | denoiser | its place | driven by | note |",
        "|---|---|---|---|---|---|",
    ]
    pipelines = len({family.pipeline for family in FAMILIES})
    return TEXT.format(
        version=diffusers.__version__,
        table="\n".join([*head, *map(row, FAMILIES)]),
        oracles="\n".join(f"- {oracle}" for oracle in oracles()),
        counts=f"That is {len(FAMILIES)} families on {pipelines} pipeline classes.",
        unproven="\n".join(f"| {what} | {why} |" for what, why in UNPROVEN.items()),
    )


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
