"""A recipe that names a file of every kind: folders of models, LoRA files, a picture, wildcards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from flowblend_cli.models.bundled import bundled_dir

SPRITES = bundled_dir() / "models" / "sprites"
RECIPE = """
[recipe]
name = "far"
[metrics]
names = []
[model]
pipeline = "./pair"
small = "./small"
[model.adapters]
mono = { large = "./lora/large.safetensors", small = "./lora/small.safetensors" }
[defaults]
num_inference_steps = 2
num_frames = 5
height = 32
width = 32
max_sequence_length = 64
[[blend.stage]]
denoiser = "large"
until = 0.5
adapters = [{ name = "mono", weight = 0.8 }]
[[blend.stage]]
denoiser = "small"
adapters = [{ name = "mono" }]
[[scene]]
name = "clip"
image = "pictures/first.png"
prompt = "a red __shape__ moving right"
seeds = [1]
"""


def far_recipe(folder: Path) -> Path:
    """Write the recipe with its files; returns it.

    The pair is the bundled one, as the pipeline that takes its first frame from a picture.
    """
    (folder / "lora").mkdir(parents=True)
    (folder / "pictures").mkdir()
    (folder / "wildcards").mkdir()
    (folder / "wildcards/shape.txt").write_text("circle\n")
    for role in ("large", "small"):
        adapter = SPRITES / f"adapters/monochrome_{role}.safetensors"
        shutil.copy(adapter, folder / f"lora/{role}.safetensors")
    left_out = shutil.ignore_patterns("adapters", "transformer_small", "calibration.json")
    shutil.copytree(SPRITES, folder / "pair", ignore=left_out)
    shutil.copytree(SPRITES / "transformer_small", folder / "small")
    index = json.loads((folder / "pair/model_index.json").read_text())
    index |= {"_class_name": "WanImageToVideoPipeline", "expand_timesteps": True}
    index |= {name: [None, None] for name in ("image_encoder", "image_processor")}
    (folder / "pair/model_index.json").write_text(json.dumps(index))
    Image.new("RGB", (32, 32), (200, 30, 30)).save(folder / "pictures/first.png")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"
