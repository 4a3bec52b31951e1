from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugin import Stage, StageError, StageSchedule
from flowblend_plugin.stages import stage_letters

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


def test_a_schedule_says_its_letters_ends_and_steps() -> None:
    def own(*counts: int) -> StageSchedule:
        ends = [0.9, 0.5][: len(counts) - 1]
        return StageSchedule(
            tuple(
                Stage(role, until_sigma=end, steps=count)
                for role, end, count in zip(
                    ("large", "small", "large"), [*ends, None], counts, strict=False
                )
            )
        )

    assert str(StageSchedule.parse("LLL")) == "L"
    assert str(StageSchedule.parse("LSL", (0.4, 0.8))) == "LSL (0.4, 0.8)"
    assert str(StageSchedule.parse("LS", boundary_sigmas=(0.9,))) == "LS sigmas (0.9,)"
    assert str(own(25, 15)) == "LS sigmas (0.9,) in 25 + 15 steps"
    assert str(own(7)) == "L in 7 steps"
    with pytest.raises(
        StageError, match=r"is 41, and the stages have 25 \+ 15 = 40 steps .* to 40"
    ):
        own(25, 15).denoisers(41)
    with pytest.raises(
        StageError, match=r"is 8, and the stages have 7 steps of their own: .* to 7"
    ):
        own(7).denoisers(8)
    assert own(2, 1, 2).denoisers(5) == ("large", "large", "small", "large", "large")
    assert own(2, 1).boundaries is None
    assert own(2, 1).boundary_sigmas == (0.9,)
    assert not own(2, 1).needs_noise_levels
    assert own(2, 1).num_inference_steps == 3


def test_letters_of_ones_own_name_denoisers_and_are_told_where_one_is_unknown() -> None:
    names = {"D": "distilled", "T": "tiny"}
    schedule = StageSchedule.parse("LDT", (0.5, 0.75), names=names)

    assert schedule.roles == ("large", "distilled", "tiny")
    assert schedule.denoisers(4) == ("large", "large", "distilled", "tiny")
    with pytest.raises(
        StageError, match=r"unknown letter 'X', 'Y': .*extrapolated steps, D for distilled, T for"
    ) as caught:
        StageSchedule.parse("LXYD", names=names)
    assert "for large" not in str(caught.value)
    with pytest.raises(StageError, match=r"needs 1 boundary_sigmas, .* got 2"):
        StageSchedule.parse("LS", boundary_sigmas=(0.9, 0.1))
    with pytest.raises(StageError, match=r"sequence of numbers such as \(0.4, 0.8\), got '0.4'"):
        StageSchedule.parse("LS", "0.4")  # type: ignore[arg-type]
    with pytest.raises(StageError, match=r"boundary_sigmas must be a sequence .* got 0.5"):
        StageSchedule.parse("LS", boundary_sigmas=0.5)  # type: ignore[arg-type]


def test_a_further_denoisers_letter_is_its_initial_where_only_it_has_that() -> None:
    assert stage_letters(["distilled", "tiny"]) == {"D": "distilled", "T": "tiny"}
    assert stage_letters(["distilled", "draft", "tiny"]) == {"T": "tiny"}
    assert stage_letters(["light", "swift", "easy", "mini"]) == {"M": "mini"}


def test_stages_without_a_step_are_listed_and_said() -> None:
    schedule = StageSchedule.parse("LSL", (0.5, 0.55))

    assert schedule.empty_stages(10) == ()
    assert schedule.empty_stages(4) == (1,)
    assert schedule.describe(4) == "steps 0-1 large, no step small, 2-3 large"
    assert StageSchedule.parse("LS", (0.0,)).empty_stages(2) == (0,)
    assert StageSchedule.parse("LS", (0.0,)).describe(1) == "step no step large, 0 small"


def test_the_first_step_cant_fall_into_an_extrapolated_stage() -> None:
    schedule = StageSchedule.parse("LES", (0.1, 0.5))

    assert schedule.denoisers(10)[:2] == ("large", "extrapolated")
    with pytest.raises(StageError, match="at 4 steps the first one falls into stage 2 of LES"):
        schedule.denoisers(4)
    with pytest.raises(StageError, match="first stage can't be extrapolated"):
        StageSchedule.parse("ES", (0.5,))


def test_many_stages_with_settings_are_told_stage_by_stage() -> None:
    stages = [
        Stage(("large", "small")[number % 2], (number + 1) / 10, guidance_scale=2.0)
        for number in range(9)
    ]
    schedule = StageSchedule((*stages, Stage("small")))

    assert schedule.describe(10).startswith("steps 0 large (guidance 2), 1 small (guidance 2), ")
    plain = StageSchedule(tuple(Stage(stage.denoiser, stage.until) for stage in schedule.stages))
    assert plain.describe(10) == "5 large, 5 small: LSLSLSLSLS"
    assert (
        StageSchedule.from_denoisers(("large", "small") * 4 + ("large",))
        .describe(9)
        .startswith("steps 0 large, 1 small, ")
    )
