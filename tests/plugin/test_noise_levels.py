from __future__ import annotations

from typing import Any

import pytest
from tiny import SCHEDULERS

from flowblend_plugin import StageError
from flowblend_plugin.noise_levels import noise_levels

NAMES = {"euler": "flow_match_euler", "unipc": "unipc", "dpmpp_2m": "dpmpp_2m", "heun": "heun"}


@pytest.mark.parametrize("key", SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_levels_are_those_of_diffusers(key: str, shift: float) -> None:
    base: Any = SCHEDULERS[key]()
    word = "flow_shift" if "flow_shift" in base.config else "shift"
    scheduler = type(base).from_config(base.config, **{word: shift})
    for n in (1, 2, 3, 8, 25, 50, 77):
        scheduler.set_timesteps(n)
        expected = [float(t) / 1000 for t in scheduler.timesteps[:: scheduler.order]]
        assert noise_levels(NAMES[key], n, shift) == pytest.approx(expected, abs=1e-6)


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StageError, match="flow_match_euler"):
        noise_levels("ddim", 10)
