"""``flowblend doctor``: tells what on this machine could break a render, or its bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from flowblend_cli.commands._options import NamedPath
from flowblend_cli.diagnostics.doctor.checks import Finding
from flowblend_cli.diagnostics.doctor.diagnose import examine
from flowblend_cli.text import count, printable


@click.command()
@click.option("--out", type=NamedPath(), default=Path(),
              help="Folder that files would go to; the current one by default.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Leave out the self-test, which renders.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(out: Path, quick: bool, as_json: bool) -> int:
    """Tell what on this machine could break a render, or its bits.

    Looks at versions, device, threads, precision, kernels, H.264, disk and caches, then renders
    the bundled pair in two processes and compares every pixel. Changes nothing.

    \b
    Examples:
      flowblend doctor
      flowblend doctor --quick --json

    Exit codes: 0 nothing is a problem, 1 something is.
    """
    found = []
    for finding in examine(out, quick=quick, on_render=_say_rendering):
        found.append(finding)
        if not as_json:
            _print(finding)
    states = [finding.state for finding in found]
    problems, notes = states.count("problem"), states.count("note")
    if as_json:
        findings = [finding.to_document() for finding in found]
        document = {"v": 1, "problems": problems, "notes": notes, "findings": findings}
        click.echo(json.dumps(document))
    else:
        click.echo(f"{count(problems, 'problem')}, {count(notes, 'note')}")
    return 1 if problems else 0


def _print(finding: Finding) -> None:
    click.echo(f"{finding.state:<8} {finding.name:<12} {printable(finding.found)}")
    if finding.advice:
        click.echo(f"{'':<21} -> {printable(finding.advice)}")


def _say_rendering() -> None:
    if sys.stderr.isatty():
        click.echo("rendering the bundled pair a few times, in two processes...", err=True)
