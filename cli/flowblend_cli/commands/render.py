"""``flowblend render``: renders every job of a recipe that isn't finished yet."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowblend_cli.commands._next_steps import as_argument, say_next
from flowblend_cli.commands._options import (
    NamedPath,
    ShardOf,
    TakesManyFiles,
    command_line,
    log_option,
    run_options,
)
from flowblend_cli.console.factory import QUIET, make_reporter
from flowblend_cli.errors import UsageError
from flowblend_cli.events import Message, Reporter, chain
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.text import count
from flowblend_cli.utils.devices import parse_devices

if TYPE_CHECKING:
    from flowblend_cli.console.log_file import LogFile
    from flowblend_cli.engine.run_options import RunOptions
    from flowblend_cli.jobs import Batch, Shard
    from flowblend_cli.planning.run_progress import RunProgress


@click.command(cls=TakesManyFiles)
@click.argument("recipe", metavar="RECIPE|FILE")
@click.option("--out", type=NamedPath(), help="Folder for the results.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Edit the recipe first: --set defaults.num_inference_steps=12")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON line per event on stdout.")
@click.option("--dry-run", is_flag=True, help="Show the plan and render nothing.")
@click.option("--gallery", "with_gallery", is_flag=True,
              help="Add a contact sheet, and compare.mp4 of LLL, LSL and SSS.")  # fmt: skip
@click.option("--report/--no-report", "with_report", default=None,
              help="Write report.html at the end; unset, as the recipe says.")  # fmt: skip
@click.option("--reviews", multiple=True, metavar="FILE...", type=click.Path(path_type=Path),
              help="Render again, adapted, what raters gave less than 5 of 10.")  # fmt: skip
@click.option("--shard", type=ShardOf(), metavar="I/N",
              help="Render the I-th of N parts; others may run meanwhile.")  # fmt: skip
@run_options
@log_option
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", count=True, help="Say more.")
def render(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    with_gallery: bool,
    with_report: bool | None,
    reviews: tuple[Path, ...],
    shard: Shard | None,
    options: RunOptions,
    log: LogFile | None,
    quiet: bool,
    verbose: int,
) -> int:
    """Render every job of RECIPE that isn't finished yet.

    RECIPE is a TOML file or the name of a bundled recipe (see `flowblend recipes ls`). The same
    command again finishes what was interrupted and renders nothing twice.

    A finished FILE instead of a recipe renders that file's job once more, as NAME.again.EXT, and
    says whether the pixels agree.

    With --reviews, clips of which the mean of any criterion is below 5 of 10 are rendered again as
    [adapt] says, whatever was measured of them.

    With --shard I/N, N runs share the jobs, on as many machines as you like; see docs/scaling.md.

    \b
    flowblend render quickstart
    flowblend render my.toml --set 'blend.boundaries=[0.3,0.9]'
    flowblend render out/quickstart/star-s1-n50.mp4
    flowblend render my.toml --shard 2/8

    Exit codes: 0 done, 1 some jobs failed, 2 bad recipe or usage, 3 model missing, 4 disk,
    5 device, 75 another run holds the folder, 128 + its number after a signal: 129, 130, 143.
    """
    verbosity = -1 if quiet else verbose
    if Path(recipe).suffix in (".mp4", ".png") and Path(recipe).is_file():
        if any((out, overrides, dry_run, with_gallery, with_report, reviews, shard)):
            raise UsageError(
                "a finished FILE is rendered again exactly as it was, beside itself: leave --out, "
                "--set, --dry-run, --gallery, --report, --reviews and --shard out, or give its "
                "recipe"
            )
        return _again(Path(recipe), as_json, verbosity, options, log)

    from flowblend_cli.console.run_state import RunState
    from flowblend_cli.engine.batch_run import BatchRun
    from flowblend_cli.planning.run_progress import RunProgress

    if shard is not None and (with_gallery or with_report):
        raise UsageError(
            "--gallery and --report need all jobs, and --shard renders a part of them: leave them "
            "out, and once every shard is done render without --shard, which finds all done"
        )
    batch = _load(recipe, overrides, out, shard)
    if dry_run:
        from flowblend_cli.commands.plan import show_plan

        show_plan(batch, as_json=as_json)
        return 0
    reports = batch.study.report and shard is None if with_report is None else with_report
    if reports:
        from flowblend_cli.analysis.report.write import require_extra

        require_extra()
    options = replace(options, devices=options.devices or batch.devices)
    _check_devices(batch, options)
    progress = RunProgress(batch)
    shown = make_reporter(progress, json=as_json, verbosity=verbosity, log=log)
    for warning in batch.warnings:
        shown(Message(warning))
    run = BatchRun(
        batch,
        chain([RunState(progress, batch, command_line(), shown), shown]),
        options=options,
        overrides=overrides,
        complaints=_complaints(batch, reviews),
        progress=progress,
    )
    code = run.run()
    is_complete = code == 0 and not run.remaining
    if with_gallery and is_complete:
        code = _show_gallery(batch, as_json, verbosity, options)
        if code == 0 and verbosity >= 0:
            _say_next(recipe, batch, reports=reports, as_json=as_json)
    if reports and is_complete and code == 0:
        _write_report(batch, as_json, verbosity)
    return code


def _load(recipe: str, overrides: tuple[str, ...], out: Path | None, shard: Shard | None) -> Batch:
    """The jobs of a recipe, or of one shard of it."""
    from flowblend_cli.planning.shards import divide
    from flowblend_cli.recipe.loader import load_batch
    from flowblend_cli.recipe.schema.foreign_names import path_problem

    problem = path_problem(str(out)) if out is not None else None
    if problem is not None:
        raise UsageError(f"--out {problem}")
    batch = load_batch(recipe, overrides, out)
    if shard is None:
        return batch
    mine = divide(batch, shard)
    told = f"shard {shard}: {len(mine.jobs):,} of {count(len(batch.jobs), 'job')}"
    return replace(mine, warnings=(*batch.warnings, told))


def _check_devices(batch: Batch, options: RunOptions) -> None:
    """Refuse two answers to the question where jobs are rendered."""
    if not options.devices:
        return
    if options.executor == "ray":
        raise UsageError(
            f"[run] devices = {options.devices!r} is for one machine: leave it out of the recipe "
            "to render on a cluster, or leave --executor ray out"
        )
    if options.executor == "in-process":
        raise UsageError(
            f"devices {options.devices!r} are for processes of their own: leave --executor "
            "in-process (or FLOWBLEND_ISOLATE=0) out, or the devices"
        )
    kinds = {device.kind for device in parse_devices(options.devices)}
    if len(kinds) > 1:
        raise UsageError(
            f"devices {options.devices!r} are of several kinds, which don't make the same bits: "
            "name those of one kind"
        )
    asked = {job.model.device for job in batch.jobs} - {"auto", *kinds}
    if asked:
        raise UsageError(
            f"model.device = {min(asked)!r} and devices {options.devices!r} both say where to "
            'render: leave model.device out, or set it to "auto"'
        )


def _write_report(batch: Batch, as_json: bool, verbosity: int) -> None:
    from flowblend_cli.analysis.report.write import draw_up, sentences, write

    drawn = draw_up(batch.output_dir)
    write(drawn, batch.output_dir)
    if verbosity >= 0:
        for line in sentences(drawn, batch.output_dir):
            click.echo(line, err=as_json)


def _complaints(batch: Batch, reviews: tuple[Path, ...]) -> dict[str, str]:
    """What raters found wrong, by job: the criterion with the lowest mean below the limit."""
    if not reviews:
        return {}
    from flowblend_cli.analysis.review.unblinding import flagged, read_reviews

    found = read_reviews(batch.output_dir, reviews)
    wrong = flagged(found)
    complaints: dict[str, str] = {}
    for row in sorted(found.by_job, key=lambda row: row.mean):
        if row.recipe == batch.recipe_name and row.name in wrong and row.name not in complaints:
            raters = count(row.raters, "rater")
            complaints[row.name] = f"{row.criterion} {row.mean:.1f} of 10 by {raters}"
    return complaints


def _show_gallery(batch: Batch, as_json: bool, verbosity: int, options: RunOptions) -> int:
    from flowblend_cli.analysis.gallery.comparison import gallery

    def quiet(progress: RunProgress) -> Reporter:
        return make_reporter(progress, json=False, verbosity=QUIET)

    code, lines = gallery(batch, quiet, options)
    if verbosity >= 0:
        for line in lines:
            click.echo(line, err=as_json)
    return code


def _say_next(recipe: str, batch: Batch, *, reports: bool, as_json: bool) -> None:
    """After a gallery: from a bundled recipe to one's own, from that to its report."""
    if recipe in bundled_recipes():
        names = itertools.chain(["my.toml"], map("my-{}.toml".format, itertools.count(2)))
        mine = next(name for name in names if not Path(name).exists())
        say_next(["recipes", "cp", recipe, mine], ["render", mine], to_stderr=as_json)
    elif not reports and find_spec("jinja2") is not None:
        say_next(["report", as_argument(batch.output_dir)], to_stderr=as_json)


def _again(
    path: Path, as_json: bool, verbosity: int, options: RunOptions, log: LogFile | None
) -> int:
    from flowblend_cli.artifacts.finished import inspect_final
    from flowblend_cli.engine.reproduce import render_again

    found = inspect_final(path, follow=True)
    if found.document is None:
        raise UsageError(
            f"{path}: holds no record of a render: render takes a recipe, or a file that "
            "flowblend rendered"
        )

    def show(progress: RunProgress) -> Reporter:
        return make_reporter(progress, json=as_json, verbosity=verbosity, log=log)

    return render_again(found, path.absolute(), show, options)
