"""What stages must be together to make a schedule. Pure Python."""

from __future__ import annotations

from flowblend_plugin.errors import StageError
from flowblend_plugin.stages.stage import SOLVERS, Stage


def check_stages(stages: tuple[Stage, ...]) -> None:
    """Check that stages make a schedule together.

    Their ends are all fractions ascending in [0, 1], or all noise levels descending; all have steps
    of their own, or none has; extrapolated ones have something to go by, and set nothing.

    Raises:
        StageError: They don't.
    """
    if not stages:
        raise StageError("a schedule needs at least one stage, got none")
    _check_steps(stages)
    *inner, last = stages
    if last.until is not None or last.until_sigma is not None:
        raise StageError("the last stage ends with the trajectory: leave its until out")
    for stage in inner:
        if (stage.until is None) == (stage.until_sigma is None):
            raise StageError(
                f"every stage but the last needs exactly one end, until or until_sigma; got {stage}"
            )
    fractions = [s.until for s in inner if s.until is not None]
    sigmas = [s.until_sigma for s in inner if s.until_sigma is not None]
    if fractions and sigmas:
        raise StageError(
            "stage ends mix fractions (until) and noise levels (until_sigma): keep one"
        )
    _check_edges("boundaries", fractions, "ascending", sorted(fractions))
    _check_edges("boundary_sigmas", sigmas, "descending", sorted(sigmas, reverse=True))
    _check_extrapolated(stages)


def _check_steps(stages: tuple[Stage, ...]) -> None:
    """Raise unless all stages have steps of their own, between noise levels, or none has."""
    for number, stage in enumerate(stages, 1):
        steps, solver = stage.steps, stage.scheduler
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
            raise StageError(f"steps of stage {number} must be a whole number, got {steps!r}")
        if steps is not None and steps < 1:
            raise StageError(f"steps of stage {number} must be at least 1, got {steps}")
        if solver is not None and solver not in SOLVERS:
            raise StageError(
                f"scheduler of stage {number} must be one of {', '.join(SOLVERS)}, got {solver!r}"
            )
        if solver is not None and steps is None:
            raise StageError(
                f"stage {number} has scheduler {solver!r} and no steps of its own: give every "
                "stage steps, and every one but the last until_sigma"
            )
    without = [number for number, stage in enumerate(stages, 1) if stage.steps is None]
    if len(without) == len(stages):
        return
    if without:
        raise StageError(
            f"stage {without[0]} has no steps and others have: give every stage steps, or none"
        )
    levels = [stage.until_sigma for stage in stages[:-1]]
    for number, level in enumerate(levels, 1):
        if level is None or not 0 < level < 1 or level in levels[: number - 1]:
            raise StageError(
                f"stage {number} has steps of its own, so it needs until_sigma, a noise level "
                f"between 1 and 0 below that of the stage before; got {level}"
            )


def _check_extrapolated(stages: tuple[Stage, ...]) -> None:
    """Raise unless extrapolated stages have something to go by, and set nothing."""
    if stages[0].is_extrapolated:
        raise StageError(
            "the first stage can't be extrapolated, because no denoiser has run yet that it could "
            "go by: begin with another denoiser, such as L"
        )
    for number, stage in enumerate(stages, 1):
        if stage.is_extrapolated and stage.settings:
            raise StageError(
                f"stage {number} is extrapolated and sets {', '.join(stage.settings)}, but "
                "no denoiser runs there: leave that out"
            )


def _check_edges(name: str, edges: list[float], order: str, wanted: list[float]) -> None:
    for edge in edges:
        number = isinstance(edge, (int, float)) and not isinstance(edge, bool)
        if not number or not 0 <= edge <= 1:
            raise StageError(f"{name} must be numbers from 0 to 1, got {edge!r} in {edges}")
    if edges != wanted:
        raise StageError(f"{name} must be {order}, got {edges}; did you mean {wanted}?")
