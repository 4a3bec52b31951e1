"""Cache folders of the user: the command's own, and matplotlib's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path


def cache_path(*parts: str) -> Path:
    """A path in the user's cache folder.

    Who has no home, as under ``env -i`` in some containers, has no cache: the path is then one at
    which nothing can be made, instead of a folder called ``~`` wherever the command runs.

    Args:
        parts: Names of folders, and of the file.
    """
    try:
        folder = user_cache_path("flowblend")
    except RuntimeError:  # from platformdirs 4.4 on; former ones answer with a folder called ~
        folder = Path(os.devnull)
    return (folder if folder.is_absolute() else Path(os.devnull)).joinpath(*parts)


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
