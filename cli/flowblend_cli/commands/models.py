"""``flowblend models``: lists the models on this machine, fetches others, verifies files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowblend_cli.errors import ModelMissingError, OutputError, UsageError
from flowblend_cli.models.contents import components, files_of, missing_of_pipeline, reader_of
from flowblend_cli.models.identity import local_places
from flowblend_cli.models.registry import find_pair, known_pairs, resolve_model
from flowblend_cli.text import count, printable

if TYPE_CHECKING:
    from flowblend_cli.jobs import Batch
    from flowblend_cli.models.hub.requirements import CacheEntry
    from flowblend_cli.models.hub.verify import VerifyResult

_SHORT = 12


@click.group()
def models() -> None:
    """List the models that are here, fetch them, check their files."""


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ls(as_json: bool) -> None:
    """List the known pairs, and the other pipelines in the local Hub cache; offline.

    A half model lacks files that it can't be loaded without: `flowblend models fetch` goes on.
    """
    from flowblend_cli.models.hub_cache import hub_cache

    rows = list(_pairs())
    others = list(_others({(row["repo"], row["commit"]) for row in rows}))
    if as_json:
        cache = str(hub_cache())
        click.echo(json.dumps({"v": 1, "cache": cache, "models": rows, "others": others}))
        return
    name = ""
    for row in rows:
        if row["name"] != name:
            name = row["name"]
            click.echo(f"{name}  {row['description']}")
        click.echo(f"  {row['role']:<8}  {_format_row(row)}")
    if others:
        click.echo(f"also in {printable(hub_cache())}")
    for row in others:
        click.echo(f"  {_format_row(row)}")


@models.command()
@click.argument("names", nargs=-1, required=True, metavar="MODEL|RECIPE...")
@click.option("--update", is_flag=True,
              help="Take the newest commits instead of the lock's, and pin those.")  # fmt: skip
@click.option("--executor", type=click.Choice(["ray"]),
              help="Fetch on every machine of a cluster too, at the same commits.")  # fmt: skip
@click.option("--address", default="", metavar="HOST:PORT",
              help="Cluster of --executor ray; without it, one is started here.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def fetch(
    names: tuple[str, ...], update: bool, executor: str | None, address: str, quiet: bool
) -> None:
    """Download what each MODEL or RECIPE needs into the local Hub cache; needs the network.

    MODEL is a known pair or owner/name on the Hub; RECIPE is a .toml file or the name of a bundled
    recipe. Only configs, tokenizers and safetensors weights are fetched, never code. Beside a
    RECIPE, flowblend.lock pins the commits, so that it renders with the same ones from then on.
    What was interrupted goes on where it was.

    \b
    Examples:
      flowblend models fetch wan2.1-t2v
      flowblend models fetch my.toml
      flowblend models fetch my.toml --executor ray --address auto
    """
    from flowblend_cli.models.hub import fetch

    def tell(text: str) -> None:
        if not quiet:
            click.echo(printable(text), err=True)

    if address and executor is None:
        raise UsageError("--address is for --executor ray: write both, or neither")
    everything: list[CacheEntry] = []
    # Names that mean nothing are refused before any download.
    for name, meant in [(name, _look_up(name)) for name in names]:
        if isinstance(meant, list):
            entries = fetch.fetch([one.requirement for one in meant], tell)
        else:
            entries = fetch.fetch_for_batch(meant, tell, update=update)
        if not quiet:
            for one in entries:
                click.echo(f"{one.requirement.repo} {one.commit} {printable(one.folder)}")
            if not entries:
                click.echo(f"{printable(name)} needs nothing of the Hub", err=True)
        everything += entries
    if executor is not None and everything:
        _fetch_on_nodes(everything, address, quiet)


@models.command()
@click.argument("names", nargs=-1, required=True, metavar="MODEL|RECIPE...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Check the files of each MODEL or RECIPE, every byte of them; offline.

    Files of the Hub's cache have to have the hash that they were published with. Safetensors have
    to be whole, shards to be all there, configs to be JSON. Exits 3 where anything is wrong.
    """
    results = list(dict.fromkeys(one for name in names for one in _results(name)))
    if as_json:
        click.echo(json.dumps({"v": 1, "models": [_document(result) for result in results]}))
    for result in results:
        if not as_json and not result.problems:
            click.echo(_format_ok(result))
        for one in result.problems:
            what = f"{result.name} {one.file}".strip()
            click.echo(printable(f"{what} {one.problem}: {one.remedy}"), err=True)
    return 3 if any(result.problems for result in results) else 0


def _fetch_on_nodes(entries: list[CacheEntry], address: str, quiet: bool) -> None:
    """Fetch on the machines of a cluster what is on this one, and tell a line of each.

    Raises:
        OutputError: A disk has no room.
        ModelMissingError: Something else went wrong; has all problems.
    """
    from flowblend_cli.engine.executors.ray_fetch import fetch_on_nodes

    wanted = {replace(one.requirement, revision=one.commit): None for one in entries}
    held = ", ".join(
        dict.fromkeys(f"{one.requirement.repo} {(one.commit or '')[:_SHORT]}" for one in entries)
    )
    problems: list[tuple[str, int]] = []
    if not quiet:
        click.echo("fetching on every machine of the cluster", err=True)
    for node in fetch_on_nodes([*wanted], address):
        if node.problem:
            lines = node.problem.split("\n")
            problems += [(f"{node.host}: {line}", node.exit_code) for line in lines]
        elif not quiet:
            click.echo(printable(f"{node.host}: {held} in {node.cache}"))
    if problems:
        is_disk = any(code == OutputError.exit_code for _, code in problems)
        raise (OutputError if is_disk else ModelMissingError)(
            "\n".join(text for text, _ in problems)
        )


def _look_up(name: str) -> list[CacheEntry] | Batch:
    """A model's parts and how much of them is here, or a recipe's jobs."""
    from flowblend_cli.errors import ModelNameError
    from flowblend_cli.models.bundled import bundled_recipes
    from flowblend_cli.models.hub.requirements import find_in_cache, name_requirements

    is_file = name.endswith(".toml") or Path(name).is_file()
    if name not in known_pairs() and (name in bundled_recipes() or is_file):
        from flowblend_cli.recipe.loader import load_batch

        return load_batch(name, settle=False)
    try:
        return [find_in_cache(one) for one in name_requirements(name, Path.cwd())]
    except ModelNameError as error:
        raise ModelNameError(
            f"{name!r} is neither a model nor a recipe: expected a known pair (`flowblend models "
            "ls` lists them), owner/name on the Hub, a .toml file or a bundled recipe"
        ) from error


def _results(name: str) -> Iterator[VerifyResult]:
    from flowblend_cli.jobs import ModelSpec
    from flowblend_cli.models.hub.requirements import batch_requirements, find_in_cache
    from flowblend_cli.models.hub.verify import verify_entry, verify_folder

    meant, folder = _look_up(name), Path.cwd()
    if isinstance(meant, list):
        yield from map(verify_entry, meant)
        pair = find_pair(name)
        specs = [] if meant else [ModelSpec(name, pair.implied_small if pair else None)]
    else:
        yield from (verify_entry(find_in_cache(one)) for one in batch_requirements(meant))
        specs = list(dict.fromkeys(job.model for job in (*meant.jobs, *meant.reserve)))
        folder = meant.source.absolute().parent
    found = (local for spec in specs for local in local_places(spec, folder))
    for model, place in dict.fromkeys(found):
        yield verify_folder(model, place)


def _pairs() -> Iterator[dict[str, Any]]:
    """One row for each model of each known pair."""
    from flowblend_cli.models.hub.requirements import find_in_cache, name_requirements

    for pair in known_pairs().values():
        named = {"name": pair.name, "description": " ".join(pair.description.split())}
        path = resolve_model(pair.name, Path.cwd()).path
        if path is not None:
            yield {**named, "role": "bundled", **_row(path, pair.pipeline_class)}
        for requirement in name_requirements(pair.name, Path.cwd()):
            held = find_in_cache(requirement)
            role = "pipeline" if requirement.kind == "pipeline" else "small"
            yield {
                **named,
                "role": role,
                "repo": requirement.repo,
                "commit": held.commit,
                "folder": str(held.folder) if held.folder else None,
                "pipeline_class": pair.pipeline_class,
                "state": held.state,
                "missing": list(held.missing),
                "bytes": held.size_bytes,
            }


def _others(known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """One row for each further commit of a pipeline in the Hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from flowblend_cli.models.hub_cache import hub_cache

    try:
        found = scan_cache_dir(hub_cache())
    except (CacheNotFound, ValueError, OSError):
        return
    for repo in sorted(found.repos, key=lambda one: str(one.repo_id)):
        for revision in sorted(repo.revisions, key=lambda one: str(one.commit_hash)):
            index = reader_of(revision.snapshot_path)("model_index.json")
            is_known = (repo.repo_id, revision.commit_hash) in known
            if repo.repo_type == "model" and components(index) and not is_known:
                row = _row(revision.snapshot_path, str(index.get("_class_name")))
                commit = {"repo": repo.repo_id, "commit": revision.commit_hash}
                newest = "main" in revision.refs
                pair = find_pair(repo.repo_id)
                yield {**row, **commit, "is_main": newest, "pair": pair.name if pair else None}


def _row(folder: Path, kind: str) -> dict[str, Any]:
    names = files_of(folder)
    missing = missing_of_pipeline(names, reader_of(folder))
    return {
        "repo": None,
        "commit": None,
        "folder": str(folder),
        "pipeline_class": kind,
        "state": "half" if missing else "complete",
        "missing": missing,
        "bytes": sum((folder / name).stat().st_size for name in names),
    }


def _format_row(row: dict[str, Any]) -> str:
    from flowblend_cli.models.contents import name_files
    from flowblend_cli.models.hub.fetch import format_bytes

    place = f"{row['repo']} {(row['commit'] or '')[:_SHORT]}" if row["repo"] else row["folder"]
    state = row["state"]
    if state == "half":
        state = f"half: {name_files(row['missing'])} missing"
    amount = f", {format_bytes(row['bytes'])}" if row["bytes"] else ""
    return printable(f"{place}  {state}{amount}")


def _format_ok(result: VerifyResult) -> str:
    from flowblend_cli.models.hub.fetch import format_bytes

    unhashed = f", {result.unhashed} without a recorded hash" if result.unhashed else ""
    amount = f"{count(result.files, 'file')}, {format_bytes(result.size_bytes)}"
    return printable(f"OK {result.name}: {amount}{unhashed}")


def _document(result: VerifyResult) -> dict[str, Any]:
    place = str(result.place) if result.place else None
    document = asdict(result)
    problems = document.pop("problems")
    return {**document, "place": place, "faults": problems, "ok": not result.problems}
