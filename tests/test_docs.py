"""The documentation keeps up: every command, option, key, event and error is in it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from flowblend_cli import main
from flowblend_cli.events import JsonEvent
from flowblend_cli.recipe.schema.json_schema import json_schema
from flowblend_plugin import metrics
from flowblend_plugin.metrics.score import HALF

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
EVERYTHING = "\n".join([README, *DOCS.values()])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(EVERYTHING) if name == language]


def commands(
    group: click.Group = main, prefix: str = "flowblend"
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


COMMANDS = dict(commands())


def schema_keys(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from node.get("properties", {})
        for value in node.values():
            yield from schema_keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from schema_keys(value)


def error_classes() -> set[str]:
    """Every class of ours whose name ends in Error."""
    return {
        node.name
        for folder in (ROOT / "flowblend_plugin", ROOT / "cli/flowblend_cli")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_its_options(name: str) -> None:
    options = {
        option
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    shown = DOCS["cli.md"]
    section = shown[shown.index(name) :]

    assert not sorted(option for option in options if f"`{option}" not in shown)
    assert section


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_explains_itself(name: str) -> None:
    command = COMMANDS[name]

    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


def test_every_recipe_key_is_documented() -> None:
    missing = sorted(
        key
        for key in set(schema_keys(json_schema()))
        if not re.search(rf"[`\[\".]{re.escape(key)}[`\]\".]", DOCS["recipes.md"])
    )

    assert not missing


def test_every_event_and_its_keys_are_documented() -> None:
    for event in typing.get_args(JsonEvent):
        (row,) = [line for line in DOCS["cli.md"].splitlines() if f"| `{event.name}` |" in line]
        keys = [field.name for field in dataclasses.fields(event)]
        assert re.findall(r"`(\w+)`", row)[1:] == keys


def metric_row(metric: metrics.Metric) -> str:
    cells = (
        f"`{metric.name}`", metric.unit or "-", metric.better, metric.needs,
        "yes" if metric.is_default else "no", metric.definition, metric.source,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_is_documented_as_the_catalogue_has_it(name: str) -> None:
    assert metric_row(metrics.METRICS[name]) in DOCS["metrics.md"].splitlines()


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_values_that_a_score_is_made_with_are_documented(name: str) -> None:
    if name in HALF:
        weight = f"{metrics.DEFAULT_WEIGHTS[name]:g}" if name in metrics.DEFAULT_WEIGHTS else "-"
        assert f"| `{name}` | {HALF[name]:g} | {weight} |" in DOCS["metrics.md"]


@pytest.mark.parametrize("name", ["WEAK_MOTION", "JITTER", "MOTION_FLOOR"])
def test_every_threshold_is_documented(name: str) -> None:
    assert f"`{name}` = {getattr(metrics, name):g}" in DOCS["metrics.md"]


def test_every_error_is_documented() -> None:
    missing = {name for name in error_classes() if f"`{name}`" not in DOCS["errors.md"]}

    assert not missing


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_are_python_and_import_what_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowblend_"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("code", blocks("toml"))
def test_recipe_examples_pass_check(code: str, tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(code, "utf-8")

    result = CliRunner().invoke(main, ["check", str(path)])

    assert result.exit_code == 0, result.output


def test_the_commands_of_shell_examples_exist() -> None:
    shown = set(re.findall(r"^(?:flowblend) ([a-z]+)", "\n".join(blocks("bash")), re.MULTILINE))

    assert shown
    assert {f"flowblend {name}" for name in shown} <= set(COMMANDS)


@pytest.mark.parametrize("target", ["quickstart", "test", "quality", "wheel", "bench"])
def test_the_readme_and_the_makefile_agree_on_targets(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_links_inside_the_repository_lead_somewhere() -> None:
    pages = {ROOT / "README.md": README, **{ROOT / "docs" / n: t for n, t in DOCS.items()}}
    broken = [
        f"{page.name}: {link}"
        for page, text in pages.items()
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        if "://" not in link and not (page.parent / link).exists()
    ]

    assert not broken


def test_every_fault_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+)\. .*\|([^|]*)\|$", DOCS["robustness.md"], re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 35))
    for number, cell in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert named, f"fault {number} names no test"
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), name


def test_the_changelog_has_a_section_for_what_comes() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_architecture_page_fits_in_one_sitting_and_names_every_dependency() -> None:
    import tomllib

    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert text.count("\n") <= 120
    names = [line.split(">=")[0] for line in project["dependencies"]]
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_architecture_page_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    folders = (ROOT / "flowblend_plugin", ROOT / "cli/flowblend_cli")
    rooms = {path.stem for folder in folders for path in folder.iterdir() if path.name[0] != "_"}

    assert not sorted(room for room in rooms if not re.search(rf"\b{room}\b", text))


def test_readme_links_every_page() -> None:
    assert not sorted(name for name in DOCS if f"docs/{name}" not in README)
