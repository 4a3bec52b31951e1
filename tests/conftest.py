"""Settings for every test: property tests repeat their examples, at any machine's pace."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("flowblend", deadline=None, derandomize=True)
settings.load_profile("flowblend")


def pytest_configure(config: pytest.Config) -> None:
    """Name our marks."""
    config.addinivalue_line("markers", "thorough: a property, which CI tries with many examples")
