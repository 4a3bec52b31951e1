"""The ``flowblend`` command: recipes in, finished clips out."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# Whether the user wants no network at all, not even where a download is asked for.
offline_is_asked = any(
    os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
)
# Before anything imports huggingface_hub, which reads them once: this process, and those that it
# starts, never download. Fetching is done by a process of its own.
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from flowblend_cli.main import main

__all__ = ["__version__", "main"]
