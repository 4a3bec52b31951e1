"""Modules of ours in a process of their own, so that this one never loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flowblend_plugin import errors as plugin_errors


def run_worker(module: str, told: str, *, doing: str, patience_s: int) -> tuple[str, str]:
    """Run a module as a process.

    Args:
        module: Its dotted name.
        told: What it reads on stdin.
        doing: What it does, for messages: ``"counting"``.
        patience_s: Seconds after which it is ended.

    Returns:
        What it wrote on stdout, and what went wrong if that isn't everything.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=told.encode(),
            capture_output=True,
            timeout=patience_s,
            env=worker_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return output.decode(errors="replace"), f"{doing} took longer than {patience_s} s"
    except OSError as error:
        return "", f"the {doing} process can't be started ({error})"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    problem = f"the {doing} process ended with code {done.returncode}: {lines[-1]}"
    return done.stdout.decode(errors="replace"), problem


def worker_environment() -> dict[str, str]:
    """The environment of such a process: it finds both packages however this one found them."""
    packages = [Path(__file__).parents[1], Path(plugin_errors.__file__).parents[1]]
    given = os.environ.get("PYTHONPATH")
    paths = [*dict.fromkeys(map(str, packages)), *([given] if given else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
