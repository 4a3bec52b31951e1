"""Settings for every test: property tests repeat their examples, at any machine's pace.

Renders go through this process, which has torch imported already; a rendering process of its own
each would take seconds more. What only such a process shows is tested with one.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("flowblend", deadline=None, derandomize=True)
settings.load_profile("flowblend")

os.environ["FLOWBLEND_ISOLATE"] = "0"
os.environ.setdefault("MKL_CBWR", "AUTO")  # before torch: equal products wherever weights lie


def pytest_configure(config: pytest.Config) -> None:
    """Name our marks."""
    config.addinivalue_line("markers", "thorough: a property, which CI tries with many examples")
    config.addinivalue_line("markers", "night: takes long and is run by make faults, and by CI")
