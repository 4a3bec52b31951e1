"""What every drawing by matplotlib needs: a folder for its settings, whatever the home is like."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from flowblend_cli.utils.cache_dirs import cache_path


@contextmanager
def settings_folder() -> Iterator[None]:
    """Let matplotlib keep its list of fonts where we may write."""
    if "MPLCONFIGDIR" in os.environ:
        yield
        return
    folder = cache_path("matplotlib")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                os.environ["MPLCONFIGDIR"] = str(folder)
        except OSError:
            os.environ["MPLCONFIGDIR"] = temporary
        try:
            yield
        finally:
            if os.environ.get("MPLCONFIGDIR") == temporary:
                del os.environ["MPLCONFIGDIR"]
