"""What a run whose prompts are encoded already saves: the text encoder is never read.

``python benchmarks/text_encoder.py [--gigabytes 1.0] [--folder DIR] [--quick]``

The bundled pair gets a random text encoder of the asked size in float32; its file is bfloat16, as
released ones are. Three processes render one small clip of the same prompt into one folder, with
other seeds: the first one encodes the prompt, the second one finds it, and the third one finds it
but reads the text encoder all the same. Each reports its peak resident memory above what it held
after its imports, and its seconds from then to the end, loading included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from memory import SPRITES, resident_bytes
from shared import parse
from transformers import UMT5Config, UMT5EncoderModel

from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.executors.base import RenderRequest, RenderResult
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.jobs import ModelSpec
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.utils.process import forget_peak_rss, peak_rss_bytes

WAYS = ("encoded", "found", "found, text encoder read at once")


def write_model(folder: Path, gigabytes: float) -> None:
    """The bundled pair's folder, whose text encoder is a random one of so many 1e9 bytes."""
    shutil.copytree(SPRITES, folder, ignore=lambda *_: ["text_encoder"])
    config = UMT5Config.from_pretrained(SPRITES / "text_encoder")
    config.d_ff = 65536
    config.num_layers = max(1, round(gigabytes * 1e9 / (3 * config.d_model * config.d_ff * 4)))
    UMT5EncoderModel(config).bfloat16().save_pretrained(folder / "text_encoder")


def measure(folder: Path, seed: int, way: str) -> dict[str, Any]:
    """Render once, in this process, and say what it took."""
    __import__("diffusers.models.autoencoders.autoencoder_kl_wan")
    __import__("transformers.models.umt5.modeling_umt5")
    __import__("flowblend_cli.engine.runtime.pipeline")
    model = ModelSpec(str(folder / "model"), str(folder / "model"), dtype="float32", device="cpu")
    few = {"num_inference_steps": 5, "num_frames": 5, "height": 32, "width": 32}
    job = sprites_job()
    job = replace(job, model=model, arguments=tuple((dict(job.arguments) | few).items()))
    models = resolve_models(model, folder)
    forget_peak_rss()
    baseline, began = resident_bytes(), time.monotonic()
    runner = JobRunner(lambda _: None, None, EmbeddingFiles(folder))
    if way == WAYS[2]:
        runner._load(models)._encoders.arrive()
    answer = runner.run(RenderRequest(1, job, seed, models, planned="LLSSL"), lambda: None)
    assert isinstance(answer, RenderResult), answer
    return {
        "above": peak_rss_bytes() - baseline,
        "elapsed_s": time.monotonic() - began,
        "is_read": runner._load(models).late_s > 0,
    }


def main() -> None:
    """Print one line a process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the text encoder")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "SEED"), help=argparse.SUPPRESS)
    options = parse(parser, gigabytes=0.2)
    if options.child:
        folder, seed = Path(options.child[0]), int(options.child[1])
        print(json.dumps(measure(folder, seed, WAYS[seed - 1])))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        write_model(Path(temporary) / "model", options.gigabytes)
        print(f"text encoder of {options.gigabytes:g} GB, torch {torch.__version__}")
        for seed, way in enumerate(WAYS, start=1):
            done = subprocess.run(
                [sys.executable, __file__, "--child", temporary, str(seed)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{way:34} peak {found['above'] / 1e6:6.0f} MB above the imports; "
                f"{found['elapsed_s']:5.1f} s; text encoder "
                f"{'read' if found['is_read'] else 'not read'}"
            )


if __name__ == "__main__":
    main()
