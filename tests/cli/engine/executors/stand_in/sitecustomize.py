"""In a render worker, a runtime that needs no torch, and fails as the environment says.

``FAULTS`` is JSON: for a job's id, or ``"load"``, what happens at its second step, one entry a try;
``TRIES`` is a folder in which each try leaves a line with its process and seed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def fail(name: str, seed: int) -> None:
    log = Path(os.environ["TRIES"], name)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {seed}\n")
    planned = json.loads(os.environ["FAULTS"]).get(name, [])
    tries = len(log.read_text("utf-8").splitlines())
    fault = planned[min(tries, len(planned)) - 1] if planned else ""
    if fault.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, fault))
    if fault == "hang":
        time.sleep(600)
    if fault == "device":
        from flowblend_cli.errors import DeviceFailedError

        raise DeviceFailedError("cuda:0 failed while a test ran")
    if fault == "crash":
        os.write(2, b"\x1b[31mValueError: a library gave up\n")
        os._exit(3)
    if fault == "error":
        raise KeyError("a prompt that nobody can read")


class Runtime:
    def __init__(self, models: Any, *, encoders_later: bool) -> None:
        self.models, self.note, self.elapsed_s, self.late_s = models, None, 0.0, 0.0
        self.device = SimpleNamespace(type="cpu")
        self.surroundings, self.vae, self.stronger_offload = {"torch": "none"}, None, ""
        sys.stdout.write("what a library prints when it loads\n")
        fail("load", 0)

    def sample(self, job: Any, seed: int, on_step: Any, checkpoints: Any = None) -> Any:
        import numpy as np

        for step in range(job.num_inference_steps):
            os.write(1, b"{not json}\n")
            if step == 1:
                fail(job.id, seed)
            on_step(step, "large")
        frames = np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), np.uint8)
        return SimpleNamespace(
            frames=frames, denoisers="L" * job.num_inference_steps, caches=(), peak_vram_bytes=None
        )


def put(module: str, **names: Any) -> None:
    stand_in = ModuleType(f"flowblend_cli.{module}")
    vars(stand_in).update(names)
    sys.modules[stand_in.__name__] = stand_in


if "flowblend_cli.engine.executors.worker" in sys.orig_argv:  # all that meets torch there
    put(
        "engine.runtime.pipeline",
        PipelineRuntime=Runtime,
        versions=lambda device: {"flowblend": "test"},
    )
    put(
        "engine.runtime.placement",
        OFFLOADS=("none",),
        free_memory=lambda: None,
        is_out_of_memory=lambda error: False,
        stronger_than=lambda offload: "",
    )
    put("engine.runtime.finite_checks", SamplingError=ValueError)
    put("engine.runtime.prompt_cache", keep_embeddings=lambda *given: None)
