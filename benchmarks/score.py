"""Whether the score, and each metric alone, ranks clips as it should; and where motion is weak.

``python benchmarks/score.py [--prompts 36] [--clips FILE.npz] [--write] [--quick]``

Renders prompts that no training clip showed, all large and all small, at several step counts, and
damages the all-large ones in known ways. A comparison is right where the clip that should be
better has the higher score. The weights were chosen by hand on the first half of the prompts
alone; the second half judges them. ``--clips`` keeps the rendered clips in a file and reads them
from there again. ``--write`` puts the tables into docs/metrics.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from shared import ROOT, Sprites, interval, machine, parse, publish, table

from flowblend_plugin import StageSchedule, metrics

# training/ is no package: its scripts find each other beside themselves.
sys.path.append(str(ROOT / "training"))

from evaluate_sprites import wilson
from sprites_data import MOTIONS, Spec, draw, split_specs

STEPS = (50, 30, 16, 8, 4)
FIRST_SEED = 100
DRAWN = 4  # clips a motion
STILL = MOTIONS.index("standing still")
Clip = Any
Values = dict[str, float]


def chosen(count: int) -> list[Spec]:
    """Held-out combinations, at most four of each motion, in a fixed shuffled order."""
    rng, held, found = random.Random(1), split_specs()[1], []
    for motion in range(len(MOTIONS)):
        these = [spec for spec in held if spec.motion == motion]
        rng.shuffle(these)
        found += these[:4]
    rng.shuffle(found)
    return found[:count]


def to_bytes(values: Any) -> Clip:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def render(specs: Sequence[Spec], steps: Sequence[int], path: Path | None) -> dict[str, Clip]:
    """Every prompt all large and all small, by ``index|stages|steps|prompt``."""
    clips: dict[str, Clip] = dict(np.load(path)) if path and path.exists() else {}
    sprites: Sprites | None = None
    for index, spec in enumerate(specs):
        for name in ("LLL", "SSS"):
            for count in steps:
                key = f"{index}|{name}|{count}|{spec.prompt}"
                if key in clips:
                    continue
                sprites = sprites or Sprites()
                stages = StageSchedule.parse(name[0])
                seed = FIRST_SEED + index
                latents = sprites.latents(spec.prompt, seed, count, stages=stages)[0]
                pixels = sprites.frames(latents)[0].permute(1, 2, 3, 0)
                clips[key] = to_bytes(255 * pixels.numpy())
        print(f"{index + 1} of {len(specs)}: {spec.prompt}", file=sys.stderr, flush=True)
        if path and sprites:
            np.savez_compressed(path, **clips)
    return clips


def drawn(each: int) -> list[tuple[Spec, Clip]]:
    """Clips as the pair was trained on, the same number of each motion."""
    rng = random.Random(3)
    specs = [
        Spec(rng.randrange(8), rng.randrange(5), motion, rng.randrange(4))
        for motion in range(len(MOTIONS))
        for _ in range(each)
    ]
    clips = draw(specs, torch.Generator().manual_seed(1))[0]
    return [
        (spec, to_bytes(127.5 * (clip.permute(1, 2, 3, 0).numpy() + 1)))
        for spec, clip in zip(specs, clips, strict=True)
    ]


def damages(frames: Clip, seed: int) -> Iterator[tuple[str, Clip]]:
    """One clip, spoilt in known ways."""
    rng, count = np.random.default_rng(seed), len(frames)
    still = np.repeat(frames[:1], count, 0)
    order = rng.permutation(count)

    def noise(deviation: float) -> Any:
        return rng.normal(0, deviation, frames.shape)

    def blurred(sigma: float) -> Clip:
        return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])

    def thrown(frame: Any) -> Any:
        return np.roll(frame, rng.integers(-4, 5, 2), (0, 1))

    yield "frozen", still
    yield "frozen, noise of 2 grey levels", to_bytes(still + noise(2))
    yield "noise of 8 grey levels", to_bytes(frames + noise(8))
    yield "noise of 20 grey levels", to_bytes(frames + noise(20))
    yield "frames shuffled", frames[order]
    yield "every frame thrown up to 4 pixels", np.stack([thrown(frame) for frame in frames])
    yield (
        "one jump of 8 pixels",
        np.concatenate([frames[: count // 2], np.roll(frames[count // 2 :], 8, 2)]),
    )
    yield "every frame twice", frames[np.arange(count) // 2 * 2]
    yield (
        "light that flickers by 15 %",
        to_bytes(frames * (1 + 0.15 * rng.uniform(-1, 1, (count, 1, 1, 1)))),
    )
    yield "blur of 0.8 pixels", blurred(0.8)
    yield "blur of 1.5 pixels", blurred(1.5)


class Comparisons:
    """Pairs of measured clips of which one should be better, by the name of the comparison."""

    def __init__(self) -> None:
        self.pairs: dict[str, list[tuple[int, str, Values, Values]]] = {}

    def add(self, name: str, index: int, prompt: str, better: Values, worse: Values) -> None:
        """Note a pair of the prompt of an index."""
        self.pairs.setdefault(name, []).append((index, prompt, better, worse))

    def right(
        self, name: str, value: Callable[[Values, str], float], keep: Callable[[int], bool]
    ) -> tuple[int, int]:
        """In how many of how many pairs the better clip has the higher value."""
        those = [pair for pair in self.pairs[name] if keep(pair[0])]
        wins = [value(a, prompt) > value(b, prompt) for _, prompt, a, b in those]
        return sum(wins), len(wins)


def compare_rendered(
    specs: Sequence[Spec], steps: Sequence[int], clips: dict[str, Clip]
) -> tuple[Comparisons, list[Values]]:
    """All comparisons of rendered clips, and what was measured of the best of each prompt."""
    found, best = Comparisons(), []
    for index, spec in enumerate(specs):
        large, small = (
            {n: metrics.measure(clips[f"{index}|{name}|{n}|{spec.prompt}"]) for n in steps}
            for name in ("LLL", "SSS")
        )
        most = steps[0]
        best.append(large[most])
        for n in steps:
            found.add(f"LLL above SSS, {n} steps", index, spec.prompt, large[n], small[n])
        for n in steps[1:]:
            found.add(f"LLL, {most} steps above {n}", index, spec.prompt, large[most], large[n])
        frames = clips[f"{index}|LLL|{most}|{spec.prompt}"]
        compare_damaged(found, "rendered", index, spec, frames, large[most])
    return found, best


def compare_damaged(
    found: Comparisons, kind: str, index: int, spec: Spec, frames: Clip, clean: Values
) -> None:
    """Add a clip against every damage that changes it: nobody can freeze what stands still."""
    for name, damaged in damages(frames, index):
        is_moved = name.startswith(("frozen", "frames", "one jump", "every frame"))
        if spec.motion == STILL and is_moved:
            continue
        values = metrics.measure(damaged)
        found.add(f"{kind}: clean above {name}", index, spec.prompt, clean, values)


def score_of(values: Values, prompt: str) -> float:
    return metrics.score(values, floor=metrics.motion_floor(prompt))


def oriented(name: str) -> Callable[[Values, str], float]:
    """A metric, so that higher is better where either way is."""
    sign = -1.0 if metrics.METRICS[name].better == "lower" else 1.0
    return lambda values, _prompt: sign * values[name]


def share(wins: int, count: int) -> str:
    low, high = wilson(wins, count)
    return f"{wins} of {count} [{100 * low:.0f}, {100 * high:.0f}]"


def by_steps(found: Comparisons, steps: Sequence[int]) -> str:
    """The table of mean scores, over all prompts."""
    rows = []
    for place, name in ((2, "LLL"), (3, "SSS")):
        cells = []
        for n in steps:
            pairs = found.pairs[f"LLL above SSS, {n} steps"]
            mean, half = interval([score_of(pair[place], pair[1]) for pair in pairs])
            cells.append(f"{mean:.3f} ± {half:.3f}")
        rows.append([name, *cells])
    return table(["stages", *(f"{n} steps" for n in steps)], rows)


def ranking(found: Comparisons, half: int) -> str:
    """The table of the score: prompts that chose the weights apart from those that judge them."""
    rows = []
    for name in found.pairs:
        first = found.right(name, score_of, lambda index: index < half)
        second = found.right(name, score_of, lambda index: index >= half)
        rows.append(
            [
                name,
                share(*second) if second[1] else "-",
                f"{first[0]} of {first[1]}" if first[1] else "-",
            ]
        )
    head = ["comparison", "right, prompts that judge [95 %]", "right, prompts that chose"]
    return table(head, rows)


def alone(found: Comparisons, half: int) -> str:
    """The table of the metrics alone, over the prompts that judge."""
    names = list(next(iter(found.pairs.values()))[0][2])
    rows = []
    for name in found.pairs:
        if name.startswith("drawn"):
            continue
        cells = [
            found.right(name, oriented(metric), lambda index: index >= half) for metric in names
        ]
        rows.append([name, *(f"{wins}/{count}" for wins, count in cells)])
    return table(["comparison", *(f"`{name}`" for name in names)], rows)


def threshold(low: Sequence[float], high: Sequence[float]) -> tuple[float, float]:
    """The value that parts two samples best, and the mean share of both on its right side."""
    edges = np.unique([*low, *high])
    middles = (edges[1:] + edges[:-1]) / 2
    rates = [(np.mean(np.array(low) < m) + np.mean(np.array(high) >= m)) / 2 for m in middles]
    best = np.flatnonzero(np.isclose(rates, max(rates)))
    return float(middles[best[len(best) // 2]]), float(max(rates))


def thresholds(found: Comparisons, specs: Sequence[Spec], best: list[Values], half: int) -> str:
    """What parts weak motion from motion, and even motion from motion that jumps."""
    first = list(zip(specs, best, strict=True))[:half]
    still = [values["flow_mean"] for spec, values in first if spec.motion == STILL]
    moving = [values["flow_mean"] for spec, values in first if spec.motion != STILL]
    lines = []
    if still and moving:
        value, rate = threshold(still, moving)
        lines.append(
            f"- `flow_mean`: {value:.2f} parts what stands still from what moves, among the "
            f"all-large clips of the prompts that chose ({len(still)} and {len(moving)}; "
            f"{rate:.0%} right)."
        )
    bad = [
        worse
        for name in ("frames shuffled", "every frame thrown up to 4 pixels", "every frame twice")
        for index, _, _, worse in found.pairs[f"rendered: clean above {name}"]
        if index < half
    ]
    good = [values for spec, values in first if spec.motion != STILL]
    for name in ("flow_std", "unsteadiness"):
        value, rate = threshold([v[name] for v in good], [v[name] for v in bad])
        lines.append(
            f"- `{name}`: {value:.2f} parts all-large clips from the same ones shuffled, thrown "
            f"or with every frame twice ({len(good)} and {len(bad)}; {rate:.0%} right)."
        )
    return "\n".join(lines)


def by_motion(specs: Sequence[Spec], best: list[Values], real: list[tuple[Spec, Values]]) -> str:
    """The table of motion as drawn and as rendered."""
    names = ("flow_mean", "flow_std", "unsteadiness", "inter_frame_ssim")
    rendered = list(zip(specs, best, strict=True))
    rows = []
    for motion, word in enumerate(MOTIONS):
        cells = []
        for name in names:
            for those in (real, rendered):
                values = [v[name] for spec, v in those if spec.motion == motion]
                cells.append(f"{min(values):.2f} to {max(values):.2f}" if values else "-")
        rows.append([word, *cells])
    head = [f"`{name}`, {kind}" for name in names for kind in ("drawn", "LLL")]
    return table(["motion", *head], rows)


def report(options: argparse.Namespace) -> str:
    """Render, measure, compare."""
    specs, half = chosen(options.prompts), options.prompts // 2
    clips = render(specs, options.steps, options.clips)
    found, best = compare_rendered(specs, options.steps, clips)
    real = []
    for index, (spec, frames) in enumerate(drawn(options.drawn)):
        values = metrics.measure(frames)
        real.append((spec, values))
        # Counted beside the prompts that judge; clips like them were looked at while choosing.
        compare_damaged(found, "drawn", half + index, spec, frames, values)
    return "\n\n".join(
        [
            (
                f"{len(specs)} held-out prompts of sprites (the first {half} chose the weights, "
                f"the other {len(specs) - half} judge), one seed each, and {len(real)} drawn "
                f"clips. Intervals are Wilson's. Measured {machine()}."
            ),
            ranking(found, half),
            "Mean score of all prompts with its 95 % interval:",
            by_steps(found, options.steps),
            (
                "How often each metric alone ranks as it should, lower being better where it is, "
                "and higher for those that have no better end; over the prompts that judge:"
            ),
            alone(found, half),
            "Least and most of each motion, as drawn and as rendered all large:",
            by_motion(specs, best, real),
            "Where the thresholds come from:",
            thresholds(found, specs, best, half),
        ]
    )


def main() -> None:
    """Measure, and print or publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=36, choices=range(2, 37))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--drawn", type=int, default=DRAWN, help="drawn clips of each motion")
    parser.add_argument("--clips", type=Path, help="file of rendered clips, made if it isn't there")
    parser.add_argument("--write", action="store_true")
    options = parse(parser, prompts=2, steps=[8, 4], drawn=1)
    options.steps.sort(reverse=True)
    publish("metrics.md", "score", report(options), write=options.write)


if __name__ == "__main__":
    main()
