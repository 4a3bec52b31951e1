"""Properties that CI tries with many examples: ``FLOWBLEND_EXAMPLES=2000 pytest -m thorough``."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FLOWBLEND_EXAMPLES", "0"))

thorough = pytest.mark.thorough


def examples(few: int) -> settings:
    """Settings of a property with few examples, or as many as the environment asks for."""
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=max(few, EXAMPLES), suppress_health_check=health)
