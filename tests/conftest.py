"""Settings for every test: property tests repeat their examples, at any machine's pace."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("flowblend", deadline=None, derandomize=True)
settings.load_profile("flowblend")
