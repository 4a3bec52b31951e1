"""docs/families.md says what the tests' list of families says, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from families.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "generate_families_table.py"
    spec = importlib.util.spec_from_file_location("generate_families_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    page = (ROOT / "docs" / "families.md").read_text("utf-8")
    assert page == script.render(), "run python scripts/generate_families_table.py"


def test_the_page_has_a_line_for_every_family(script: ModuleType) -> None:
    page = script.render()
    for family in FAMILIES:
        assert page.count(script.row(family)) == 1


def test_families_have_names_of_their_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
