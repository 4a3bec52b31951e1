"""In which order jobs are rendered: little is loaded and moved, and else the recipe's order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from rendered import a_job

from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.planning.ordering import cost, ordered
from flowblend_plugin.stages import StageSchedule


def variant(name: str, *, model: str = "a", offload: str = "none", stages: str = "LSL",
            width: int = 32, seed: int = 1) -> Job:  # fmt: skip
    schedule = StageSchedule.parse(stages, (0.4, 0.8) if len(stages) > 1 else None)
    return a_job(
        name, seed=seed, arguments={"width": width}, stages=schedule.stages,
        stage_string=stages, model=ModelSpec(model, "small", offload=offload),
    )  # fmt: skip


VARIANTS = st.builds(
    variant,
    st.just(""),
    model=st.sampled_from("ab"),
    offload=st.sampled_from(["none", "model"]),
    stages=st.sampled_from(["L", "S", "LSL"]),
    width=st.sampled_from([32, 64]),
    seed=st.integers(1, 3),
)
FEW = st.lists(VARIANTS, max_size=12).map(
    lambda jobs: [replace(job, id=f"j{place}") for place, job in enumerate(jobs)]
)


def ids(jobs: list[Job]) -> str:
    return " ".join(job.id for job in jobs)


@settings(max_examples=150)
@given(FEW, st.sets(st.integers(0, 11)))
def test_an_order_is_a_permutation_that_never_loads_or_moves_more(
    jobs: list[Job], chosen: set[int]
) -> None:
    first = {f"j{place}" for place in chosen}
    found = ordered(jobs, first)

    assert sorted(job.id for job in found) == sorted(job.id for job in jobs)
    models = list(dict.fromkeys(job.model for job in found))
    assert cost(found)[0] == max(0, len(models) - 1), "each model is loaded once"
    as_written = sorted(jobs, key=lambda job: (models.index(job.model), job.id not in first))
    assert cost(found) <= cost(as_written)
    assert cost(found)[0] <= cost(jobs)[0]
    assert first or cost(found)[1] <= cost(jobs)[1]
    assert ordered(found, first) == found, "what is in order stays as it is"
    for model in models:
        own = [job.id in first for job in found if job.model == model]
        assert own == sorted(own, reverse=True)


@given(st.lists(st.sampled_from(["L", "S", "LSL"]), max_size=8))
def test_the_recipes_order_stays_where_everything_stays_on_the_device(stages: list[str]) -> None:
    jobs = [variant(f"j{place}", stages=one) for place, one in enumerate(stages)]
    assert ordered(jobs) == jobs


def test_offloaded_jobs_of_one_setup_stand_together_in_the_order_in_which_they_are_met() -> None:
    jobs = [
        variant(f"{scene}{stages}{width}", stages=stages, width=width, offload="model")
        for scene in "xy"
        for width in (64, 32)
        for stages in ("LSL", "S")
    ]
    assert ids(ordered(jobs)) == "xLSL64 yLSL64 xS64 yS64 xLSL32 yLSL32 xS32 yS32"
    assert (cost(jobs), cost(ordered(jobs))) == ((0, 7), (0, 3))


def test_what_others_are_compared_with_comes_first_and_models_stay_together() -> None:
    jobs = [variant("a1"), variant("a2"), variant("b1", model="b"), variant("b2", model="b")]
    assert ids(ordered(jobs, {"b2"})) == "b2 b1 a1 a2"
    assert ids(ordered(jobs[::-1])) == "b2 b1 a2 a1"
