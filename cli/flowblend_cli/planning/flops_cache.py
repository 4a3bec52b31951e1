"""FLOPs cache: counts of forwards from the disk, or from a worker process the first time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flowblend_cli.utils.cache_dirs import cache_path
from flowblend_cli.utils.json_files import NotJson, keep_json, read_json
from flowblend_cli.utils.worker_process import run_worker

# Raised when a change here or in the library's counting makes other numbers of the same request.
COUNTING_VERSION = 1
_PATIENCE_S = 600
_MOST_FLOPS = 10**24


@dataclass(frozen=True)
class Count:
    """FLOPs of one forward, 2 per multiply-add; or the reason why there are none.

    Args:
        linear_only: Linear layers and convolutions alone.
        full: The same with the products of attention.
        reason: Why it wasn't counted; None where it was.
    """

    linear_only: int = 0
    full: int = 0
    reason: str | None = None


def request(config: Mapping[str, Any], clip: Mapping[str, Any]) -> str:
    """Ask for one forward: a text that is equal for equal shapes.

    Args:
        config: The denoiser's ``config.json``.
        clip: Arguments of the library's ``Clip``.
    """
    return json.dumps({"config": config, "clip": clip}, sort_keys=True)


def count_all(
    requests: Iterable[str],
    on_counting: Callable[[int], None] | None = None,
    *,
    known_only: bool = False,
) -> dict[str, Count]:
    """Tell the FLOPs of forwards.

    Args:
        requests: What ``request`` made.
        on_counting: Called with the number of forwards that nobody counted before, if any: that
            takes seconds, once.
        known_only: Count nothing: what nobody counted before stays without.

    Returns:
        A count for each request, in no particular order.
    """
    wanted = dict.fromkeys(requests)
    counts = {asked: known for asked in wanted if (known := _read(_path_of(asked))) is not None}
    missing = sorted(wanted.keys() - counts.keys())
    if known_only:
        return counts | {asked: Count(reason="not counted yet") for asked in missing}
    if missing:
        if on_counting is not None:
            on_counting(len(missing))
        counts |= _count(missing)
    return counts


def _count(requests: list[str]) -> dict[str, Count]:
    answers, problem = run_worker(
        "flowblend_cli.planning.flops_worker",
        {"requests": [json.loads(asked) for asked in requests]},
        name="counting",
        patience_s=_PATIENCE_S,
    )
    counts = {}
    for asked, answer in zip(requests, answers, strict=False):
        counts[asked] = _count_of(answer)
        if answer.get("lasting", True):
            keep_json(_path_of(asked), answer)
    return {asked: counts.get(asked, Count(reason=problem)) for asked in requests}


def _path_of(asked: str) -> Path:
    try:
        diffusers = version("diffusers")
    except PackageNotFoundError:
        diffusers = ""
    told = f"{COUNTING_VERSION} {diffusers} {asked}"
    name = hashlib.sha256(told.encode()).hexdigest()
    return cache_path("flops", f"{name}.json")


def _read(path: Path) -> Count | None:
    """A count from the disk; None where there is none, or where it is damaged."""
    try:
        answer = read_json(path)
    except (OSError, NotJson):
        return None
    if not isinstance(answer, dict):
        return None
    if isinstance(answer.get("reason"), str):
        return _count_of(answer)
    numbers = [answer.get("linear_only"), answer.get("full")]
    is_sound = all(type(number) is int and 0 < number < _MOST_FLOPS for number in numbers)
    return _count_of(answer) if is_sound else None


def _count_of(answer: Mapping[str, Any]) -> Count:
    if "reason" in answer:
        return Count(reason=answer["reason"])
    return Count(answer["linear_only"], answer["full"])
