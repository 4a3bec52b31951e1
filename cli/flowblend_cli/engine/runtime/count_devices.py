"""Tells how many devices of each kind torch sees, as a process of its own.

``python -m flowblend_cli.engine.runtime.count_devices`` sends one document, ``devices``.
"""

from __future__ import annotations

import torch

from flowblend_cli.utils.worker_process import Channel

_KINDS = ("cuda", "xpu", "mps")


def main() -> None:
    """Count them."""
    channel = Channel()
    counted = {kind: getattr(torch, kind).device_count() for kind in _KINDS if hasattr(torch, kind)}
    there = {kind: number for kind, number in counted.items() if number}
    channel.send({"devices": there | {"cpu": 1}})


if __name__ == "__main__":
    main()
