from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugin import Stage, StageError, StageSchedule

fractions = st.floats(0, 1, allow_nan=False)


@st.composite
def schedules(draw: st.DrawFn) -> StageSchedule:
    stages = draw(st.text("LS", min_size=1, max_size=7))
    edges = sorted(draw(st.lists(fractions, min_size=len(stages) - 1, max_size=len(stages) - 1)))
    return StageSchedule.parse(stages, boundaries=edges)


def test_the_papers_schedule_runs_twenty_twenty_ten_steps() -> None:
    stages = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
    assert stages.denoisers(50) == ("large",) * 20 + ("small",) * 20 + ("large",) * 10


@pytest.mark.parametrize(
    ("letters", "edges"),
    [("LLL", None), ("SSS", None), ("L", None), ("LSS", (0.4, 0.8)), ("SLL", (0.4, 0.8)),
     ("SSL", (0.4, 0.8)), ("LLS", (0.4, 0.8)), ("LS", (0.5,)), ("LSLSL", (0.1, 0.2, 0.5, 0.9)),
     ("LLL", (0.4, 0.8))],
)  # fmt: skip
def test_every_stage_string_covers_every_step(
    letters: str, edges: tuple[float, ...] | None
) -> None:
    assert len(StageSchedule.parse(letters, boundaries=edges).denoisers(50)) == 50


def test_a_stage_string_survives_a_round_trip() -> None:
    stages = StageSchedule.parse("LSLSL", boundaries=(0.1, 0.2, 0.5, 0.9))
    assert StageSchedule.parse(stages.letters, stages.boundaries) == stages


@given(schedules(), st.integers(1, 300))
def test_edges_partition_the_steps_and_round_half_up(stages: StageSchedule, n: int) -> None:
    edges = stages.edges(n)
    assert edges[0] == 0
    assert edges[-1] == n
    assert list(edges) == sorted(edges)
    expected = [math.floor(b * n + 0.5) for b in stages.boundaries or ()]
    assert list(edges[1:-1]) == expected
    assert len(stages.denoisers(n)) == n


@given(schedules(), st.integers(1, 100))
def test_words_name_every_step_once(stages: StageSchedule, n: int) -> None:
    counts = [b - a for a, b in itertools.pairwise(stages.edges(n))]
    assert stages.describe(n).count("no step") == counts.count(0)
    assert len(stages.empty_stages(n)) == counts.count(0)


def test_words_are_plain() -> None:
    stages = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
    assert stages.describe(50) == "steps 0-19 large, 20-39 small, 40-49 large"
    assert stages.describe(3) == "steps 0 large, 1 small, 2 large"
    assert stages.describe(1) == "step no step large, 0 small, no step large"


def test_sigma_boundaries_follow_wans_rule() -> None:
    levels = (1.0, 0.9, 0.875, 0.8, 0.3, 0.1)
    stages = StageSchedule.parse("LSL", boundary_sigmas=(0.875, 0.3))
    assert stages.denoisers(6, levels) == ("large",) * 3 + ("small",) * 2 + ("large",)


@given(st.lists(fractions, min_size=2, max_size=2), st.lists(fractions, min_size=1, max_size=40))
def test_each_step_stays_in_the_earlier_stage_while_its_level_reaches_the_boundary(
    edges: list[float], levels: list[float]
) -> None:
    edges.sort(reverse=True)
    levels.sort(reverse=True)
    roles = StageSchedule.parse("LSL", boundary_sigmas=edges).denoisers(len(levels), levels)
    for role, level in zip(roles, levels, strict=True):
        expected = "large" if level >= edges[0] or level < edges[1] else "small"
        assert role == expected


def test_sigma_boundaries_need_noise_levels() -> None:
    stages = StageSchedule.parse("LS", boundary_sigmas=(0.9,))
    with pytest.raises(StageError, match="noise_levels"):
        stages.denoisers(4)
    with pytest.raises(StageError, match="expected 4 noise levels"):
        stages.denoisers(4, (1.0, 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": "LXL", "boundaries": (0.4, 0.8)}, "unknown letter 'X'"),
        ({"stages": ""}, "letters such as 'LSL'"),
        ({"stages": "LSL"}, "needs 2 boundaries"),
        ({"stages": "LSL", "boundaries": (0.4,)}, "got 1"),
        ({"stages": "LSL", "boundaries": (0.8, 0.4)}, r"did you mean \[0.4, 0.8\]"),
        ({"stages": "LSL", "boundaries": (0.4, 1.8)}, "from 0 to 1, got 1.8"),
        ({"stages": "LSL", "boundaries": (float("nan"), 0.8)}, "from 0 to 1"),
        ({"stages": "LSL", "boundary_sigmas": (0.4, 0.8)}, "descending"),
        ({"stages": "LSL", "boundaries": (0.4, 0.8), "boundary_sigmas": (0.9, 0.1)}, "both"),
    ],
)
def test_bad_stages_say_what_is_wrong(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        StageSchedule.parse(**arguments)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_steps_must_be_a_positive_whole_number(n: object) -> None:
    with pytest.raises(StageError, match="at least 1"):
        StageSchedule.parse("L").denoisers(n)  # type: ignore[arg-type]


def test_a_stage_may_not_mix_kinds_of_boundary() -> None:
    with pytest.raises(StageError, match="mix"):
        StageSchedule((Stage("large", until=0.4), Stage("small", until_sigma=0.2), Stage("large")))


def test_the_schedule_needs_no_torch() -> None:
    code = "import sys; from flowblend_plugin import StageSchedule; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_stages_that_change_often_are_told_by_letters() -> None:
    roles = ("large", "small") * 6
    assert StageSchedule.from_denoisers(roles).describe(12) == "6 large, 6 small: LSLSLSLSLSLS"
    assert StageSchedule.from_denoisers(roles[:3]).describe(3) == "steps 0 large, 1 small, 2 large"


@given(st.lists(st.sampled_from(["large", "small"]), min_size=1, max_size=60))
def test_a_schedule_gives_every_step_the_denoiser_that_it_was_made_from(roles: list[str]) -> None:
    assert StageSchedule.from_denoisers(roles).denoisers(len(roles)) == tuple(roles)
