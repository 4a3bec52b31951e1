"""Blind reviews: letters that say nothing, files from raters checked, scores un-blinded."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.review.anonymize import copy_anonymously
from flowblend_cli.analysis.review.arrangement import CLIP_CRITERIA, PICTURE_CRITERIA, arrange
from flowblend_cli.analysis.review.folder import write_review
from flowblend_cli.analysis.review.ratings import Rating, RatingsError, read, read_keys
from flowblend_cli.analysis.review.unblinding import alpha, flagged, read_reviews, unblind
from flowblend_cli.artifacts.image import publish_image
from flowblend_cli.artifacts.records import JobRecord, recipe_path, write_json
from flowblend_cli.artifacts.video import publish_video
from flowblend_cli.jobs import Batch, Job, SamplingSpec
from flowblend_cli.main import main
from flowblend_cli.utils.frames import pixels_sha256

SWEEP = '[sweep]\n"blend.stages" = ["LLL", "LSL", "SSS"]\n'
LoadText = Callable[..., Batch]


def clip_of(job: Job, *, pixels: str = "") -> Clip:
    record = JobRecord(job.id, job.recipe, pixels or job.id)
    return Clip(job, job.filename, job.seed, record)


def finish(folder: Path, batch: Batch) -> list[Clip]:
    """Put a finished file under every job's name, each with pixels of its own."""
    clips = []
    for number, job in enumerate(batch.jobs):
        shape = (1 if job.extension == ".png" else 5, 32, 32, 3)
        frames = np.random.default_rng(number).integers(0, 255, shape, np.uint8)
        digest = pixels_sha256(frames)
        document = {
            "flowblend": "0",
            "job": job.to_document(),
            "resolved": {"seed": job.seed, "sampling_s": 1.5 + number},
            "pixels_sha256": digest,
        }
        path = folder / job.filename
        if job.extension == ".png":
            publish_image(frames[0], path, document=document)
        else:
            publish_video(frames, path, fps=8, document=document)
        clips.append(clip_of(job, pixels=digest))
    return clips


@pytest.fixture
def batch(batch_of: LoadText, minimal: str) -> Batch:
    second = '[[scene]]\nname = "ring"\nprompt = "a ring & a <b>star</b>"\nseeds = [1, 2]\n'
    return batch_of(minimal + second + SWEEP)


def letters(clips: list[Clip], seed: int) -> list[list[str]]:
    return [[i.clips[0].id for i in c.items] for c in arrange(clips, seed=seed).sets]


def test_variants_of_one_scene_and_seed_are_compared_with_each_other(batch: Batch) -> None:
    arrangement = arrange([clip_of(job) for job in batch.jobs])

    assert len(arrangement.sets) == 3
    for comparison in arrangement.sets:
        jobs = [clip.job for item in comparison.items for clip in item.clips]
        assert [item.letter for item in comparison.items] == ["A", "B", "C"]
        assert {job.stage_string for job in jobs} == {"LLL", "LSL", "SSS"}
        assert len({(job.scene, job.seed) for job in jobs}) == 1
        assert comparison.criteria == CLIP_CRITERIA


def test_a_seed_gives_one_order_whatever_order_the_files_come_in(batch: Batch) -> None:
    clips = [clip_of(job) for job in batch.jobs]

    assert arrange(clips, seed=3) == arrange(clips[::-1], seed=3)
    assert len({json.dumps(letters(clips, seed)) for seed in range(20)}) > 15


def test_letters_say_nothing_about_variants(batch: Batch) -> None:
    clips = [clip_of(job) for job in batch.jobs]
    first = [letters(clips, seed)[0][0] for seed in range(60)]

    shares = [sum(stages in job for job in first) for stages in ("LLL", "LSL", "SSS")]
    assert min(shares) >= 10


def test_clips_with_the_same_pixels_are_judged_once_for_all_their_jobs(batch: Batch) -> None:
    clips = [clip_of(job, pixels="same") for job in batch.jobs if job.scene == "square"]

    (comparison,) = arrange(clips).sets

    (item,) = comparison.items
    assert {clip.id for clip in item.clips} == {clip.id for clip in clips}


def test_noises_of_one_seed_are_compared_first_with_first(batch: Batch) -> None:
    job = next(job for job in batch.jobs if job.stage_string == "LLL")
    ode = clip_of(job)
    noisy = [
        clip_of(replace(job, id=f"sde-{n}", sampling=SamplingSpec(mode="sde", noise_seed=n)))
        for n in range(3)
    ]

    comparisons = arrange([ode, *noisy]).sets

    sets = [{clip.id for item in c.items for clip in item.clips} for c in comparisons]
    assert sorted(map(sorted, sets)) == sorted([sorted({ode.id, "sde-0"}), ["sde-1"], ["sde-2"]])


def test_pictures_are_asked_other_questions_and_a_recipe_may_ask_its_own(batch: Batch) -> None:
    job = replace(batch.jobs[0], arguments=(("num_frames", 1), ("num_inference_steps", 2)))

    assert arrange([clip_of(job)]).sets[0].criteria == PICTURE_CRITERIA
    own = arrange([clip_of(job)], criteria={"harbour": ("charm",)})
    assert own.sets[0].criteria == ("charm",)


def frames_of(source: Any) -> list[bytes]:
    with av.open(source) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]


def test_an_anonymous_clip_has_every_frame_and_says_nothing(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    path = tmp_path / batch.jobs[1].filename

    copy = copy_anonymously(path)

    assert (copy.fps, copy.frames) == (8, 5)
    assert frames_of(io.BytesIO(copy.data)) == frames_of(str(path))
    assert b"x264" in path.read_bytes()
    for told in (b"flowblend", b"x264", b"comment", b"LSL", b"crf", b"Lavf"):
        assert told not in copy.data


def test_an_anonymous_picture_has_every_pixel_and_says_nothing(
    tmp_path: Path, batch_of: LoadText, minimal: str
) -> None:
    finish(tmp_path, batch_of(minimal, "defaults.num_frames=1"))
    (path,) = tmp_path.glob("*.png")

    data = copy_anonymously(path).data

    with Image.open(io.BytesIO(data)) as copy, Image.open(path) as picture:
        assert not copy.info
        assert np.array_equal(np.asarray(copy), np.asarray(picture))


def test_the_reviewed_folder_holds_no_trace_of_what_is_what(tmp_path: Path, batch: Batch) -> None:
    clips = finish(tmp_path, batch)

    result = CliRunner().invoke(main, ["review", str(tmp_path), "--seed", "4"])

    assert result.exit_code == 0, result.output
    files = sorted(path for path in (tmp_path / "review").rglob("*") if path.is_file())
    copies = [path for path in files if path.suffix == ".mp4"]
    assert len(files) == 1 + len(clips)
    assert len({path.stat().st_mtime for path in copies}) == 1
    page = (tmp_path / "review/index.html").read_text()
    data = page.partition('id="review">')[2].partition("</script>")[0]
    assert "a ring \\u0026 a \\u003cb\\u003estar\\u003c/b\\u003e" in data
    for clip in clips:
        told = (
            clip.id,
            clip.record.pixels_sha256,
            clip.job.stage_string,
            clip.job.scene + '"',
            "seed",
        )
        assert not [word for word in told if word in data]


def test_the_key_is_beside_the_clips_and_leads_back_to_every_job(
    tmp_path: Path, batch: Batch
) -> None:
    finish(tmp_path, batch)

    written = write_review(tmp_path)

    assert written.key.parent == tmp_path / ".flowblend/reviews"
    key = json.loads(written.key.read_text())
    jobs = {clip["job"]: clip for item in key["items"].values() for clip in item["clips"]}
    assert jobs.keys() == {job.id for job in batch.jobs}
    assert {clip["variant"] for clip in jobs.values()} == {"LLL", "LSL", "SSS"}


def test_the_same_review_again_keeps_its_ids_and_another_one_replaces_its_clips(
    tmp_path: Path, batch: Batch
) -> None:
    finish(tmp_path, batch)

    def names() -> set[str]:
        return {path.name for path in (tmp_path / "review/clips").iterdir()}

    first, before = write_review(tmp_path), names()
    second, after = write_review(tmp_path), names()
    third = write_review(tmp_path, seed=1)

    assert (first.key, before) == (second.key, after)
    assert third.key != first.key
    assert first.key.exists()
    assert not names() & before


def test_what_a_sound_recipe_asks_is_asked_and_an_option_overrides_it(
    tmp_path: Path, batch: Batch
) -> None:
    finish(tmp_path, batch)
    kept = {"v": 1, "recipe": "harbour", "study": {"review": {"criteria": ["charm", "wit"]}}}
    write_json(recipe_path(tmp_path, "harbour"), kept)

    assert write_review(tmp_path).arrangement.sets[0].criteria == ("charm", "wit")
    own = write_review(tmp_path, criteria=["grace"], scenes=["ring"]).arrangement
    assert {comparison.criteria for comparison in own.sets} == {("grace",)}
    assert len(own.items) == 6


def test_a_recipe_that_asks_what_is_no_text_is_named_and_left_out(
    tmp_path: Path, batch: Batch
) -> None:
    finish(tmp_path, batch)
    kept = {"v": 1, "recipe": "harbour", "study": {"review": {"criteria": ["charm", 7]}}}
    write_json(recipe_path(tmp_path, "harbour"), kept)

    written = write_review(tmp_path)

    assert written.arrangement.sets[0].criteria != ("charm",)
    told = "study.review.criteria[1] must be a string, got 7"
    assert [told in warning for warning in written.warnings] == [True]


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--scene", "square", "--scene", "moon"], "no clip of scene moon: its scenes are")],
)
def test_an_unknown_scene_is_named(
    tmp_path: Path, batch: Batch, options: list[str], told: str
) -> None:
    finish(tmp_path, batch)

    result = CliRunner().invoke(main, ["review", str(tmp_path), *options])

    assert result.exit_code == 2
    assert told in result.output


def test_a_folder_without_clips_has_nothing_to_review(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["review", str(tmp_path)])

    assert result.exit_code == 2
    assert "holds no finished file of flowblend" in result.output


def test_somebody_elses_page_is_left_alone(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    page = tmp_path / "review/index.html"
    page.parent.mkdir()
    page.write_text("mine")

    result = CliRunner().invoke(main, ["review", str(tmp_path)])

    assert result.exit_code == 4
    assert page.read_text() == "mine"


# --- ratings -------------------------------------------------------------------------------------

Score = tuple[str, str, Any]


def rate(folder: Path, rater: str, scores: list[Score], **more: Any) -> Path:
    document = {
        "v": 1,
        "review": more.pop("review"),
        "rater": rater,
        "session": more.pop("session", rater),
        "saved": more.pop("saved", "2026-01-01"),
        "scores": [{"item": i, "criterion": c, "score": s} for i, c, s in scores],
        **more,
    }
    path = folder / f"{rater}-{len(list(folder.glob('*.json')))}.json"
    path.write_text(json.dumps(document))
    return path


def items_of(key: Path) -> dict[str, str]:
    """The item of each variant of the scene with one seed."""
    items = json.loads(key.read_text())["items"]
    clips = {item: told["clips"][0] for item, told in items.items()}
    return {clip["variant"]: item for item, clip in clips.items() if clip["scene"] == "square"}


def test_scores_find_their_way_back_to_jobs_and_variants(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    written = write_review(tmp_path)
    review, items = written.arrangement.id, items_of(written.key)
    given = {"ann": (8, 6, 2), "ben": (9, 6, 3), "cy": (10, 6, 1)}
    paths = [
        rate(
            tmp_path,
            rater,
            [(items[v], "sharpness", s) for v, s in zip(("LLL", "LSL", "SSS"), s3, strict=True)],
            review=review,
            notes=[{"item": items["SSS"], "note": f"{rater} saw a blob"}],
        )
        for rater, s3 in given.items()
    ]

    reviews = read_reviews(tmp_path, paths)

    assert reviews.raters == ("ann", "ben", "cy")
    assert [(row.name, row.mean, row.n, row.raters) for row in reviews.by_variant] == [
        ("LLL", 9, 3, 3),
        ("LSL", 6, 3, 3),
        ("SSS", 2, 3, 3),
    ]
    best = reviews.by_variant[0]
    # 9 plus or minus t(0.975, 2) * 1 / sqrt(3), cut at the end of the scale
    assert best.low == pytest.approx(9 - 4.3027 / 3**0.5, abs=1e-3)
    assert best.high == 10
    assert {row.name for row in reviews.by_job} == {
        job.id for job in batch.jobs if job.scene == "square"
    }
    assert flagged(reviews) == tuple(r.name for r in reviews.by_job if r.name.endswith("SSS"))
    (agreement,) = [one for one in reviews.agreement if one.criterion == "sharpness"]
    assert agreement.alpha == pytest.approx(0.92, abs=0.05)
    assert (agreement.items, agreement.raters) == (3, 3)
    assert reviews.remarks[0].text == "ann saw a blob"


def test_a_variants_interval_is_over_raters_and_of_one_rater_over_clips(
    tmp_path: Path, batch: Batch
) -> None:
    finish(tmp_path, batch)
    written = write_review(tmp_path)
    items = json.loads(written.key.read_text())["items"]
    large = [item for item, told in items.items() if told["clips"][0]["variant"] == "LLL"]
    review = written.arrangement.id

    def told(*paths: Path) -> Any:
        return read_reviews(tmp_path, list(paths)).by_variant[0]

    scores = zip(large, (4, 6, 8), strict=True)
    one = rate(tmp_path, "ann", [(i, "sharpness", score) for i, score in scores], review=review)
    two = rate(tmp_path, "ben", [(i, "sharpness", 8) for i in large], review=review)

    alone, both = told(one), told(one, two)
    assert (alone.n, alone.raters, alone.mean) == (3, 1, 6)
    assert alone.low == pytest.approx(6 - 4.3027 * 2 / 3**0.5, abs=1e-3)
    assert (both.n, both.raters, both.mean) == (6, 2, 7)
    assert (both.low, both.high) == (0, 10)


def test_of_one_raters_files_the_last_saved_counts(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    written = write_review(tmp_path)
    item = items_of(written.key)["LLL"]

    def saved(score: int, day: str) -> Path:
        return rate(tmp_path, "ann", [(item, "sharpness", score)], saved=day,
                    review=written.arrangement.id)  # fmt: skip

    late, early = saved(7, "2026-02-02"), saved(1, "2026-01-01")

    (row,) = read_reviews(tmp_path, [late, early]).by_variant
    assert (row.mean, row.n) == (7, 1)


def test_two_people_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [rate(tmp_path, "Ann", [], review="r", session=session) for session in "xy"]

    with pytest.raises(RatingsError, match="two people need two names"):
        read(paths)


ITEM = {"item": "a", "criterion": "b"}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("not json", "is no JSON"),
        ("[" * 100_000, "is nested more than"),
        ([], "is no JSON object"),
        ({"v": 2}, "v must be one of 1, got 2"),
        ({"v": 1, "review": "../../etc"}, "must be the id of a review, got '../../etc'"),
        ({"v": 1, "review": "r", "rater": " "}, "rater must not be empty"),
        ({"v": 1, "review": "r", "rater": "a", "scores": {}}, "scores must be a list"),
        ({"v": 1, "review": "r", "rater": "a", "scores": [{}]}, "scores[0].item is missing"),
        *(
            ({"v": 1, "review": "r", "rater": "a", "scores": [{**ITEM, "score": score}]}, told)
            for score, told in [
                (11, "scores[0].score must be at most 10, got 11"),
                (10**400, "holds a number of 401 digits"),
                (-0.5, "must be at least 0, got -0.5"),
                (True, "must be a number, got true"),
                ("9", "must be a number, got '9'"),
                (None, "must be a number, got None"),
                (float("nan"), "holds NaN"),
            ]
        ),
        (
            {"v": 1, "review": "r", "rater": "a", "scores": [{**ITEM, "score": 1}] * 2},
            "is scored twice",
        ),
        (
            {"v": 1, "review": "r", "rater": "a", "notes": [{"item": "a"}]},
            "notes[0].note is",
        ),
    ],
)
def test_a_file_that_no_review_page_saved_says_what_is_wrong(
    tmp_path: Path, document: Any, told: str
) -> None:
    path = tmp_path / "ann.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))

    with pytest.raises(RatingsError) as caught:
        read([path])

    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(RatingsError, match="can't be read"):
            read([path])


def test_ratings_of_another_folder_are_refused(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    written = write_review(tmp_path)
    review, item = written.arrangement.id, written.arrangement.items[0].id
    for scores, which, told in [
        ([], "elsewhere", "whose key isn't in"),
        ([("nobody", "sharpness", 1)], review, "which review"),
        ([(item, "charm", 1)], review, "which review"),
    ]:
        path = rate(tmp_path, "ann", scores, review=which)
        with pytest.raises(RatingsError, match=told):
            read_reviews(tmp_path, [path])


def test_a_damaged_key_says_how_to_make_it_again(tmp_path: Path, batch: Batch) -> None:
    finish(tmp_path, batch)
    written = write_review(tmp_path)
    path = rate(tmp_path, "ann", [], review=written.arrangement.id)
    listed = {"v": 1, "review": written.arrangement.id, "items": [1]}
    for damaged in ("{}", "", json.dumps(listed)):
        written.key.write_text(damaged)
        with pytest.raises(RatingsError, match="run `flowblend review` again"):
            read_reviews(tmp_path, [path])

    write_review(tmp_path)
    assert read_keys(tmp_path, read([path])).keys() == {written.arrangement.id}


def test_no_rating_at_all_says_nothing() -> None:
    reviews = unblind([], {})

    assert (reviews.raters, reviews.by_job, reviews.agreement) == ((), (), ())
    assert flagged(reviews) == ()


# --- agreement -----------------------------------------------------------------------------------

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example of four observers and
# twelve units with missing data; interval data: 0.849.
_EXAMPLE = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def example() -> list[tuple[str, str, float]]:
    rows = zip("ABCD", _EXAMPLE, strict=True)
    return [
        (rater, str(unit), float(score))
        for rater, row in rows
        for unit, score in enumerate(row)
        if score != "."
    ]


def direct_alpha(judgements: list[tuple[str, str, float]]) -> float:
    """The definition: pairs within units against all pairs."""
    units: dict[str, list[float]] = {}
    for _, unit, score in judgements:
        units.setdefault(unit, []).append(score)
    shared = [scores for scores in units.values() if len(scores) > 1]
    every = [score for scores in shared for score in scores]
    within = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(scores, 2)) / (len(scores) - 1)
        for scores in shared
    )
    across = sum((a - b) ** 2 for a, b in itertools.permutations(every, 2)) / (len(every) - 1)
    return 1 - within / across


def test_alpha_is_that_of_the_published_example() -> None:
    value, reason = alpha(example())

    assert value == pytest.approx(0.849, abs=5e-4)
    assert reason == ""


@given(st.lists(st.lists(st.none() | st.integers(0, 10), min_size=3, max_size=3), max_size=8))
def test_alpha_is_what_its_definition_says(table: list[list[int | None]]) -> None:
    judgements = [
        (f"rater {rater}", f"unit {unit}", float(score))
        for unit, row in enumerate(table)
        for rater, score in enumerate(row)
        if score is not None
    ]
    value, reason = alpha(judgements)

    if value is None:
        assert reason
    else:
        assert value == pytest.approx(direct_alpha(judgements), abs=1e-9)
        assert value <= 1


@pytest.mark.parametrize(
    ("judgements", "told"),
    [
        ([], "one rater alone"),
        ([("a", "1", 3.0), ("a", "2", 4.0)], "one rater alone"),
        ([("a", "1", 3.0), ("b", "2", 4.0)], "no clip was scored by two"),
        ([("a", "1", 3.0), ("b", "1", 3.0)], "every score is the same"),
    ],
)
def test_alpha_says_why_it_cannot_be_told(
    judgements: list[tuple[str, str, float]], told: str
) -> None:
    value, reason = alpha(judgements)

    assert value is None
    assert told in reason


def test_a_rating_without_a_session_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"v": 1, "review": "r", "rater": " Ann\n Lee ", "scores": []}))

    assert read([path]) == (Rating(os.fspath(path), "r", "Ann Lee", "", "", {}, {}),)
