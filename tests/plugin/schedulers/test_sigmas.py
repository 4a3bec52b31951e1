from __future__ import annotations

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from flowblend_plugin import StageError
from flowblend_plugin.schedulers.factory import FLOW_NAMES, make_scheduler
from flowblend_plugin.schedulers.sigmas import noise_levels


@pytest.mark.parametrize("name", FLOW_NAMES)
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 7.0, 12.0])
def test_levels_are_those_of_diffusers_to_the_last_bit(name: str, shift: float) -> None:
    scheduler: Any = make_scheduler(FlowMatchEulerDiscreteScheduler(shift=shift), name)
    for n in [*range(1, 61), 100, 200]:
        scheduler.set_timesteps(n)
        expected = tuple(float(t) / 1000 for t in scheduler.timesteps[:: scheduler.order])
        assert noise_levels(name, n, shift) == expected, n


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StageError, match="flow_match_euler"):
        noise_levels("ddim", 10)
