"""Bundled files: the folder of the recipes, presets and models that come with flowblend."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

PRESETS = "presets"


@cache
def bundled_dir() -> Path:
    """The bundled folder: inside the installed package, or the checkout's ``recipes/``."""
    installed = Path(str(files("flowblend_cli"))) / "recipes"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def bundled_recipes() -> dict[str, Path]:
    """The bundled recipes by their bare name, sorted; the table of presets isn't one."""
    found = sorted(bundled_dir().glob("*.toml"))
    return {path.stem: path for path in found if path.stem != PRESETS}


def is_bundled(path: Path) -> bool:
    """Whether a file lies in the bundled folder, which may be read-only."""
    return path.resolve().is_relative_to(bundled_dir().resolve())
