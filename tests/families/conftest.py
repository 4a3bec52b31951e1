"""In every test of a family, whatever it tests, a switch puts back all that it touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from snapshots import every_switch_checked


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    with every_switch_checked():
        yield
