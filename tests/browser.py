"""A real browser, and a server for a folder of pages, for the tests of reports and reviews."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip


def skip(what: str) -> None:
    """Skip a test, and warn of it, where there is no browser."""
    reason = f"the pages aren't tested in a browser: {what}"
    warnings.warn(reason, stacklevel=2)
    pytest.skip(reason)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium under playwright; skips the test where one of them isn't installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        skip("install chromium, on Debian: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip("pip install playwright")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives the address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def wait_for(page: Any, condition: str) -> None:
    """Wait for a condition; our pages' policy forbids playwright's own way to wait for one."""
    give_up = time.monotonic() + 20
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < give_up, condition
        page.wait_for_timeout(20)
