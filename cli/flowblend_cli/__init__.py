"""The ``flowblend`` command: recipes in, finished clips out."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# What the user says of the network is kept for where a download is asked for.
os.environ.setdefault(
    "FLOWBLEND_USER_OFFLINE",
    os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "0",
)
# Before anything imports huggingface_hub, which reads them once: this process, and those that it
# starts, never download. Fetching is done by a process of its own.
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Before anything imports torch: without it, MKL chooses a matrix product's code, and so its last
# bits, by where the weights lie in memory. A value of the user's own stays.
if not os.environ.get("MKL_CBWR"):
    os.environ["MKL_CBWR"] = "AUTO"

from flowblend_cli.main import main

__all__ = ["__version__", "main"]
