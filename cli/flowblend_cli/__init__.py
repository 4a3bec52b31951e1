"""The ``flowblend`` command: recipes in, finished clips out."""

from __future__ import annotations

__version__ = "0.1.0"

from flowblend_cli.main import main

__all__ = ["__version__", "main"]
