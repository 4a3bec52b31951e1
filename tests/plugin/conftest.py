from __future__ import annotations

from typing import Any

import pytest
from tiny import SCHEDULERS


@pytest.fixture(params=SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> Any:
    """Each of the solvers that the switch is shown to work with."""
    return SCHEDULERS[request.param]()
