"""``flowblend probe``: measures a recipe's pair of denoisers, for the choice of stages."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowblend_cli.commands._options import NamedPath
from flowblend_cli.text import count, printable
from flowblend_plugin.calibration.criteria import CRITERIA, choose

if TYPE_CHECKING:
    from flowblend_cli.diagnostics.probe.prepare import ProbePlan
    from flowblend_cli.jobs import Batch
    from flowblend_plugin.calibration.calibration import Calibration
    from flowblend_plugin.calibration.criteria import Choice

_SHARE = click.FloatRange(0, 1, min_open=True)
_COUNT = click.IntRange(1)


@click.command()
@click.argument("recipe")
@click.option("--out", type=NamedPath(dir_okay=False),
              default=Path("calibration.json"), show_default=True,
              help="The calibration; its pictures get the same stem.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key.")
@click.option("--prompts", type=_COUNT, default=8, show_default=True,
              help="Prompts and seeds to run with both denoisers.")  # fmt: skip
@click.option("--sensitivity-prompts", type=_COUNT, default=8, show_default=True,
              help="The first so many of them are asked for sensitivities, too.")  # fmt: skip
@click.option("--positions", type=_COUNT, default=10, show_default=True,
              help="Steps at which sensitivities are measured.")  # fmt: skip
@click.option("--budget", type=_SHARE, default=0.6, show_default=True,
              help="Share of the all-large cost, for the choice that is shown.")  # fmt: skip
@click.option("--criterion", type=click.Choice(["best", *CRITERIA]), default="best",
              show_default=True, help="How that choice is made.")  # fmt: skip
@click.option("--cost-ratio", type=_SHARE, metavar="RATIO",
              help="Cost of a small forward relative to a large one, instead of its counted FLOPs.",
              )  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def probe(
    recipe: str,
    out: Path,
    overrides: tuple[str, ...],
    prompts: int,
    sensitivity_prompts: int,
    positions: int,
    budget: float,
    criterion: str,
    cost_ratio: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure where RECIPE's two denoisers differ, and what a small step does to the result.

    RECIPE is a TOML file or the name of a bundled recipe. The large denoiser runs the recipe's
    prompts; the small one answers beside it. Writes a calibration, which stage boundaries are
    chosen from, and a plot of it.

    \b
    flowblend probe quickstart --prompts 2
    flowblend probe my.toml --out my-pair.json --budget 0.5

    Exit codes: 0 done, 1 the pair can't be measured, 2 bad recipe or usage, 3 model missing,
    4 disk, 5 device, 129, 130 or 143 after a signal, with nothing written.
    """
    from flowblend_cli.diagnostics.probe.measure import Stopped, check_outputs, measure, write
    from flowblend_cli.diagnostics.probe.prepare import check_budget, prepare
    from flowblend_cli.recipe.loader import load_batch

    began = time.monotonic()
    check_outputs(out)
    batch = load_batch(recipe, overrides, settle=False)
    probing = prepare(batch, prompts, cost_ratio, _say_counting if sys.stderr.isatty() else None)
    steps = probing.jobs[0].num_inference_steps
    check_budget(probing.cost_ratio, steps, budget, criterion)
    for note in probing.notes:
        click.echo(f"note: {printable(note)}", err=True)
    try:
        calibration = measure(
            probing, batch.source.parent, sensitivity_prompts=sensitivity_prompts,
            positions=positions, quiet=quiet,
        )  # fmt: skip
    except Stopped as stopped:
        click.echo(f"flowblend: {stopped}", err=True)
        return stopped.exit_code
    choice: Choice | None = None

    def draw() -> tuple[bytes, ...]:
        nonlocal choice
        from flowblend_cli.diagnostics.probe.plot import draw_pictures

        choice = choose(calibration.at(calibration.levels), budget, criterion)
        return draw_pictures(calibration, choice)

    files = write(calibration, out, draw)
    assert choice is not None
    _report(batch, probing, calibration, choice, files, criterion, as_json, began)
    return 0


def _report(
    batch: Batch,
    probing: ProbePlan,
    calibration: Calibration,
    choice: Choice,
    files: tuple[Path, ...],
    criterion: str,
    as_json: bool,
    began: float,
) -> None:
    from flowblend_cli.diagnostics.probe.summary import facts, recipe_lines, summary
    from flowblend_cli.models.bundled import is_bundled

    elapsed = time.monotonic() - began
    folder = None if is_bundled(batch.source) else batch.source.parent
    lines = recipe_lines(files[0], folder, choice.evidence["budget"], criterion)
    if as_json:
        document = {
            "v": 1,
            "recipe": batch.recipe_name,
            "elapsed_s": round(elapsed, 3),
            **facts(calibration, choice),
            "files": [str(path.absolute()) for path in files],
            "blend": lines,
        }
        click.echo(json.dumps(document))
        return
    click.echo(
        f"{printable(batch.recipe_name)}: {count(len(probing.jobs), 'prompt')}, sensitivities of "
        f"{calibration.sensitivity_prompts} at {len(calibration.positions)} of "
        f"{len(calibration.steps)} steps, in {elapsed:.0f} s"
    )
    for line in summary(calibration, choice):
        click.echo(printable(line))
    click.echo(f"wrote {', '.join(printable(path) for path in files)}")
    click.echo("to choose boundaries by it, in [blend] of the recipe:")
    for line in lines:
        click.echo(f"  {printable(line)}")


def _say_counting(forwards: int) -> None:
    click.echo("counting the FLOPs of the two denoisers, once for this shape...", err=True)
