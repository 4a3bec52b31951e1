"""How much memory a blended run takes, against the weights alone.

``python benchmarks/memory.py [--gigabytes 1.0] [--stages LSL] [--steps 5] [--folder DIR]
[--quick]``

A random Wan pair of the asked size, in float32, is written into a temporary folder, around the
text encoder and the VAE of the bundled pair; the large denoiser has four fifths of the weights.
For each way of loading the small one, a process of its own imports everything, loads the pipeline,
renders one small clip (text encoder, denoisers, VAE) and reports its peak resident memory (what
the kernel counted) above what it held after its imports. ``ratio`` is that over the bytes of all
weights; 1.00 would be the weights and nothing else.

The clip is small on purpose: activations belong to its size, not to the pair's.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from shared import parse

from flowblend_plugin import DenoiserSwitch

SPRITES = Path(__file__).parents[1] / "recipes" / "models" / "sprites"
BOUNDARIES = {"LSL": (0.4, 0.8), "SLS": (0.4, 0.8)}
WAYS = ("folder", "module")
BAR = 1.15


def write_pair(folder: Path, gigabytes: float) -> None:
    """A pipeline's folder with a random pair of ``gigabytes`` x 1e9 bytes of float32."""
    config = json.loads((SPRITES / "transformer" / "config.json").read_text())
    heads = 16 if gigabytes >= 0.5 else 4
    for name, share, part in (("transformer", 0.8, heads), ("transformer_small", 0.2, heads // 2)):
        width = 64 * part
        block = 16 * width**2 * 4  # bytes of one block: two attentions, and four widths of ffn
        made = WanTransformer3DModel.from_config(
            {
                **config,
                "num_attention_heads": part,
                "attention_head_dim": 64,
                "ffn_dim": 4 * width,
                "num_layers": max(1, -(-int(share * gigabytes * 1e9) // block)),
            }
        )
        made.save_pretrained(folder / name)
    for name in ("tokenizer", "text_encoder", "vae", "scheduler", "model_index.json"):
        (folder / name).symlink_to(SPRITES / name)


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident_bytes() -> int:
    """What this process has in memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmRSS in /proc/self/status")


def measure(folder: Path, way: str, stages: str, steps: int) -> dict[str, Any]:
    """Render once, in this process, and say what it took."""
    __import__("diffusers.models.autoencoders.autoencoder_kl_wan")
    __import__("transformers.models.umt5.modeling_umt5")
    baseline, began = resident_bytes(), time.monotonic()
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    small: Any = folder
    if way == "module":
        small = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer_small")
    with DenoiserSwitch(pipe, small, stages, BOUNDARIES.get(stages)) as switch:
        pipe(
            "a red circle",
            height=32,
            width=32,
            num_frames=5,
            num_inference_steps=steps,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(1),
        )
        (denoiser,) = switch._slots["small"].values()
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "baseline": baseline,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "large": weight_bytes(pipe.transformer),
        "small": weight_bytes(denoiser),
        "rest": weight_bytes(pipe.text_encoder) + weight_bytes(pipe.vae),
        "elapsed_s": time.monotonic() - began,
        "denoisers_run": switch.denoisers_run,
    }


def report(way: str, found: dict[str, Any]) -> float:
    """Print one line, and return the ratio."""
    above = found["peak"] - found["baseline"]
    weights = found["large"] + found["small"] + found["rest"]
    mega = {key: found[key] / 1e6 for key in ("large", "small", "rest", "baseline")}
    print(
        f"{way:10} peak {above / 1e6:.0f} MB above the imports' {mega['baseline']:.0f} MB; weights "
        f"{mega['large']:.0f} + {mega['small']:.0f} + {mega['rest']:.0f} MB; "
        f"ratio {above / weights:.3f} (bar {BAR}); {found['elapsed_s']:.1f} s"
    )
    return float(above / weights)


def main() -> int:
    """Measure every way of loading; 1 if a pair of 1 GB or more is above the bar."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of both denoisers together")
    parser.add_argument("--stages", default="LSL", choices=("LSL", "SLS", "SSS", "LLL"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    options = parse(parser, gigabytes=0.2)
    if options.child:
        folder, way = options.child
        print(json.dumps(measure(Path(folder), way, options.stages, options.steps)))
        return 0
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"{platform.system()}, torch {torch.__version__}, {options.stages}, {options.steps} steps"
    )
    ratios = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        write_pair(Path(temporary), options.gigabytes)
        for way in WAYS:
            arguments = ["--stages", options.stages, "--steps", str(options.steps)]
            done = subprocess.run(
                [sys.executable, __file__, *arguments, "--child", temporary, way],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            ratios.append(report(way, json.loads(done.stdout.splitlines()[-1])))
    return int(options.gigabytes >= 1 and max(ratios) > BAR)


if __name__ == "__main__":
    sys.exit(main())
