"""Stage, Adapter and Cache: who runs a stretch of a trajectory, and what it sets. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flowblend_plugin.errors import StageError

# The role of steps that no denoiser runs.
EXTRAPOLATED = "extrapolated"
# Solvers that a stage may have of its own: those of flow matching, one evaluation a step.
SOLVERS = (
    "flow_match_euler",
    "unipc",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "deis",
    "sa_solver",
    "lcm",
)
_PLACE = ("denoiser", "until", "until_sigma", "steps", "scheduler")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter at work during one stage.

    Args:
        name: The adapter's name, under which its weights were loaded.
        weight: Its weight; in a ramp, that of the stage's first step.
        end_weight: Weight of the stage's last step; the steps between are interpolated linearly.
            None keeps ``weight`` throughout.
    """

    name: str
    weight: float = 1.0
    end_weight: float | None = None

    def weight_at(self, position: int, count: int) -> float:
        """The weight at step ``position`` (0-based) of a stage of ``count`` steps."""
        if self.end_weight is None or count < 2:
            return self.weight
        return self.weight + (self.end_weight - self.weight) * position / (count - 1)


@dataclass(frozen=True)
class Cache:
    """A cache that lets a denoiser skip work during one stage.

    Args:
        kind: Such as ``"first_block"`` or ``"mag"``; see ``flowblend_plugin.stage_hooks.cache``.
        options: What that cache's config takes, as sorted pairs of name and value.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> Cache:
        """A cache with its options given by name; lists become tuples."""
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return cls(kind, tuple(sorted(plain.items())))


@dataclass(frozen=True)
class Stage:
    """A stretch of the trajectory that one denoiser runs, or none.

    Args:
        denoiser: Role of the denoiser, such as ``"large"`` or ``"small"``; in ``"extrapolated"``
            steps no denoiser runs, see ``flowblend_plugin.stage_hooks.extrapolation``.
        until: Fraction of the steps, 0 to 1, at which the stage ends; None for the last stage and
            where the end is a noise level.
        until_sigma: Noise level, 1 to 0, at which the stage ends; None likewise.
        guidance_scale: Classifier-free guidance of this stage; None keeps the call's own. 1.0 runs
            no unconditional pass, where the pipeline allows that.
        adapters: LoRA adapters at work. In a schedule in which any stage names adapters, a stage
            that names none runs without; in one where no stage does, adapters aren't touched.
        cache: Cache of the denoiser in this stage; None runs every forward in full.
        attention_backend: Name of one of diffusers' attention backends; None keeps the present.
        steps: Number of steps that the stage spends from its first noise level to its end, so that
            stages have grids of their own; None where they share the trajectory's one grid.
        scheduler: Solver of a stage with ``steps``, one of ``SOLVERS``; None for the pipeline's.
    """

    denoiser: str
    until: float | None = None
    until_sigma: float | None = None
    guidance_scale: float | None = None
    adapters: tuple[Adapter, ...] = ()
    cache: Cache | None = None
    attention_backend: str | None = None
    steps: int | None = None
    scheduler: str | None = None

    @property
    def is_extrapolated(self) -> bool:
        """Whether no denoiser runs the stage."""
        return self.denoiser == EXTRAPOLATED

    @property
    def settings(self) -> tuple[str, ...]:
        """The fields that the stage sets besides its denoiser, its place and its solver."""
        return tuple(sorted(self.to_document().keys() - set(_PLACE)))

    def describe_settings(self) -> str:
        """What the stage sets besides its denoiser, in words; empty if nothing."""
        parts = [] if self.scheduler is None else [self.scheduler]
        if self.guidance_scale is not None:
            parts.append(f"guidance {self.guidance_scale:g}")
        for adapter in self.adapters:
            end = "" if adapter.end_weight is None else f" to {adapter.end_weight:g}"
            parts.append(f"LoRA {adapter.name} {adapter.weight:g}{end}")
        if self.cache is not None:
            parts.append(f"cache {self.cache.kind}")
        if self.attention_backend is not None:
            parts.append(f"attention {self.attention_backend}")
        return ", ".join(parts)

    def to_document(self) -> dict[str, Any]:
        """The stage as plain JSON values, without what is left at its default."""
        values = ((name, getattr(self, name)) for name in self.__match_args__)
        document: dict[str, Any] = {
            name: value for name, value in values if value is not None and value != ()
        }
        if self.adapters:
            document["adapters"] = [asdict(adapter) for adapter in self.adapters]
        if self.cache is not None:
            document["cache"] = {"kind": self.cache.kind, "options": dict(self.cache.options)}
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Stage:
        """Read ``to_document``'s values.

        Raises:
            StageError: A key is missing or unknown.
        """
        try:
            values = dict(document)
            if "adapters" in values:
                values["adapters"] = tuple(Adapter(**adapter) for adapter in values["adapters"])
            if values.get("cache") is not None:
                values["cache"] = Cache.of(values["cache"]["kind"], values["cache"]["options"])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise StageError(f"{document!r} is no stage: {error}") from error


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
