"""``flowblend status``: how far the renders into a folder are, also while they work."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from flowblend_cli.commands._options import output_folder
from flowblend_cli.console.status import STATUS_VERSION, RecipeStatus, read_statuses
from flowblend_cli.text import clock, count, printable


@click.command()
@output_folder
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(folder: Path, as_json: bool) -> int:
    """Tell what is done in DIR, what failed and why, what is left, and how long that takes.

    Works while another process renders, after it was killed, and when all is done. Nothing is
    locked, changed or loaded.

    \b
    Example:
      flowblend status out/harbour

    Exit codes: 0 nothing failed, 1 jobs failed or a run was killed, 2 nothing was rendered there.
    """

    def warn(text: str) -> None:
        click.echo(f"warning: {printable(text)}", err=True)

    found = read_statuses(folder, warn)
    if as_json:
        recipes = [one.to_document() for one in found]
        told = {"v": STATUS_VERSION, "output_dir": str(folder.absolute()), "recipes": recipes}
        click.echo(json.dumps(told))
    else:
        for one in found:
            for line in _lines(one):
                click.echo(printable(line))
    return 0 if all(one.is_well for one in found) else 1


def _lines(one: RecipeStatus) -> Iterator[str]:
    yield f"{one.recipe}: {_state(one)}"
    failed = len(one.failures)
    parts = [f"{one.done:,} of {count(one.jobs, 'job')} done", f"{failed:,} failed"]
    parts += [f"{one.dropped:,} dropped"] if one.dropped else []
    parts.append(f"{one.remaining:,} left")
    left = ""
    if one.remaining_s is not None and (one.remaining or one.present):
        left = f", about {clock(one.remaining_s)}"
    yield f"  {', '.join(parts)}{left}"
    for now in one.under_way if one.state in ("running", "elsewhere") else ():
        role = f" {now.get('role')}" if now.get("role") else ""
        steps = f"step {now.get('step')} of {now.get('num_inference_steps')}"
        where = [f"shard {now['shard']}", now["host"]] if now.get("shard") else []
        where += [now["worker"]] if now.get("worker") else []
        on = f"on {', '.join(where)}: " if where else ""
        yield f"  now: {on}{now.get('job')}, {steps}{role}"
    for shard in one.shards:
        if shard["state"] == "killed":
            yield f"  shard {shard['shard']} was killed on {shard['host']}, process {shard['pid']}"
    if one.waiting:
        yield f"  waiting: {one.waiting}"
    for job, told in one.failures.items():
        yield f"  failed: {job}: {told.get('error')}"
    if one.error and one.state != "running":
        yield f"  the last error: {one.error}"
    if one.command and one.state != "running" and (one.remaining or failed):
        yield f"  go on with: {one.command}"


def _state(one: RecipeStatus) -> str:
    took = "" if one.elapsed_s is None else clock(one.elapsed_s)
    if one.shards:
        number = int(one.shards[0]["shard"].partition("/")[2])
        states = Counter(shard["state"] for shard in one.shards)
        states["not begun"] = number - len(one.shards)
        told = ", ".join(f"{n:,} {state}" for state, n in states.items() if n)
        return f"{count(number, 'shard')}, {told}; begun {one.started}, at work for {took}"
    match one.state:
        case "running":
            return f"running for {took}, process {one.pid}, since {one.started}"
        case "ended":
            return f"not running; the last run ended {one.ended} after {took}"
        case "killed":
            return (
                f"not running; the last run, begun {one.started}, was killed after {took} or more "
                "and left no summary"
            )
        case "elsewhere":
            return (
                f"begun {one.started} on {one.host}, and not seen to end: whether it still runs "
                "can't be told from here"
            )
        case _:
            return "not running; nothing is known of its last run"
