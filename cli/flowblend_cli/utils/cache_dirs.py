"""Where what can be worked out again is kept between runs."""

from __future__ import annotations

import os
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
