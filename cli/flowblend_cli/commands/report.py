"""``flowblend report``: what a folder of finished files says, as sentences, numbers and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowblend_cli.artifacts.publish import publish
from flowblend_cli.errors import UsageError
from flowblend_cli.text import printable

if TYPE_CHECKING:
    from flowblend_cli.report.findings import Report
    from flowblend_cli.report.words import Verdict
    from flowblend_cli.review.unblinding import Reviews

PAGE, NUMBERS = "report.html", "report.json"
_LOOKED_AT = 64 * 1024


class TakesManyFiles(click.Command):
    """A command whose ``--reviews`` takes every file after it, as a shell's pattern gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each file; a folder is never a rater's file."""
        spread, taking = [], False
        for arg in args:
            if arg.startswith("-"):
                taking = arg == "--reviews"
                spread += [] if taking else [arg]
            elif taking and not Path(arg).is_dir():
                spread += ["--reviews", arg]
            else:
                spread.append(arg)
        if args and args[-1] == "--reviews":
            spread.append("--reviews")  # which click then says needs a file
        return super().parse_args(ctx, spread)


@click.command(cls=TakesManyFiles)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--promote", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT.toml",
              help="Write a recipe with the winning seed and settings fixed.")  # fmt: skip
@click.option("--reviews", multiple=True, metavar="FILE...", type=click.Path(path_type=Path),
              help="Join raters' files, which the page of `flowblend review` saved.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of sentences.")
def report(folder: Path, promote: Path | None, reviews: tuple[Path, ...], as_json: bool) -> None:
    """Compare the finished clips in DIR: which settings win, at what price, how surely.

    Writes DIR/report.html, one page to look at, and DIR/report.json, and prints the verdict.
    What wasn't measured while rendering is measured now, of the files.

    \b
    Examples:
      flowblend report out/step-study
      flowblend report out/step-study --promote next.toml
      flowblend report out/step-study --reviews review-*.json

    Exit codes: 0 done, 2 nothing to report, or bad usage, 4 disk.
    """
    from flowblend_cli.report.document import to_document, to_text
    from flowblend_cli.report.findings import conclude
    from flowblend_cli.report.gather import gather
    from flowblend_cli.report.page import to_html

    found = conclude(gather(folder))
    said = _read_reviews(folder, reviews)
    document = to_document(found, said)
    text = to_text(document)
    recipe = _promoted(found, promote) if promote is not None else None
    page = to_html(found, folder, said)
    for name, content in ((PAGE, page), (NUMBERS, text)):
        _require_ours(folder / name)
        publish(folder / name, content.encode())
    if recipe is not None and promote is not None:
        from flowblend_cli.commands._new_file import write_new

        write_new(promote, recipe)
    if as_json:
        click.echo(json.dumps(document, allow_nan=False))
        return
    _say(found, said, folder, promote)


def _promoted(found: Report, out: Path) -> str:
    from flowblend_cli.report.promote import promoted

    if out.exists():
        raise UsageError(f"{out} exists already and isn't overwritten: name another file")
    return promoted(found, out)


def _require_ours(path: Path) -> None:
    """Raise where somebody else's file has a report's name.

    Raises:
        UsageError: It isn't a report.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
        if b"flowblend report" in head or b'"flowblend":' in head:
            return
    raise UsageError(f"{path} is no report of flowblend's and is left alone: move it away")


def _read_reviews(folder: Path, paths: tuple[Path, ...]) -> Reviews | None:
    if not paths:
        return None
    from flowblend_cli.review.unblinding import read_reviews

    return read_reviews(folder, paths)


def _say(found: Report, said: Reviews | None, folder: Path, promote: Path | None) -> None:
    for part in found.parts:
        if len(found.parts) > 1:
            click.echo(f"{printable(part.section.name)}:")
        for verdict in part.verdicts:
            _say_one(verdict)
    if said is not None:
        from flowblend_cli.report import opinions

        for verdict in opinions.verdicts(said):
            _say_one(verdict)
    for warning in found.folder.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    click.echo(f"wrote {printable(folder / PAGE)} and {NUMBERS}")
    if promote is not None:
        click.echo(f"wrote {printable(promote)}")


def _say_one(verdict: Verdict) -> None:
    mark = {"note": "note: ", "warning": "warning: "}.get(verdict.tone, "")
    click.echo(mark + printable(verdict.text))
