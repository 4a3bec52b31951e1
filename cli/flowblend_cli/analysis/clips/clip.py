"""Clip, Section and Folder: finished files, records and recipes, for reports and reviews."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flowblend_cli.artifacts.records import JobRecord
from flowblend_cli.jobs import Job
from flowblend_cli.study import Study


@dataclass(frozen=True)
class Clip:
    """One finished file of ours, its job, and how it was rendered.

    Args:
        job: The job, as its file records it.
        name: Name of the file inside the folder.
        seed: The seed that was used, also where the recipe let one be drawn.
        record: The measurements of these very pixels; where the folder keeps none, what the file
            itself says.
        score: The score that the metrics give, 0 to 1; None where they give none.
        denoisers: One letter a step: who ran it.
        device: Kind of device, such as ``"cpu"``.
        versions: Versions of the packages that decide bits.
        source: The recipe's folder.
    """

    job: Job
    name: str
    seed: int
    record: JobRecord
    score: float | None = None
    denoisers: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def id(self) -> str:
        """Id of the job."""
        return self.job.id

    @property
    def seconds(self) -> float | None:
        """Median seconds of the job's renders."""
        elapsed_s = self.record.elapsed_s
        return statistics.median(elapsed_s) if elapsed_s else None

    @property
    def seconds_per_step(self) -> float | None:
        """Median seconds of a step."""
        return statistics.median(self.record.step_s) if self.record.step_s else None

    @property
    def costs(self) -> dict[str, float]:
        """Time and memory that the renders took, under the names that metrics have."""
        found = {
            "elapsed_s": self.seconds,
            "step_s": self.seconds_per_step,
            "peak_rss_bytes": self.record.peak_rss_bytes,
            "peak_vram_bytes": self.record.peak_vram_bytes,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def kind(self) -> str:
        """``"draft"``, ``"final"`` or ``"adapted"``; empty for a job that the recipe lists."""
        return self.job.origin.kind if self.job.origin else ""

    @property
    def is_picture(self) -> bool:
        """Whether the file is a single picture."""
        return self.job.extension == ".png"

    @property
    def subject(self) -> tuple[str, str]:
        """Scene and prompt, which clips must share to be compared."""
        return self.job.scene, self.job.prompt

    @property
    def seed_label(self) -> str:
        """The seeds in words: ``"seed 1"``, or ``"seed 1, noise 2"`` where a recipe names both."""
        noise = self.job.sampling.noise_seed
        return f"seed {self.seed}" + ("" if noise is None else f", noise {noise}")

    @property
    def noise(self) -> tuple[int, int]:
        """Seeds of the first noise, and of the noise that is added at each step."""
        added = self.job.sampling.noise_seed
        return self.seed, self.seed if added is None else added


@dataclass(frozen=True)
class Spread:
    """Distances between the renders of one variant.

    Args:
        scene: Their scene.
        mode: ``"ode"`` or ``"sde"``.
        across: ``"noise"`` where only the noise added at each step differs, else ``"seeds"``.
        jobs: Ids of the jobs.
        trajectory_spread: Mean distance of their paths of motion; None where none are known.
        psnr_mean: Mean PSNR of the pairs that differ, in dB; None where none does.
        pairs: Pairs that were compared.
        equal_pairs: How many of them are equal in every pixel.
    """

    scene: str
    mode: str
    across: str
    jobs: tuple[str, ...]
    trajectory_spread: float | None = None
    psnr_mean: float | None = None
    pairs: int = 0
    equal_pairs: int = 0


@dataclass(frozen=True)
class KeptRecipe:
    """A recipe as it was last rendered into the folder.

    Args:
        path: Its file.
        text: Its text.
        overrides: The ``--set`` options.
        warnings: Warnings of ``check``.
        study: Its measurements and comparisons.
        jobs: Ids of its jobs, in order.
    """

    path: str
    text: str
    overrides: tuple[str, ...]
    warnings: tuple[str, ...]
    study: Study
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """All clips of one recipe.

    Args:
        name: Name of the recipe.
        clips: The clips, in the recipe's order.
        recipe: The recipe, where it was kept.
        spreads: How far renders of one variant are apart.
        abandoned_s: Seconds of early looks at drafts that left no file, by scene.
        looks_s: Seconds of those at the other drafts, likewise.
    """

    name: str
    clips: tuple[Clip, ...]
    recipe: KeptRecipe | None = None
    spreads: tuple[Spread, ...] = ()
    abandoned_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    looks_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def study(self) -> Study:
        """The recipe's study; an empty one where the recipe wasn't kept."""
        return self.recipe.study if self.recipe else Study()


@dataclass(frozen=True)
class Folder:
    """A folder's clips, by recipe.

    Args:
        name: Name of the folder.
        sections: One for each recipe.
        warnings: Files and jobs that are foreign, damaged, missing or can't be compared.
    """

    name: str
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()


def own_job(job: str, clips: Iterable[Clip]) -> str:
    """Id of the recipe's own job that an adapted one goes back to, or the id itself."""
    parents = {c.id: c.job.origin.of for c in clips if c.job.origin and c.kind == "adapted"}
    seen: set[str] = set()
    while job in parents and job not in seen:
        seen.add(job)
        job = parents[job]
    return job
