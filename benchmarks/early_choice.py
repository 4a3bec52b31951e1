"""How often an early look at a seed agrees with the finished clip, on sprites.

``python benchmarks/early_choice.py [--prompts 8] [--seeds 8] [--steps 50] [--quick] [--write]``

Each prompt's seeds are finished (large, small, large), drafted, and looked at after some steps of
a draft, as a recipe's ``seeds = "explore 8"`` does it; all of it is scored. Told per kind of look,
over prompts: the rank correlation of its scores with the finished clips' (Spearman; mean and 95 %
interval), how often the best finished clip is among those that the look would have kept, and what
keeping costs: the best finished score less the best kept one's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import PROMPTS, ROOT, interval, machine, parse, publish, table

sys.path[:0] = [str(ROOT), str(ROOT / "cli")]

from flowblend_cli.engine.runtime.pipeline import PipelineRuntime  # noqa: E402
from flowblend_cli.models.identity import resolve_models  # noqa: E402
from flowblend_cli.planning.metrics import score_of  # noqa: E402
from flowblend_cli.recipe.loader import load_batch  # noqa: E402
from flowblend_plugin import metrics  # noqa: E402

KEPT = (2, 4)
RECIPE = """\
[model]
pipeline = "sprites"

[blend]
stages = "LSL"
boundaries = [0.4, 0.8]

[defaults]
num_inference_steps = {steps}
max_sequence_length = 64

[draft]
stages = "{stages}"
steps = {draft}
"""
SCENE = '\n[[scene]]\nname = "scene{index}"\nprompt = "{prompt}"\nseeds = "explore {seeds}"\n'


@dataclass(frozen=True)
class Draft:
    """A kind of draft, and the steps after which it is looked at."""

    stages: str
    steps: int
    looks: tuple[int, ...]


DRAFTS = (Draft("S", 30, (5, 10, 20)), Draft("L", 15, (3, 5)))


class Study:
    """One kind of draft of every prompt's seeds, and what they are finished as."""

    def __init__(self, draft: Draft, options: argparse.Namespace) -> None:
        self._draft = draft
        text = RECIPE.format(steps=options.steps, stages=draft.stages, draft=draft.steps)
        for index, prompt in enumerate(PROMPTS[: options.prompts]):
            text += SCENE.format(index=index, prompt=prompt, seeds=options.seeds)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.toml"
            path.write_text(text, "utf-8")
            batch = load_batch(path)
        self._jobs = {job.id: job for job in (*batch.jobs, *batch.reserve)}
        self._selections = batch.study.selections
        self._runtime = PipelineRuntime(resolve_models(batch.jobs[0].model, path.parent))

    def finished(self) -> list[list[float]]:
        """Scores of each prompt's finished seeds."""
        return [[self._rendered(name) for name in each.finals] for each in self._selections]

    def looks(self) -> dict[str, list[list[float]]]:
        """Scores of each prompt's seeds by every look at this draft, and by the whole draft."""
        draft, who = self._draft, {"S": "small", "L": "large"}[self._draft.stages]
        found: dict[str, list[list[float]]] = {}
        for steps in draft.looks:
            found[f"{who}, {steps} of {draft.steps} steps, preview"] = [
                [self._seen(name, steps) for name in each.drafts] for each in self._selections
            ]
        found[f"{who}, {draft.steps} steps, whole draft"] = [
            [self._rendered(name) for name in each.drafts] for each in self._selections
        ]
        return found

    def _rendered(self, name: str) -> float:
        job = self._jobs[name]
        return _score(job, self._runtime.sample(job, job.seed, _quietly).frames)

    def _seen(self, name: str, steps: int) -> float:
        job = self._jobs[name]
        return _score(job, self._runtime.preview(job, job.seed, steps, _quietly))


def _score(job: Any, frames: Any) -> float:
    found = score_of(job.prompt, metrics.measure(frames), {})
    assert found is not None
    return found


def _quietly(index: int, role: str) -> None:
    """Nobody watches."""


def ranks(values: Sequence[float]) -> list[int]:
    """The rank of each value, counted from 0 for the highest."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [order.index(i) for i in range(len(values))]


def row(name: str, looked: list[list[float]], finished: list[list[float]]) -> list[str]:
    """One kind of look as a line of the table."""
    alike, cost = [], {kept: [] for kept in KEPT}  # type: ignore[var-annotated]
    hits = dict.fromkeys(KEPT, 0)
    for early, late in zip(looked, finished, strict=True):
        alike.append(statistics.correlation(ranks(early), ranks(late)))
        for kept in KEPT:
            chosen = [i for i, rank in enumerate(ranks(early)) if rank < kept]
            hits[kept] += late.index(max(late)) in chosen
            cost[kept].append(max(late) - max(late[i] for i in chosen))
    mean, half = interval(alike)
    return [
        name,
        f"{mean:.2f} ± {half:.2f}",
        *(f"{hits[kept]} of {len(finished)}" for kept in KEPT),
        *(f"{statistics.fmean(cost[kept]):.3f}" for kept in KEPT),
    ]


def main() -> None:
    """Render, look, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of the finished clips")
    parser.add_argument("--write", action="store_true", help="put the table into docs/studies.md")
    options = parse(parser, prompts=2, seeds=4, steps=8)

    finished = Study(DRAFTS[0], options).finished()
    rows = [
        row(name, looked, finished)
        for draft in DRAFTS
        for name, looked in Study(draft, options).looks().items()
    ]
    spread = statistics.fmean(max(late) - statistics.fmean(late) for late in finished)
    among = (f"best among {kept} kept" for kept in KEPT)
    costs = (f"cost of keeping {kept}" for kept in KEPT)
    head = ("look", "rank correlation", *among, *costs)
    text = (
        f"{len(finished)} prompts, {options.seeds} seeds each, finished with {options.steps} steps "
        f"LSL; {machine()}. By chance the best is among 2 of {options.seeds} kept in "
        f"{2 / options.seeds:.0%} of cases, among 4 in {min(1.0, 4 / options.seeds):.0%}. The best "
        f"finished clip of a prompt scores {spread:.3f} above its mean.\n\n{table(head, rows)}"
    )
    publish("studies.md", "early choice", text, write=options.write)


if __name__ == "__main__":
    main()
