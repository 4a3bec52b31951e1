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
