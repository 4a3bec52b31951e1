from __future__ import annotations

import importlib.util
from pathlib import Path

from flowblend_cli.models.pipeline_arguments import argument_table

ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_table_is_what_the_script_makes_of_the_installed_diffusers() -> None:
    path = ROOT / "scripts/generate_pipeline_arguments.py"
    spec = importlib.util.spec_from_file_location("generate_pipeline_arguments", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    assert script.TABLE.read_text("utf-8") == script.render_table(), (
        "run python scripts/generate_pipeline_arguments.py"
    )


def test_no_argument_is_a_prompt_a_tensor_or_the_renderers_own() -> None:
    table = argument_table()

    owned = {"prompt", "negative_prompt", "generator", "latents", "output_type", "return_dict"}
    assert not owned & set(table.arguments)
    assert not [name for name in table.arguments if name.endswith("_embeds") or "callback" in name]


def test_the_arguments_of_a_class_that_the_table_does_not_hold_are_not_limited() -> None:
    table = argument_table()

    assert table.takes("WanPipeline", "num_frames")
    assert not table.takes("WanPipeline", "strength")
    assert table.takes("MyOwnPipeline", "strength")
