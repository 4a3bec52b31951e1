"""Write the versions that ``flowblend doctor`` compares with, from pyproject and constraints.

Run after a change of either::

    python scripts/generate_tested_versions.py
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "cli" / "flowblend_cli" / "data" / "tested_versions.json"
PYTHON = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def render_table() -> str:
    """The table as JSON: what is needed and tested of Python, and of every dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    tested = {name.lower(): version for name, version in pinned.items()}
    needed = dict(re.sub(r"\[.*\]", "", line).split(">=") for line in project["dependencies"])
    pythons = [found[1] for line in project["classifiers"] if (found := PYTHON.fullmatch(line))]
    table = {
        "python": {"at_least": project["requires-python"].lstrip(">="), "tested": pythons},
        "packages": {
            name: {"at_least": least, "tested": [tested[name.lower()]]}
            for name, least in sorted(needed.items())
        },
    }
    return json.dumps(table, indent=1) + "\n"


def main() -> None:
    """Write the table into the package's data."""
    TABLE.write_text(render_table(), "utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
