"""``flowblend report``: from a folder to a page, a document and a recipe."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rendered import a_job, frames_of, keep_recipe, values_for, write_clip

from flowblend_cli import main
from flowblend_cli.analysis.clips.collect import gather
from flowblend_cli.analysis.compare.findings import conclude
from flowblend_cli.analysis.report.json_report import to_document, to_text
from flowblend_cli.analysis.report.page import MOST_POSTERS
from flowblend_cli.analysis.report.promoted_recipe import promoted
from flowblend_cli.artifacts.records import (
    FOLDER,
    JobRecord,
    Look,
    record_path,
    write_looks,
    write_record,
)
from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import ImageSpec, Origin, OutputSpec
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.study import MeasureSpec, Selection, Study
from flowblend_plugin.stages import Cache, Stage

SIMPLE = Study(
    axes=("num_inference_steps",), measure=MeasureSpec(weights=(("inter_frame_ssim", 1.0),))
)
HOSTILE = (
    "</script><script>alert(1)</script>]]>\"'><img src=x onerror=alert(2)>\n\u202e\x1b[31m{{7*7}}"
)


def report(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def document_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return read


def numbers_of(folder: Path) -> dict[str, Any]:
    """What report.json would hold, without drawing a page."""
    found: dict[str, Any] = json.loads(to_text(to_document(conclude(gather(folder)))))
    return found


def verdicts_of(folder: Path) -> str:
    studies = numbers_of(folder)["studies"]
    return " ".join(verdict["text"] for one in studies for verdict in one["verdicts"])


def a_study(folder: Path, scores: dict[int, tuple[float, ...]] | None = None) -> Path:
    jobs = []
    for steps, some in (scores or {30: (0.6, 0.61), 50: (0.8, 0.82), 100: (0.81, 0.82)}).items():
        for seed, score in enumerate(some, 1):
            job = a_job(steps=steps, seed=seed)
            write_clip(folder, job, metrics=values_for(score), elapsed_s=(steps / 10,))
            jobs.append(job)
    keep_recipe(folder, jobs, SIMPLE, "[recipe]\nname = 'study'\n")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = a_study(tmp_path_factory.mktemp("study"))
    report(folder)
    return folder


class Page(HTMLParser):
    """The elements of a page, its texts, and its addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def test_report_json_has_what_it_promises(study: Path) -> None:
    document = document_of(study)

    assert document["v"] == 1
    assert len(document["jobs"]) == 6
    job = next(job for job in document["jobs"] if job["job"] == "square-s2-n50-ode")
    assert {"scene", "seed", "num_inference_steps", "elapsed_s", "metrics", "score"} < set(job)
    assert (job["seed"], job["num_inference_steps"], job["elapsed_s"]) == (2, 50, 5.0)
    assert job["score"] == pytest.approx(0.82)
    assert job["metrics"]["inter_frame_ssim"] == {"value": 0.82, "unit": "", "better": "higher"}
    assert job["metrics"]["elapsed_share"]["value"] == pytest.approx(100)
    assert [j["job"] for j in document["jobs"] if j["winner"] is True] == ["square-s2-n50-ode"]
    assert {j["winner"] for j in document["jobs"]} == {True, False}
    assert document["versions"]["torch"] == ["2.13.0"]


def test_the_verdict_is_printed_with_the_pages_path(study: Path) -> None:
    result = report(study)

    assert result.stdout.startswith("More steps stop paying at 50: score 0.810")
    assert str(study / "report.html") in result.stdout


def test_steps_are_printed_as_a_table_of_what_they_cost_and_buy(study: Path) -> None:
    lines = report(study).output.splitlines()

    head = next(number for number, line in enumerate(lines) if line.startswith("  steps"))
    rows = [line.split() for line in lines[head : head + 4]]
    assert rows[0] == ["steps", "seconds", "share", "score"]
    assert [row[0] for row in rows[1:]] == ["30", "50", "100"]
    assert rows[2][1:6] == ["*", "5.0", "s", "100", "%"]


def test_json_prints_the_document_and_nothing_else(study: Path) -> None:
    assert json.loads(report(study, "--json").stdout) == document_of(study)


def test_equal_input_gives_equal_bytes(study: Path) -> None:
    before = [(study / name).read_bytes() for name in ("report.html", "report.json")]
    report(study)

    assert [(study / name).read_bytes() for name in ("report.html", "report.json")] == before


def test_the_page_loads_nothing_and_names_no_address(study: Path) -> None:
    text = (study / "report.html").read_text("utf-8")

    assert not re.findall(r"https?://(?!www\.w3\.org/)", text)
    for name, value in page_of(study).attributes:
        if name in ("src", "poster"):
            assert value.startswith("data:image/webp;base64,")
        if name == "href" and not value.startswith("#"):
            assert (study / value).is_file()


def test_the_policy_allows_exactly_the_pages_own_styles_and_scripts(study: Path) -> None:
    text = (study / "report.html").read_text("utf-8")
    page = page_of(study)
    (policy,) = [v for n, v in page.attributes if n == "content" and "default-src" in v]

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        for body in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]


def test_ids_are_unique_in_the_page_and_every_reference_leads_to_one(tmp_path: Path) -> None:
    a_study(tmp_path)
    for steps in (30, 50):
        other = a_job(f"other-{steps}", steps=steps, recipe="other")
        write_clip(tmp_path, other, metrics=values_for(0.5 + steps / 1000))
    report(tmp_path)
    page = page_of(tmp_path)

    ids = [value for name, value in page.attributes if name == "id"]
    used = {v for _, value in page.attributes for v in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {value[1:] for name, value in page.attributes if name == "href" and value[:1] == "#"}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)


def test_plots_take_their_colours_from_the_page(study: Path) -> None:
    text = (study / "report.html").read_text("utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)

    assert len(drawings) > 2
    assert not [d for d in drawings if re.search(r"#0[0-9a-e]0|style=|xmlns|<title", d)]
    assert "people, I2VGen-XL" in drawings[0]


def test_hostile_words_add_no_element(tmp_path: Path) -> None:
    def make(folder: Path, word: str) -> list[str]:
        name = "clip"
        jobs = []
        for steps in (30, 50):
            job = a_job(
                f"{name}{steps}", steps=steps, prompt=word, negative_prompt=word, origin=None,
            )  # fmt: skip
            write_clip(folder, job, metrics=values_for(steps / 100), versions={word[:90]: word})
            jobs.append(job)
        again = a_job(f"{name}a", prompt=word, origin=Origin("adapted", jobs[0].id, word, 1))
        write_clip(folder, again, metrics=values_for(0.4), accepted=False)
        foreign = re.sub(r"[/\0\n]", "", word)[:60]
        (folder / f"{foreign}.png").write_bytes(b"foreign")
        keep_recipe(folder, jobs, SIMPLE, word)
        assert report(folder).exit_code == 0
        return page_of(folder).elements

    plain = make(tmp_path / "plain", "plain word")
    hostile = make(tmp_path / "hostile", HOSTILE)

    assert hostile == plain
    text = (tmp_path / "hostile" / "report.html").read_text("utf-8")
    assert "alert(1)</script>" not in text
    assert not re.search("[\u202e\x1b]", text)
    assert "49" not in "".join(re.findall(r"alert\(2\).{0,30}", text))


def test_what_is_printed_cant_control_a_terminal(tmp_path: Path) -> None:
    for steps in (30, 50):
        word = "\x1b]0;x\x07\u202e"
        arguments = {"prompt_template": word, "prompt": word, "negative_prompt": word}
        job = a_job(f"a{steps}", steps=steps, **arguments)
        write_clip(tmp_path, job, metrics=values_for(steps / 100))
    keep_recipe(tmp_path, [job], SIMPLE, warnings=[word])

    result = report(tmp_path)

    assert not re.search("[\u202e\x1b\x07]", result.output)
    assert "study: \\x1b]0;x\\x07\\u202e" in result.output


def test_files_of_any_name_are_found_from_the_page(tmp_path: Path) -> None:
    name = "50 % #1? «ü» a:b.mp4"
    write_clip(tmp_path, a_job("one"), metrics=values_for(0.5), name=name)
    report(tmp_path)

    addresses = {value for key, value in page_of(tmp_path).attributes if key == "href"}
    assert "50%20%25%20%231%3F%20%C2%AB%C3%BC%C2%BB%20a%3Ab.mp4" in addresses


def test_a_folder_with_nothing_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"somebody else's")

    result = report(tmp_path, code=2)
    missing = report(tmp_path / "nowhere", code=2)

    assert (
        "holds no finished file of flowblend (not flowblend's, left out: holiday.mp4)"
        in result.output
    )
    assert "is no folder" in missing.output
    assert not (tmp_path / "report.html").exists()


def test_foreign_and_damaged_files_are_warnings(tmp_path: Path) -> None:
    a_study(tmp_path, {30: (0.5,), 50: (0.8,)})
    (tmp_path / "holiday.mp4").write_bytes(b"somebody else's")
    damaged = tmp_path / "square-s1-n30-ode.mp4"
    shutil.copy(damaged, tmp_path / "copy.mp4")
    data = (tmp_path / "square-s1-n50-ode.mp4").read_bytes()
    (tmp_path / "square-s1-n50-ode.mp4").write_bytes(data[: len(data) // 2])

    warnings = " ".join(gather(tmp_path).warnings)

    assert "left out: holiday.mp4" in warnings
    assert "square-s1-n50-ode.mp4 is damaged" in warnings
    assert "holds the same job as copy.mp4" in warnings
    assert "1 job of 2 not rendered yet: square-s1-n50-ode" in warnings


def test_a_record_of_other_pixels_is_not_believed(tmp_path: Path) -> None:
    job = a_job()
    write_clip(tmp_path, job)
    write_record(
        tmp_path, JobRecord(job.id, "study", "0" * 64, elapsed_s=(9.0,), metrics={"flicker": 99.0})
    )

    (clip,) = gather(tmp_path).sections[0].clips

    assert clip.record.elapsed_s == (1.0,)
    assert clip.record.metrics.get("flicker") != 99.0
    assert clip.record.measured_on == "file"


@pytest.mark.parametrize(
    "damage",
    [{"metrics": {"flicker": "much"}}, {"elapsed_s": 3}, {"pixels": [1]}, {"metrics": []},
     {"measured_on": "<b>"}, {"step_s": ["x"]}],
)  # fmt: skip
def test_a_damaged_record_is_as_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    job = a_job()
    write_clip(tmp_path, job, metrics=values_for(0.5), elapsed_s=(2.0,))
    path = record_path(tmp_path, job.id)
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))

    (clip,) = gather(tmp_path).sections[0].clips

    assert clip.record.measured_on == "file"


def test_without_records_the_files_are_measured_at_their_native_size(tmp_path: Path) -> None:
    from flowblend_plugin import metrics

    for steps in (30, 50):
        job = a_job(steps=steps, output=OutputSpec(fps=8, scale=4))
        write_clip(tmp_path, job, frames=frames_of(steps))

    (section,) = gather(tmp_path).sections
    clip = section.clips[0]

    assert clip.record.elapsed_s == (1.0,)
    assert clip.score is not None
    expected = metrics.measure(frames_of(30))
    found = clip.record.metrics
    assert found["inter_frame_ssim"] == pytest.approx(expected["inter_frame_ssim"], abs=0.03)
    assert found["flow_mean"] == pytest.approx(expected["flow_mean"], rel=0.2)
    warnings = " ".join(gather(tmp_path).warnings)
    assert "measured on the encoded files" in warnings


def test_the_same_without_the_folder_of_records(tmp_path: Path) -> None:
    a_study(tmp_path)
    shutil.rmtree(tmp_path / FOLDER)

    document = numbers_of(tmp_path)
    assert {job["measured_on"] for job in document["jobs"]} == {"file"}
    assert document["recipes"][0]["text"] is None


def test_a_reference_is_found_and_measured_against(tmp_path: Path) -> None:
    jobs = [a_job(steps=steps, seed=seed) for steps in (30, 100) for seed in (1, 2)]
    for job in jobs:
        write_clip(tmp_path, job, frames=frames_of(job.num_inference_steps))
    measure = MeasureSpec(reference=(("num_inference_steps", 100),))
    keep_recipe(tmp_path, jobs, Study(axes=("num_inference_steps",), measure=measure))

    clips = {clip.id: clip for clip in gather(tmp_path).sections[0].clips}

    assert 5 < clips["square-s1-n30-ode"].record.metrics["psnr"] < 50
    assert "psnr" not in clips["square-s1-n100-ode"].record.metrics


def test_without_the_metrics_extra_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowblend_plugin import metrics

    monkeypatch.setattr(metrics, "is_available", lambda: False)
    monkeypatch.setattr(metrics, "missing", lambda: "pip install 'flowblend[metrics]'")
    for steps in (30, 50):
        write_clip(tmp_path, a_job(steps=steps))

    document = numbers_of(tmp_path)

    assert "No winner among 2 variants" in verdicts_of(tmp_path)
    assert "2 files not measured: pip install 'flowblend[metrics]'" in str(document["warnings"])
    assert {job["winner"] for job in document["jobs"]} == {False}


def test_several_recipes_get_a_section_each(tmp_path: Path) -> None:
    a_study(tmp_path)
    for steps in (10, 20):
        job = a_job(f"other-{steps}", steps=steps, recipe="other")
        write_clip(tmp_path, job, metrics=values_for(steps / 100))

    document = numbers_of(tmp_path)

    assert [one["recipe"] for one in document["studies"]] == ["other", "study"]
    assert sum(job["winner"] for job in document["jobs"]) == 2


def test_a_file_rendered_again_is_one_more_render_of_its_job(tmp_path: Path) -> None:
    job = a_job()
    digest = write_clip(tmp_path, job, metrics=values_for(0.5))
    write_clip(tmp_path, a_job(f"{job.id}.again"), frames=frames_of(job.seed))

    (section,) = gather(tmp_path).sections

    assert [clip.record.pixels for clip in section.clips] == [(digest, digest)]


def test_ode_and_sde_are_judged_by_their_bits_and_their_spread(tmp_path: Path) -> None:
    for noise in (1, 2, 3):
        for mode in ("ode", "sde"):
            job = a_job(sampling={"mode": mode, "noise_seed": noise})
            frames = frames_of(20 * noise if mode == "sde" else 0)
            write_clip(tmp_path, job, frames=frames, metrics=values_for(0.5))

    document, said = numbers_of(tmp_path), verdicts_of(tmp_path)

    assert "ODE: 3 of 3 renders equal in every bit (sha256 " in said
    assert "SDE: 3 added noises gave 3 different clips" in said
    (ode,) = [one for one in document["determinism"] if one["mode"] == "ode"]
    assert (ode["equal"], ode["renders"], ode["holds"]) == (3, 3, True)
    spreads = {one["mode"]: one for one in document["studies"][0]["spreads"]}
    assert spreads["ode"]["trajectory_spread"] == pytest.approx(0, abs=1e-9)
    assert spreads["ode"]["equal_pairs"] == 3
    assert spreads["sde"]["psnr_mean"] < 40


def test_explored_seeds_are_counted_with_the_drafts_that_were_given_up(tmp_path: Path) -> None:
    drafts = [a_job(f"d{s}", steps=10, seed=s, origin=Origin("draft")) for s in (1, 2, 3)]
    final = a_job("f1", seed=1, origin=Origin("final", "d1"))
    for job, seconds in ((drafts[0], 1.0), (drafts[1], 1.0), (final, 5.0)):
        write_clip(tmp_path, job, metrics=values_for(0.5), elapsed_s=(seconds,))
    selection = Selection("square", ("d1", "d2", "d3"), ("f1", "f2", "f3"), 1, 3, 2)
    keys = {"d1": "a" * 64, "d2": "b" * 64, "d3": "c" * 64}
    looks = {
        draft: Look(0.5, seconds) for draft, seconds in zip(keys, (0.3, 0.3, 0.4), strict=True)
    }
    write_looks(tmp_path, selection, "", keys, looks)
    keep_recipe(tmp_path, [*drafts, final], Study(selections=(selection,)))

    document = numbers_of(tmp_path)

    (drafted,) = document["studies"][0]["drafts"]
    assert (drafted["drafts"], drafted["abandoned"], drafted["finals"]) == (3, 1, 1)
    assert drafted["draft_s"] == pytest.approx(3.0)
    assert drafted["full_s"] == pytest.approx(15)
    assert not [w for w in document["warnings"] if "not rendered" in w]


def test_a_seed_that_drafts_chose_wins_beside_scenes_without_drafts(tmp_path: Path) -> None:
    drafts = [a_job(f"d{s}", steps=5, seed=s, origin=Origin("draft")) for s in (1, 2)]
    final = a_job("f2", seed=2, origin=Origin("final", "d2"))
    other = a_job("alone", scene="alone", prompt="a blue star")
    for job in (*drafts, final, other):
        write_clip(tmp_path, job, metrics=values_for(0.5 + job.seed / 100))
    chosen = Selection("square", ("d1", "d2"), ("f1", "f2"), 1)
    keep_recipe(tmp_path, [], Study(selections=(chosen,)))

    report(tmp_path)

    assert [job["job"] for job in document_of(tmp_path)["jobs"] if job["winner"]] == ["f2"]


def test_a_slow_step_is_no_headline(tmp_path: Path) -> None:
    write_clip(tmp_path, a_job("one"), metrics=values_for(0.5), step_s=(0.1,) * 9 + (9.0,))

    report(tmp_path)

    tones = [one["tone"] for one in document_of(tmp_path)["studies"][0]["verdicts"]]
    assert tones == ["answer", "warning"]


def test_finals_stand_in_the_order_of_their_scenes(tmp_path: Path) -> None:
    jobs = []
    for scene in ("walking", "growing"):
        draft = a_job(f"{scene}-d", steps=10, scene=scene, origin=Origin("draft"))
        final = a_job(f"{scene}-f", scene=scene, origin=Origin("final", draft.id))
        for job in (draft, final):
            write_clip(tmp_path, job, metrics=values_for(0.5))
        jobs.append((draft, final))
    chosen = tuple(Selection(d.scene, (d.id,), (f.id,), 1) for d, f in jobs)
    keep_recipe(tmp_path, [draft for draft, _ in jobs], Study(selections=chosen))

    listed = [job["job"] for job in numbers_of(tmp_path)["jobs"]]

    assert listed == ["walking-d", "growing-d", "walking-f", "growing-f"]


def test_a_page_of_many_jobs_stays_small(tmp_path: Path) -> None:
    source = tmp_path / "one"
    write_clip(source, a_job("one"))
    data = (source / "one.mp4").read_bytes()
    from flowblend_cli.analysis.clips.clip import Clip, Folder, Section
    from flowblend_cli.analysis.report.page import to_html
    from flowblend_cli.artifacts.metadata import read_document

    assert read_document(source / "one.mp4")
    clips = []
    for seed in range(1, 301):
        job = a_job(f"clip{seed}", seed=seed, steps=30 + 10 * (seed % 3))
        (source / job.filename).write_bytes(data)
        record = JobRecord(
            job.id, job.recipe, f"p{seed}", elapsed_s=(1.0,), metrics=values_for(0.5)
        )
        clips.append(Clip(job, job.filename, seed, record, score=seed % 7 / 10))
    found = Folder("many", (Section("study", tuple(clips)),))

    text = to_html(conclude(found), source)

    assert len(re.findall(r'<img src="data:', text)) <= MOST_POSTERS + 1
    assert f"{300 - MOST_POSTERS} more have no picture here" in text
    assert len(text) < 1_500_000
    assert all(f"clip{seed}</a>" in text for seed in (1, 150, 300))


def test_reports_of_others_are_left_alone(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    (folder / "report.html").write_text("<p>my own page</p>")

    result = report(folder, code=2)

    assert "is no report of flowblend's" in result.output
    assert (folder / "report.html").read_text() == "<p>my own page</p>"


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(
    study: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)

    result = report(study, code=2)

    assert "flowblend[report]" in result.output


def load_promoted(folder: Path, out: Path) -> Any:
    out.write_text(promoted(conclude(gather(folder)), out), "utf-8")
    return load_batch(str(out))


def test_a_promoted_recipe_renders_the_winner(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "next.toml"

    report(study, "--promote", out)

    (job,) = load_batch(str(out)).jobs
    assert (job.seed, job.num_inference_steps, job.prompt) == (2, 50, "a red square moving right")
    winner = a_job(steps=50, seed=2)
    same = {"arguments", "stages", "stage_string", "sampling", "model", "output", "negative_prompt"}
    assert {name: getattr(job, name) for name in same} == {
        name: getattr(winner, name) for name in same
    }
    text = out.read_text("utf-8")
    assert text.startswith("# What won among the clips of recipe study")
    assert "Vary the prompt" in text
    assert "[sweep]" not in text


def test_a_promoted_recipe_says_by_itself_what_the_former_one_included(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('[model]\npipeline = "sprites"\n[blend]\nstages = "SSS"\n')
    recipe = tmp_path / "study.toml"
    recipe.write_text(
        'include = ["base.toml"]\n[[scene]]\nname = "s"\nprompt = "a red square"\nseeds = [1, 2]\n'
    )
    jobs = list(load_batch(recipe).jobs)
    for job, score in zip(jobs, (0.4, 0.6), strict=True):
        write_clip(tmp_path / "out", job, metrics=values_for(score))

    (job,) = load_promoted(tmp_path / "out", tmp_path / "elsewhere.toml").jobs

    assert (job.seed, job.stages) == (2, jobs[1].stages)
    assert "include" not in (tmp_path / "elsewhere.toml").read_text("utf-8")


def test_a_promoted_recipe_keeps_what_stages_set_and_odd_words(tmp_path: Path) -> None:
    stages = (
        Stage("large", until=0.3, guidance_scale=6.0),
        Stage("small", cache=Cache.of("first_block", {"threshold": 0.05})),
    )
    prompt = 'a {red|blue} "square"\\ on\ttwo lines'
    for seed, score in ((1, 0.4), (2, 0.6)):
        job = a_job(
            f"s{seed}", seed=seed, prompt=prompt, negative_prompt='"; x = 1',
            stages=stages, stage_string="LS", sampling={"mode": "sde", "flow_shift": 3.0},
        )  # fmt: skip
        write_clip(tmp_path, job, metrics=values_for(score))

    (job,) = load_promoted(tmp_path, tmp_path / "next.toml").jobs

    assert (job.prompt, job.negative_prompt, job.seed) == (prompt, '"; x = 1', 2)
    assert job.stages == stages
    assert (job.sampling.mode, job.sampling.flow_shift) == ("sde", 3.0)


def test_variants_of_whole_stages_are_told_in_words_and_promoted(tmp_path: Path) -> None:
    plain = (Stage("large", steps=40),)
    phases = (
        Stage("large", steps=25, until_sigma=0.65),
        Stage("large", steps=15, scheduler="unipc"),
    )
    for name, stages, score in (("plain", plain, 0.4), ("phases", phases, 0.6)):
        for seed in (1, 2):
            job = a_job(f"{name}{seed}", steps=40, seed=seed, stages=stages, stage_string="L")
            write_clip(tmp_path, job, metrics=values_for(score))
    keep_recipe(tmp_path, [], Study(axes=("blend.stage",)))

    report(tmp_path)
    (job,) = load_promoted(tmp_path, tmp_path / "next.toml").jobs

    labels = {row["label"] for row in document_of(tmp_path)["studies"][0]["variants"]}
    assert labels == {"40 steps large", "25 steps large to level 0.65 + 15 steps large (unipc)"}
    assert job.stages == phases


def test_a_promoted_recipe_leaves_winners_out_that_it_cant_say(tmp_path: Path) -> None:
    for scene, best in (("square", 2), ("star", 3)):
        for noise in (1, 2, 3):
            job = a_job(scene=scene, sampling={"mode": "sde", "noise_seed": noise})
            write_clip(
                tmp_path, job, frames=frames_of(noise), metrics=values_for(0.9 - abs(noise - best))
            )

    (job,) = load_promoted(tmp_path, tmp_path / "next.toml").jobs

    assert (job.scene, job.sampling.noise_seed) == ("square", 2)
    text = (tmp_path / "next.toml").read_text("utf-8")
    assert "[output], and theirs differ: star-s42-n50-sde-k3.mp4." in text


def test_seconds_can_be_weighted_in_the_score(tmp_path: Path) -> None:
    for steps in (30, 50):
        job = a_job(steps=steps)
        write_clip(tmp_path, job, metrics=values_for(0.5), elapsed_s=(float(steps),))
    study = Study(measure=MeasureSpec(weights=(("elapsed_s", 1.0),)))
    keep_recipe(tmp_path, [a_job(steps=30), a_job(steps=50)], study)

    scores = {j["num_inference_steps"]: j["score"] for j in numbers_of(tmp_path)["jobs"]}

    assert scores[30] == pytest.approx(60 / 90)
    assert scores[50] == pytest.approx(60 / 110)


def test_promoting_overwrites_nothing(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("mine")

    result = report(study, "--promote", out, code=2)

    assert "isn't overwritten" in result.output
    assert out.read_text() == "mine"


def test_promoting_without_a_winner_or_with_two_recipes_says_why(tmp_path: Path) -> None:
    write_clip(tmp_path / "one", a_job(), metrics=values_for(0.5))
    for recipe in ("a", "b"):
        for seed in (1, 2):
            job = a_job(f"{recipe}{seed}", seed=seed, recipe=recipe)
            write_clip(tmp_path / "two", job, metrics=values_for(seed / 10))

    with pytest.raises(UsageError, match="nothing to promote"):
        load_promoted(tmp_path / "one", tmp_path / "x.toml")
    with pytest.raises(UsageError, match=r"2 recipes have winners here \(a, b\)"):
        load_promoted(tmp_path / "two", tmp_path / "x.toml")


def test_a_promoted_recipe_of_a_picture_stays_near_it(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "recipes"
    folder.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "first.png")
    for seed in (1, 2):
        job = a_job(f"s{seed}", seed=seed, image=ImageSpec("first.png", "0" * 64))
        write_clip(folder, job, metrics=values_for(seed / 10))

    found = conclude(gather(folder))

    with pytest.raises(UsageError, match="must lie in the recipe's folder"):
        promoted(found, tmp_path / "far" / "x.toml")
    assert 'image = "first.png"' in promoted(found, folder / "x.toml")
