"""Write the list of the bundled models' components, which are whole, so that no check asks again.

Run after a change of a bundled model::

    python scripts/generate_whole_components.py

A component is in the list by a hash of its configs and of the names and shapes of its tensors.
"""

from __future__ import annotations

import json
from pathlib import Path

from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.completeness import Place, component_keys
from flowblend_cli.models.contents import DENOISER_FOLDERS

LIST = Path(__file__).parents[1] / "cli" / "flowblend_cli" / "data" / "whole_components.json"


def bundled_places() -> list[Place]:
    """Every bundled pipeline, and every further denoiser in its folder."""
    found = []
    for index in sorted((bundled_dir() / "models").glob("*/model_index.json")):
        found.append(Place(index.parent))
        found += [
            Place(index.parent, name, is_pipeline=False)
            for name in DENOISER_FOLDERS
            if (index.parent / name / "config.json").is_file()
        ]
    return found


def render_list() -> str:
    """The list as the text of its file."""
    keys = sorted({key for place in bundled_places() for key in component_keys(place)})
    return json.dumps(keys, indent=2) + "\n"


if __name__ == "__main__":
    LIST.write_text(render_list(), encoding="utf-8")
    print(f"wrote {LIST}")
