"""code_sha256: tells flowblend's own code from other code of the same version."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from flowblend_plugin import errors as plugin_errors

_SUFFIXES = (".py", ".json", ".toml")
# Models and recipes, which lie inside an installed package, and beside it in a checkout.
_LEFT_OUT = "recipes"


@cache
def code_sha256() -> str:
    """Hash both packages as they are installed: their code, and the tables beside it."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(plugin_errors.__file__).parent):
        for path in sorted(package.rglob("*")):
            name = path.relative_to(package)
            if path.suffix in _SUFFIXES and name.parts[0] != _LEFT_OUT:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{package.name}/{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()
