"""The ``flowblend`` command: recipes in, finished clips out."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# Before anything imports huggingface_hub, which reads them once: rendering never downloads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from flowblend_cli.main import main

__all__ = ["__version__", "main"]
