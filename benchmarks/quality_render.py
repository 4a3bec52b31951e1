"""Renders the rows of the quality table, counts what they compute, and times them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from quality_measures import Reference, held_out, measure, real_features, trained_reader
from quality_rows import Row
from quality_store import Line
from shared import load, machine
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowblend_plugin import DenoiserSwitch
from flowblend_plugin.schedulers.factory import make_scheduler

BATCH = 24


class Renderer:
    """The pair on one device.

    Args:
        device: ``"cpu"`` or ``"cuda"``; noise is drawn on the CPU for both.
    """

    def __init__(self, device: str = "cpu") -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.device = device
        self.pipe, self.small = load()
        self.pipe.to(device)
        self.small.to(device)
        self.specs = held_out()
        self._own = self.pipe.scheduler
        self._known: dict[str, Any] = {}

    def _embeddings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of prompts, each encoded once, by itself."""
        for prompt in prompts:
            if prompt not in self._known:
                self._known[prompt] = self.pipe.encode_prompt(prompt, max_sequence_length=64)
        each = zip(*(self._known[prompt] for prompt in prompts), strict=True)
        names = ("prompt_embeds", "negative_prompt_embeds")
        return {name: torch.cat(found) for name, found in zip(names, each, strict=True)}

    @torch.no_grad()
    def call(self, row: Row, start: int, stop: int, output: str = "pt") -> Tensor:
        """One call of the pipeline: held-out combinations from ``start`` to before ``stop``."""
        seeds = range(start, stop)
        self.pipe.scheduler = make_scheduler(self._own, row.solver)
        history: Any = row.solver_history
        try:
            with DenoiserSwitch(
                self.pipe, self.small, row.stages, solver_history=history, adaptive=row.adaptive
            ):
                frames: Tensor = self.pipe(
                    **self._embeddings([self.specs[seed].prompt for seed in seeds]),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    height=64,
                    width=64,
                    num_frames=17,
                    num_inference_steps=row.steps,
                    guidance_scale=row.guidance,
                    output_type=output,
                ).frames
        finally:
            self.pipe.scheduler = self._own
        return frames

    def clips(self, row: Row, start: int, stop: int) -> Tensor:
        """Clips (stop - start, 3, 17, 64, 64) in [-1, 1], on the CPU."""
        size = BATCH if row.together else 1
        parts = [
            self.call(row, first, min(first + size, stop)).cpu()
            for first in range(start, stop, size)
        ]
        return torch.cat(parts).transpose(1, 2) * 2 - 1

    def flops(self, row: Row) -> int:
        """Operations of the denoising loop of the first clip, 2 per multiply-add.

        Attention's products are counted too, and only what really runs: neither a skipped forward
        nor a skipped pass of guidance. Counted with attention as plain products, since torch
        doesn't count every kernel of it.
        """
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            self.call(row, 0, 1, output="latent")
        return int(counter.get_total_flops())

    def seconds(self, row: Row, index: int) -> float:
        """Seconds of one whole call, decoded, without the text encoder."""
        self._embeddings([self.specs[index].prompt])
        began = time.perf_counter()
        self.call(row, index, index + 1).cpu()
        return time.perf_counter() - began


class Worker:
    """Measures rows in one process.

    Args:
        device: See ``Renderer``.
        path: The file of the reference, written by ``prepare`` before any row is measured.
    """

    def __init__(self, device: str, path: Path) -> None:
        self.renderer = Renderer(device)
        self._path = path

    @cached_property
    def reader(self) -> Any:
        """The reader that judges clips."""
        return trained_reader()

    @cached_property
    def reference(self) -> Reference:
        """What rows are compared with."""
        found = torch.load(self._path, weights_only=True, mmap=True)
        return Reference(found["clips"], found["real"])

    def line(self, row: Row, prompts: int, *, is_reference: bool) -> Line:
        """Measure one row: its line of the results file."""
        began = time.perf_counter()
        clips = (
            self.reference.clips[:prompts].clone()
            if is_reference
            else self.renderer.clips(row, 0, prompts)
        )
        rendered = time.perf_counter() - began
        return {
            "kind": "quality",
            "row": row.name,
            "key": row.key,
            "device": self.renderer.device,
            "prompts": prompts,
            "document": row.document(),
            "flops": self.renderer.flops(row),
            **measure(clips, self.reference, self.reader),
            "rendered_s": round(rendered, 3),
            "measured": machine(),
        }


_worker: Worker | None = None


def start(device: str, path: Path, threads: int | None = None) -> Worker:
    """Make this process's worker, with its share of the machine's threads."""
    global _worker
    if threads is not None:
        torch.set_num_threads(threads)
    _worker = Worker(device, path)
    return _worker


def line(row: Row, prompts: int, is_reference: bool) -> Line:
    """Measure one row in a process that ``start`` made ready."""
    assert _worker is not None
    return _worker.line(row, prompts, is_reference=is_reference)


def part(row: Row, first: int, last: int) -> Any:
    """Some clips of one row, as an array, which travels between processes without shared memory."""
    assert _worker is not None
    return _worker.renderer.clips(row, first, last).numpy()


class Pool:
    """Processes that measure rows; one is this process itself.

    Args:
        device: See ``Renderer``.
        path: See ``Worker``.
        processes: How many.
    """

    def __init__(self, device: str, path: Path, processes: int) -> None:
        self.device, self.path = device, path
        self._pool: ProcessPoolExecutor | None = None
        if processes == 1:
            start(device, path)
            return
        threads = max(1, (os.cpu_count() or 1) // processes)
        self._pool = ProcessPoolExecutor(
            processes, get_context("spawn"), initializer=start, initargs=(device, path, threads)
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def prepare(self, reference: Row, prompts: int) -> None:
        """Render the all-large clips that rows are compared with, unless the file has them."""
        if self._prepared(reference, prompts):
            return
        starts = range(0, prompts, BATCH)
        ends = [min(first + BATCH, prompts) for first in starts]
        apply = map if self._pool is None else self._pool.map
        clips = [torch.from_numpy(a) for a in apply(part, [reference] * len(ends), starts, ends)]
        found = {"key": reference.key, "device": self.device, "clips": torch.cat(clips),
                 "real": real_features(trained_reader())}  # fmt: skip
        unfinished = self.path.with_suffix(".tmp")
        torch.save(found, unfinished)
        unfinished.replace(self.path)

    def _prepared(self, reference: Row, prompts: int) -> bool:
        if not self.path.exists():
            return False
        found = torch.load(self.path, weights_only=True, mmap=True)
        same = found["key"] == reference.key and found["device"] == self.device
        return same and len(found["clips"]) >= prompts

    def lines(self, tasks: Sequence[tuple[Row, int, bool]]) -> Any:
        """Yield each row with its line, or with the exception that it ended in, as they come."""
        if self._pool is None:
            for task in tasks:
                yield task[0], line(*task)
            return
        waiting = {self._pool.submit(line, *task): task[0] for task in tasks}
        for done in as_completed(waiting):
            error = done.exception()
            yield waiting[done], done.result() if error is None else error
