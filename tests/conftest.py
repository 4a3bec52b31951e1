"""Settings for every test: property tests repeat their examples, at any machine's pace.

The command renders in the tests' own process, where torch is there already; isolation has tests
of its own.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("flowblend", deadline=None, derandomize=True)
settings.load_profile("flowblend")

os.environ["FLOWBLEND_ISOLATE"] = "0"
