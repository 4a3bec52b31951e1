"""The quality table: its rows, its results file, its report, and one row measured for real."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowblend_plugin.flops import Clip, count_flops
from flowblend_plugin.schedulers.factory import NAMES
from flowblend_plugin.stage_hooks.cache import cache_config
from flowblend_plugin.stages import LETTERS

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("rows", "store", "measures", "render", "report", "plot")
WHERE = "2026-01-01, Some CPU, 1 of 2 threads, torch 2"
HERE = "Some CPU, 1 of 2 threads, torch 2, cpu"


@pytest.fixture(scope="module")
def quality() -> Iterator[Any]:
    """The benchmark's modules by their short names, importable as its scripts import them."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    names = {name: importlib.import_module(f"quality_{name}") for name in MODULES}
    yield argparse.Namespace(main=importlib.import_module("quality"), **names)
    sys.path[:] = before
    for name in set(sys.modules) - known:  # training's have names that anyone could have
        if str(ROOT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def every(quality: Any) -> Any:
    return quality.rows.rows(quality.rows.RowInputs(mag_ratios=(1.0,) * 50))


def line(row: Any, prompts: int = 4, **values: Any) -> dict[str, Any]:
    """A line of the results file as if the row had been measured."""
    each = [30.0 + i for i in range(prompts)]
    return {
        "kind": "quality", "row": row.name, "key": row.key, "device": "cpu", "prompts": prompts,
        "flops": 1000, "psnr": each, "ssim": each, "features": each, "right": [1] * prompts,
        "change": each, "flicker": each, "frechet": 9.0, "frechet_interval": [-1.0, 5.0],
        "frechet_excess": 2.0, "rendered_s": 1.0, "measured": WHERE, **values,
    }  # fmt: skip


def in_rounds(*seconds: dict[Any, float]) -> list[dict[str, Any]]:
    return [
        {"kind": "round", "machine": HERE, "seconds": {row.key: s for row, s in each.items()}}
        for each in seconds
    ]


def results(quality: Any, path: Path, lines: list[dict[str, Any]]) -> Any:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    return quality.store.Results(path)


def test_every_row_has_a_name_a_family_and_steps_of_its_own(quality: Any, every: Any) -> None:
    names = [row.name for row in every]
    assert len(set(names)) == len(names)
    assert {row.family for row in every} <= set(quality.rows.FAMILIES)
    assert set(quality.rows.FAMILIES) == set(quality.plot.LOOKS)
    assert {row.solver for row in every} <= set(NAMES)
    headlines = {row.name for row in every if row.headline}
    assert headlines >= {"LLL", "SSS", "LSL", "LSS", "SLL", "free = LSL", "contiguous = LSL"}
    assert set(quality.main.QUICK) <= set(names)
    for row in every:
        assert row.stages.empty_stages(row.steps) == (), row.name


def test_every_cache_of_a_row_can_be_made(every: Any) -> None:
    kinds = set()
    for row in every:
        for stage in row.stages.stages:
            if stage.cache is not None and stage.cache.kind != "cache_dit":
                kinds.add(stage.cache.kind)
                cache_config(stage.cache, 0, row.steps, row.steps, lambda: 0)
    assert kinds == {"first_block", "mag", "taylorseer", "sea"}


def test_two_stages_cost_what_they_are_compared_at(every: Any) -> None:
    large = {
        row.name: row.stages.denoisers(row.steps).count("large")
        for row in every
        if row.family in ("SL", "LS", "order")
    }
    assert large["SL 0.4"] == large["LS 0.6"] == large["LSL"] == 30
    assert large["SL 0.7"] == large["LS 0.3"] == 15


@pytest.mark.parametrize("count", [30, 24, 20, 16, 12])
def test_computed_steps_are_as_many_as_asked_and_lie_ever_further_apart(
    quality: Any, count: int
) -> None:
    found = quality.rows.dense_first(count, 50)

    assert len(set(found)) == count
    assert (found[0], found[-1]) == (0, 49)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert min(gaps) == 1
    assert sum(gaps[: count // 2]) < sum(gaps[-(count // 2) :])


def test_letters_of_single_steps_make_the_schedule_that_they_spell(quality: Any) -> None:
    spelt = "LLSLSSSLLS" * 5
    roles = quality.rows.spelt(spelt).denoisers(50)

    assert "".join(role[0].upper() for role in roles) == spelt


@pytest.mark.skipif("E" not in LETTERS, reason="stages have no extrapolated steps")
def test_extrapolated_rows_run_as_many_steps_as_they_say(every: Any) -> None:
    for row in every:
        if row.family == "E":
            count, steps = row.name.split()[1].split("/")
            assert row.steps == int(steps)
            assert row.stages.denoisers(row.steps).count("large") == int(count)


def test_a_line_that_was_cut_off_is_neither_read_nor_glued_to(
    quality: Any, every: Any, tmp_path: Path
) -> None:
    path, (first, second) = tmp_path / "found.jsonl", every[:2]
    results(quality, path, [line(first)])
    with path.open("a") as file:
        file.write(json.dumps(line(second))[:40])

    found = quality.store.Results(path)
    assert found.quality(first, "cpu") is not None
    assert found.quality(second, "cpu") is None
    found.append(line(second, 2))

    again = quality.store.Results(path)
    assert again.lines == found.lines
    assert [each["row"] for each in again.lines] == [first.name, second.name]


def test_a_damaged_line_in_the_middle_is_told_with_its_number(quality: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text('{"kind":"round"}\n{"kind":\n{"kind":"round"}\n')

    with pytest.raises(ValueError, match="line 2"):
        quality.store.Results(path)


def test_what_was_measured_is_known_by_row_device_and_prompts(
    quality: Any, every: Any, tmp_path: Path
) -> None:
    row = every[0]
    found = results(quality, tmp_path / "r", [line(row, 8), line(row, 4), line(row, 4, flops=7)])
    changed = dataclasses.replace(row, steps=row.steps - 1)

    assert found.quality(row, "cpu", 8)["prompts"] == 8
    assert found.quality(row, "cpu", 9) is None
    assert found.quality(row, "cuda", 1) is None
    assert found.quality(changed, "cpu", 1) is None
    assert found.quality(dataclasses.replace(row, name="another"), "cpu", 8) is not None


def test_the_report_says_what_the_file_holds(quality: Any, every: Any, tmp_path: Path) -> None:
    large, small, lsl, euler = quality.rows.named(every, ["LLL", "SSS", "LSL", "Euler 25"])
    lines = [
        line(large, 8, flops=2000),
        line(small, 4, psnr=[20.0] * 4, right=[1, 0, 0, 0], flops=250),
        line(lsl, 8),
        line(euler, 4, psnr=[33.0, 34.0, 35.0, 36.0], change=[60.0, 62.0, 64.0, 66.0]),
        *in_rounds({large: 4.0, lsl: 2.0, euler: 1.0}, {large: 6.0, lsl: 3.0}),
    ]
    table = quality.report.Table(results(quality, tmp_path / "r", lines), every)
    text = quality.report.report(table, "quality.svg")
    cells = {
        parts[1]: parts[2:-1]
        for parts in ([cell.strip() for cell in row.split("|")] for row in text.splitlines())
        if len(parts) > 3
    }

    assert cells["LLL"][:4] == ["1.00", "1.00", "100%", "-"]
    assert cells["SSS"][:4] == ["-", "-", "12%", "20.0 ± 0.0"]
    assert cells["SSS"][7] == "25 [5, 70] %"
    assert cells["LSL"][:3] == ["2.00", "2.00", "50%"]
    assert cells["LSL"][4] == "-"
    assert cells["Euler 25"][0] == "4.00"
    assert cells["Euler 25"][4] == "+3.0 ± 0.0"
    assert cells["Euler 25"][8:] == ["+2 [-1, +5]", "2.000", "1.000", "4"]
    assert text.index("Orders of the two") < text.index("fewer steps of Euler")


def test_equal_results_draw_equal_pictures(quality: Any, every: Any, tmp_path: Path) -> None:
    timed = {row: 2.0 + i for i, row in enumerate(every[:20])}
    lines = [*(line(row) for row in every), *in_rounds(timed)]
    points = quality.report.Table(results(quality, tmp_path / "r", lines), every).points()
    for name in ("a.svg", "b.svg", "c.webp", "d.png"):
        quality.plot.draw(points, tmp_path / name)

    drawn = (tmp_path / "a.svg").read_text("utf-8")
    assert drawn == (tmp_path / "b.svg").read_text("utf-8")
    assert "<dc:date>" not in drawn
    assert all((tmp_path / name).stat().st_size < 150_000 for name in ("c.webp", "d.png"))


@pytest.mark.night
def test_two_rows_are_measured_once_and_timed(quality: Any, tmp_path: Path) -> None:
    row, rows, main = quality.rows.Row, quality.rows, quality.main
    large = row("LLL", "reference", rows.StageSchedule.parse("L"), steps=3, headline=True)
    small = row("LSL", "order", rows.StageSchedule.parse("LS", (0.3,)), steps=3, together=False)
    path, counts = tmp_path / "found.jsonl", {"prompts": 2, "few": 1}
    for _ in range(2):
        found = quality.store.Results(path)
        failed = main.measure_quality(
            found, [large, small], large, device="cpu", processes=1, **counts
        )
        main.measure_times(found, [large, small], large, 1)
        assert not failed
    table = quality.report.Table(quality.store.Results(path), [large, small])

    assert [each["kind"] for each in found.lines] == ["quality", "quality", "round"]
    assert table.lines[large]["prompts"] == 2
    assert table.lines[small]["prompts"] == 1
    assert 0 < table.lines[small]["psnr"][0] < 100
    assert table.speed_up(small) is not None
    assert "| LSL |" in quality.report.report(table, "quality.svg")
    model = ROOT / "recipes" / "models" / "sprites"
    config = {part: json.loads((model / part / "config.json").read_text())
              for part in ("transformer", "transformer_small", "vae")}  # fmt: skip
    clip = Clip(64, 64, 17, 64, vae=config["vae"])
    each = [count_flops(config[f"transformer{part}"], clip).full for part in ("", "_small")]
    assert table.lines[large]["flops"] == 6 * each[0]
    assert table.lines[small]["flops"] == 2 * each[0] + 4 * each[1]


def test_a_row_alone_and_in_a_batch_is_the_same_clip(quality: Any) -> None:
    row = quality.rows.Row("LLL", "reference", quality.rows.StageSchedule.parse("L"), steps=2)
    renderer = quality.render.Renderer()

    together = renderer.clips(row, 0, 2)
    alone = renderer.clips(dataclasses.replace(row, together=False), 0, 2)

    assert together.shape == (2, 3, 17, 64, 64)
    assert torch.allclose(together, alone, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_quick_has_defaults_of_its_own_and_is_never_published(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*arguments: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int, default=50)
        parser.add_argument("--write", action="store_true")
        return quality.main.parse(parser, steps=4)

    assert parsed().steps == 50
    assert parsed("--quick").steps == 4
    assert parsed("--quick", "--steps", "7").steps == 7
    with pytest.raises(SystemExit):
        parsed("--quick", "--write")
