from __future__ import annotations

import json
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_plugin import Adapter, Cache, FlowBlendScheduler, Stage, StageError, StageSchedule

NAMES = st.sampled_from(["large", "small", "distilled", "D"])
ADAPTERS = st.builds(
    Adapter,
    st.sampled_from(["style", "motion"]),
    st.floats(0, 2, width=32),
    st.none() | st.floats(0, 2, width=32),
)
CACHES = st.builds(
    Cache.of,
    st.sampled_from(["first_block", "mag"]),
    st.dictionaries(st.sampled_from(["threshold", "mag_ratios"]), st.lists(st.integers(0, 3))),
)


@st.composite
def schedules(draw: Any) -> StageSchedule:
    count = draw(st.integers(1, 4))
    by_sigma = draw(st.booleans())
    ends = sorted(draw(st.lists(st.floats(0, 1), min_size=count - 1, max_size=count - 1)))
    ends = ends[::-1] if by_sigma else ends
    stages = []
    for end in [*ends, None]:
        extras = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "guidance_scale": st.floats(1, 9),
                    "adapters": st.lists(ADAPTERS, max_size=2).map(tuple),
                    "cache": CACHES,
                    "attention_backend": st.just("native"),
                },
            )
        )
        key = "until_sigma" if by_sigma else "until"
        stages.append(Stage(draw(NAMES), **{key: end}, **extras))
    return StageSchedule(tuple(stages))


@given(schedules())
def test_a_schedule_survives_its_document(schedule: StageSchedule) -> None:
    document = json.loads(json.dumps(schedule.to_document()))
    assert StageSchedule.from_document(document) == schedule


@given(schedules())
@settings(max_examples=25)
def test_a_scheduler_saves_its_stages_whole(schedule: StageSchedule) -> None:
    with tempfile.TemporaryDirectory() as folder:
        FlowBlendScheduler(shift=3.0, stages=schedule).save_pretrained(folder)
        again = FlowBlendScheduler.from_pretrained(folder)
    assert again.stages == schedule
    assert FlowBlendScheduler.from_config(again.config).stages == schedule


def test_what_is_left_at_its_default_isnt_written() -> None:
    assert StageSchedule.parse("LS", (0.5,)).to_document() == [
        {"denoiser": "large", "until": 0.5},
        {"denoiser": "small"},
    ]


@pytest.mark.parametrize(
    ("schedule", "spelt"),
    [
        (StageSchedule.parse("LSL", (0.4, 0.8)), True),
        (StageSchedule.parse("LSL", boundary_sigmas=(0.9, 0.5)), True),
        (StageSchedule.parse("LLL"), True),
        (StageSchedule((Stage("draft"),)), False),
        (StageSchedule((Stage("large", guidance_scale=2.0),)), False),
    ],
)
def test_letters_say_everything_of_plain_schedules_only(
    schedule: StageSchedule, spelt: bool
) -> None:
    assert schedule.is_spelt is spelt
    written = FlowBlendScheduler(stages=schedule).config["stages"]
    assert isinstance(written, str) is spelt


@pytest.mark.parametrize("document", [[{"until": 0.5}], [{"denoiser": "large", "colour": 1}], [3]])
def test_documents_that_are_no_stages_are_refused(document: Any) -> None:
    with pytest.raises(StageError, match="is no stage"):
        StageSchedule.from_document(document)


def test_what_a_stage_sets_is_said_in_words() -> None:
    whole = Stage(
        "small",
        guidance_scale=4.5,
        adapters=(Adapter("style", 0.8), Adapter("motion", 1.0, 0.25)),
        cache=Cache.of("mag", {"calibrate": True}),
        attention_backend="sage",
        steps=6,
        scheduler="unipc",
    )
    assert whole.describe_settings() == (
        "unipc, guidance 4.5, LoRA style 0.8, LoRA motion 1 to 0.25, cache mag, attention sage"
    )
    assert Stage("small", 0.5).describe_settings() == ""
    assert whole.settings == ("adapters", "attention_backend", "cache", "guidance_scale")
    assert Stage("small", until_sigma=0.5, steps=3, scheduler="unipc").settings == ()


@given(st.floats(0, 2), st.none() | st.floats(0, 2), st.integers(1, 60), st.data())
def test_a_ramp_begins_and_ends_at_its_weights_and_is_even_between(
    first: float, last: float | None, count: int, data: st.DataObject
) -> None:
    adapter = Adapter("style", first, last)
    weights = [adapter.weight_at(position, count) for position in range(count)]
    assert weights[0] == first
    if last is None or count == 1:
        assert set(weights) == {first}
        return
    assert weights[-1] == pytest.approx(last)
    position = data.draw(st.integers(0, count - 2))
    assert weights[position + 1] - weights[position] == pytest.approx(
        (last - first) / (count - 1), abs=1e-12
    )


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((), "at least one stage, got none"),
        ((Stage("large", 0.5),), "the last stage ends with the trajectory"),
        ((Stage("large", until_sigma=0.5),), "the last stage ends with the trajectory"),
        ((Stage("large"), Stage("small")), "exactly one end, until or until_sigma; got Stage"),
        ((Stage("large", 0.5, 0.5), Stage("small")), "exactly one end"),
        (
            (Stage("large", True), Stage("small")),
            "boundaries must be numbers from 0 to 1, got True",
        ),
        ((Stage("large", "half"), Stage("small")), "got 'half'"),  # type: ignore[arg-type]
        ((Stage("large", -0.1), Stage("small")), "from 0 to 1, got -0.1"),
        ((Stage("extrapolated", 0.5), Stage("large")), "the first stage can't be extrapolated"),
        (
            (Stage("large", 0.5), Stage("extrapolated", guidance_scale=2.0)),
            "stage 2 is extrapolated and sets guidance_scale, but",
        ),
        ((Stage("large", steps=2.5),), "steps of stage 1 must be a whole number, got 2.5"),  # type: ignore[arg-type]
        ((Stage("large", steps=True),), "steps of stage 1 must be a whole number, got True"),
        ((Stage("large", steps=0),), "steps of stage 1 must be at least 1, got 0"),
        (
            (
                Stage("large", until_sigma=0.5, steps=3),
                Stage("small", steps=3, scheduler="euler_a"),
            ),
            "scheduler of stage 2 must be one of flow_match_euler, unipc, .*, got 'euler_a'",
        ),
        ((Stage("large", scheduler="unipc"),), "stage 1 has scheduler 'unipc' and no steps"),
        (
            (Stage("large", until_sigma=0.5, steps=3), Stage("small")),
            "stage 2 has no steps and others have",
        ),
        (
            (Stage("large", 0.5, steps=3), Stage("small", steps=3)),
            "stage 1 has steps of its own, so it needs until_sigma.*got None",
        ),
        (
            (
                Stage("large", until_sigma=0.5, steps=3),
                Stage("small", until_sigma=0.5, steps=3),
                Stage("large", steps=3),
            ),
            "stage 2 has steps of its own.*got 0.5",
        ),
        *(
            ((Stage("large", until_sigma=level, steps=3), Stage("small", steps=3)), f"got {level}")
            for level in (0.0, 1.0)
        ),
    ],
)
def test_stages_that_make_no_schedule_are_refused_and_the_word_names_what_is_wrong(
    stages: tuple[Stage, ...], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        StageSchedule(stages)


def test_the_least_that_stages_with_steps_need_is_enough() -> None:
    schedule = StageSchedule((Stage("large", until_sigma=0.01, steps=1), Stage("small", steps=1)))
    assert schedule.denoisers(2) == ("large", "small")
