"""StageSchedule: the stages of a trajectory, their boundaries, and their map to step indices.

Pure Python: nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowblend_plugin.errors import StageError
from flowblend_plugin.stages.stage import EXTRAPOLATED, Stage, check_stages

_MOST_IN_WORDS = 9
LETTERS = {"L": "large", "S": "small", "E": EXTRAPOLATED}


@dataclass(frozen=True)
class StageSchedule:
    """The stages of one trajectory, in order; make one with ``parse``.

    Reference:
        FlowBlending: stage-aware multi-model sampling, arXiv:2512.24724.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        check_stages(self.stages)

    @classmethod
    def parse(
        cls,
        stages: str,
        boundaries: Sequence[float] | None = None,
        boundary_sigmas: Sequence[float] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> StageSchedule:
        """Make a schedule from a stage string and the boundaries between its letters.

        Args:
            stages: One letter a stage: ``L`` large, ``S`` small, ``E`` extrapolated; ``"LSL"``,
                ``"SL"``, ``"LSLEL"``. A string of one repeated letter needs no boundaries.
            boundaries: Ends of all stages but the last, as fractions of ``num_inference_steps``,
                ascending from 0 to 1.
            boundary_sigmas: The same as noise levels, descending from 1 to 0. Never both.
            names: Further letters, each with the name of its denoiser: ``{"D": "distilled"}``.

        Returns:
            The schedule.

        Raises:
            StageError: An unknown letter, boundaries that are missing, too many, out of range or
                out of order, or a first stage that is extrapolated.
        """
        if not isinstance(stages, str) or not stages:
            raise StageError(f"stages must be letters such as 'LSL', got {stages!r}")
        known = {**LETTERS, **(names or {})}
        unknown = sorted(set(stages) - set(known))
        if unknown:
            further = "".join(f", {k} for {v}" for k, v in known.items() if k not in LETTERS)
            raise StageError(
                f"stages {stages!r} has unknown letter {', '.join(map(repr, unknown))}: "
                "use L for the large denoiser, S for the small one and E for extrapolated "
                f"steps{further}"
            )
        if boundaries is not None and boundary_sigmas is not None:
            raise StageError(
                "boundaries (fractions of the steps) and boundary_sigmas (noise levels) were both "
                "given: keep one of them"
            )
        roles = [known[letter] for letter in stages]
        by_sigma = boundary_sigmas is not None
        name = "boundary_sigmas" if by_sigma else "boundaries"
        edges = _numbers(name, boundary_sigmas if by_sigma else boundaries)
        if not edges and len(set(roles)) == 1:
            return cls((Stage(roles[0]),))
        if len(edges) != len(roles) - 1:
            raise StageError(
                f"stages {stages!r} needs {len(roles) - 1} {name}, one between each two letters; "
                f"got {len(edges)}: {edges}"
            )
        ends = [*edges, None]
        if by_sigma:
            return cls(tuple(Stage(r, until_sigma=e) for r, e in zip(roles, ends, strict=True)))
        return cls(tuple(Stage(r, until=e) for r, e in zip(roles, ends, strict=True)))

    def to_document(self) -> list[dict[str, Any]]:
        """The stages as plain JSON values, without what is left at its default."""
        return [stage.to_document() for stage in self.stages]

    @classmethod
    def from_document(cls, document: Iterable[Mapping[str, Any]]) -> StageSchedule:
        """Read ``to_document``'s values.

        Raises:
            StageError: They make no schedule.
        """
        return cls(tuple(Stage.from_document(stage) for stage in document))

    @classmethod
    def from_denoisers(cls, denoisers: Sequence[str]) -> StageSchedule:
        """Make the schedule that gives every step its denoiser: a stage for each run of equal ones.

        Args:
            denoisers: The role of each step, such as ``("large", "large", "small")``.

        Raises:
            StageError: There is no step.
        """
        runs = [(role, len(list(group))) for role, group in itertools.groupby(denoisers)]
        ends = [end / len(denoisers) for end in itertools.accumulate(count for _, count in runs)]
        return cls(
            tuple(
                Stage(role, end)
                for (role, _), end in zip(runs, [*ends[:-1], None][: len(runs)], strict=True)
            )
        )

    @property
    def boundaries(self) -> tuple[float, ...] | None:
        """Stage ends as fractions of the steps, or None where they are noise levels."""
        if self._ends_at_levels:
            return None
        return tuple(s.until for s in self.stages[:-1] if s.until is not None)

    @property
    def boundary_sigmas(self) -> tuple[float, ...] | None:
        """Stage ends as noise levels, or None where they are fractions of the steps."""
        if not self._ends_at_levels:
            return None
        return tuple(s.until_sigma for s in self.stages[:-1] if s.until_sigma is not None)

    def __str__(self) -> str:
        ends = self._ends
        kind = " sigmas" if self._ends_at_levels else ""
        told = f"{self.letters}{kind} {ends}" if ends else self.letters
        return told if self.num_inference_steps is None else f"{told} in {self._counts} steps"

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps of stages that have their own, or None where a call gives it."""
        counts = [s.steps for s in self.stages if s.steps is not None]
        return sum(counts) if counts else None

    @property
    def needs_noise_levels(self) -> bool:
        """Whether step indices depend on the scheduler: stages end at levels of a shared grid."""
        return self._ends_at_levels and self.num_inference_steps is None

    @property
    def _ends_at_levels(self) -> bool:
        return any(s.until_sigma is not None for s in self.stages)

    @property
    def _counts(self) -> str:
        """The stages' own steps in words: ``"25 + 15"``."""
        return " + ".join(str(s.steps) for s in self.stages)

    @property
    def roles(self) -> tuple[str, ...]:
        """The distinct roles, in order of appearance."""
        return tuple(dict.fromkeys(s.denoiser for s in self.stages))

    @property
    def letters(self) -> str:
        """The schedule as a stage string, such as ``"LSL"``."""
        return letters(s.denoiser for s in self.stages)

    @property
    def is_spelt(self) -> bool:
        """Whether letters and boundaries say everything, so that ``parse`` makes it again."""
        known = set(self.roles) <= set(LETTERS.values())
        return known and self == StageSchedule.parse(
            self.letters, self.boundaries, self.boundary_sigmas
        )

    @property
    def _ends(self) -> tuple[float, ...]:
        return (self.boundary_sigmas if self._ends_at_levels else self.boundaries) or ()

    def edges(
        self, num_inference_steps: int, noise_levels: Sequence[float] | None = None
    ) -> tuple[int, ...]:
        """Map stage ends to step indices: stage k runs steps ``edges[k]`` to ``edges[k+1]-1``.

        The one place where fractions or noise levels become step indices.

        Args:
            num_inference_steps: Number of steps n of the full trajectory, at least 1.
            noise_levels: For boundaries in sigma: the level of each step, ``timesteps[i] /
                num_train_timesteps``, n numbers from 1 to 0.

        Returns:
            ``len(stages) + 1`` indices from 0 to n. Equal neighbours are a stage without a step.

        Raises:
            StageError: n is below 1, or isn't the sum of the stages' own steps; or noise levels
                are needed and missing or miscounted.
        """
        n = num_inference_steps
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise StageError(f"num_inference_steps must be a whole number of at least 1, got {n!r}")
        own = self.num_inference_steps
        if own is not None:
            if n != own:
                is_sum = f"{self._counts} = {own}" if len(self.stages) > 1 else f"{own}"
                raise StageError(
                    f"num_inference_steps is {n}, and the stages have {is_sum} steps of their own: "
                    f"set it to {own}"
                )
            return (0, *itertools.accumulate(s.steps or 0 for s in self.stages))
        if not self.needs_noise_levels:
            inner = [math.floor(b * n + 0.5) for b in self.boundaries or ()]
            return (0, *inner, n)
        if noise_levels is None:
            raise StageError(
                "these stages end at noise levels, which steps don't have by themselves: give "
                "noise_levels, one number per step (timesteps / num_train_timesteps)"
            )
        if len(noise_levels) != n:
            raise StageError(f"expected {n} noise levels, one per step, got {len(noise_levels)}")
        # Wan's own rule: a step belongs to the earlier stage while its level >= the boundary.
        inner = [sum(1 for level in noise_levels if level >= b) for b in self.boundary_sigmas or ()]
        return (0, *itertools.accumulate(inner, max), n)

    def denoisers(
        self, num_inference_steps: int, noise_levels: Sequence[float] | None = None
    ) -> tuple[str, ...]:
        """Name the denoiser of every step.

        Args:
            num_inference_steps: Number of steps n of the full trajectory, at least 1.
            noise_levels: See ``edges``; needed for boundaries in sigma only.

        Returns:
            n role names, such as ``("large", "large", "small")``.

        Raises:
            StageError: See ``edges``; or no denoiser runs the first step.
        """
        return tuple(
            self.stages[index].denoiser
            for index in self.stage_indices(num_inference_steps, noise_levels)
        )

    def stage_indices(
        self, num_inference_steps: int, noise_levels: Sequence[float] | None = None
    ) -> tuple[int, ...]:
        """Index of the stage of every step; arguments and errors as in ``denoisers``."""
        edges = self.edges(num_inference_steps, noise_levels)
        found = tuple(
            index
            for index, (start, end) in enumerate(itertools.pairwise(edges))
            for _ in range(end - start)
        )
        if self.stages[found[0]].is_extrapolated:
            raise StageError(
                f"at {num_inference_steps} steps the first one falls into stage {found[0] + 1} of "
                f"{self.letters}, which is extrapolated, and no denoiser has run that it could go "
                "by: let an earlier stage end later, or run more steps"
            )
        return found

    def empty_stages(
        self, num_inference_steps: int, noise_levels: Sequence[float] | None = None
    ) -> tuple[int, ...]:
        """List the stages that get no step at this number of steps, which is legal."""
        edges = self.edges(num_inference_steps, noise_levels)
        return tuple(i for i, (start, end) in enumerate(itertools.pairwise(edges)) if start == end)

    def describe(
        self, num_inference_steps: int, noise_levels: Sequence[float] | None = None
    ) -> str:
        """Say in plain words who runs what: ``"steps 0-19 large, 20-39 small, 40-49 large"``.

        Stages that change very often are given as letters, one a step.
        """
        edges = self.edges(num_inference_steps, noise_levels)
        if len(self.stages) > _MOST_IN_WORDS and not any(
            s.describe_settings() for s in self.stages
        ):
            roles = self.denoisers(num_inference_steps, noise_levels)
            counts = ", ".join(f"{roles.count(role)} {role}" for role in dict.fromkeys(roles))
            return f"{counts}: {letters(roles)}"
        parts = []
        for stage, (start, end) in zip(self.stages, itertools.pairwise(edges), strict=True):
            settings = stage.describe_settings()
            who = f"{stage.denoiser} ({settings})" if settings else stage.denoiser
            if start == end:
                parts.append(f"no step {who}")
            elif end - start == 1:
                parts.append(f"{start} {who}")
            else:
                parts.append(f"{start}-{end - 1} {who}")
        prefix = "step " if num_inference_steps == 1 else "steps "
        return prefix + ", ".join(parts)


def letters(roles: Iterable[str]) -> str:
    """Abbreviate role names, one letter each: ``("large", "small")`` becomes ``"LS"``."""
    return "".join(role[0].upper() for role in roles)


def stage_letters(names: Sequence[str]) -> dict[str, str]:
    """Give each further denoiser's stage letter: its initial, where no other name has that."""
    initials = [name[:1].upper() for name in names]
    return {
        letter: name
        for letter, name in zip(initials, names, strict=True)
        if letter not in LETTERS and initials.count(letter) == 1
    }


def _numbers(name: str, edges: Iterable[float] | None) -> list[float]:
    """Take boundaries from any sequence, numpy's included, as a list of numbers."""
    if edges is None:
        return []
    if isinstance(edges, (str, int, float)) or not isinstance(edges, Iterable):
        raise StageError(f"{name} must be a sequence of numbers such as (0.4, 0.8), got {edges!r}")
    return [edge.item() if hasattr(edge, "item") else edge for edge in edges]
