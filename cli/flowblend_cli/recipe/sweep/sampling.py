"""Sampling of one combination: [sampling] checked against what is known of the pipeline offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowblend_cli.jobs import SamplingSpec
from flowblend_cli.models.registry import KnownPair
from flowblend_cli.models.solvers import CLASSIC_SOLVERS, NoiseKind
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.blend import Blend
from flowblend_cli.recipe.sweep.combinations import Combination
from flowblend_plugin.stages import EXTRAPOLATED

NOT_STOCHASTIC = ("unipc", "heun", "deis", "dpmpp_2m_karras")
_FIXED_BY_SHIFT = ("flow_shift", "sigma_max")


@dataclass(frozen=True)
class Sampler:
    """What is known of a pipeline's own sampling.

    Args:
        name: The pipeline as the recipe names it.
        pair: The known pair that it belongs to, if any.
        own: Its own solver, where that is known offline.
        kind: Whether its noise levels are those of flow matching; None where that shows only when
            it is loaded.
    """

    name: str = ""
    pair: KnownPair | None = None
    own: str | None = None
    kind: NoiseKind | None = None


def check_sampling(
    values: dict[str, Any] | None,
    sampler: Sampler,
    combination: Combination,
    modes: frozenset[str],
    problems: Problems,
) -> SamplingSpec | None:
    """Make the sampling of one combination; None, and its problems, where that isn't possible.

    Args:
        values: Keys of [sampling] with the combination's values; None where the table is broken.
        sampler: The pipeline.
        combination: The combination.
        modes: The modes of all combinations.
        problems: Where problems go.
    """
    if values is None:
        return None
    found = [*_unfit(values, sampler)]
    if values["noise_seed"] is not None and "sde" not in modes:
        message = "is of the noise that 'sde' adds, and mode is 'ode': leave it out"
        found.append(("noise_seed", message))
    pair = sampler.pair
    if pair is not None:
        values |= {key: own for key, own in pair.sampling.items() if values[key] is None}
        if pair.flow_shift is None:
            found += _own_scheduler_kept(values, sampler, pair)
    solver = values["scheduler"] or sampler.own
    if values["mode"] == "sde" and solver in NOT_STOCHASTIC and not found:
        whose = "" if values["scheduler"] else ", the pipeline's own scheduler,"
        instead = "'euler_a'" if sampler.kind == "classic" else "'flow_match_euler' or 'dpmpp_2m'"
        message = (
            f"'sde' isn't possible: {solver}{whose} has no stochastic form; set scheduler to "
            f"{instead}"
        )
        found.append(("mode", message))
    related = ("sampling", "model")
    for key, text in found:
        problems.add(combination.path("sampling", key), text, related=related)
    return None if found else SamplingSpec(**values)


def _unfit(values: Mapping[str, Any], sampler: Sampler) -> Iterator[tuple[str, str]]:
    """Find solvers and noise levels that are for the other kind of pipelines."""
    solver = values["scheduler"]
    if sampler.kind == "flow" and solver in CLASSIC_SOLVERS:
        message = (
            f"{solver!r} is for classic pipelines, which predict noise, and {sampler.name!r} is a "
            "flow-matching one: choose 'flow_match_euler', 'dpmpp_2m' or another of its solvers"
        )
        yield "scheduler", message
    if sampler.kind != "classic":
        return
    classic = " or ".join(map(repr, CLASSIC_SOLVERS))
    if solver is not None and solver not in CLASSIC_SOLVERS:
        message = (
            f"{solver!r} is for flow matching, and {sampler.name!r} is a classic pipeline, which "
            f"predicts noise: choose {classic}, or leave it out"
        )
        yield "scheduler", message
    if sampler.pair is not None and sampler.pair.flow_shift is None:
        return  # _own_scheduler_kept speaks of these keys
    for key in _FIXED_BY_SHIFT:
        if values[key] is not None:
            message = (
                f"is of flow matching, and {sampler.name!r} is a classic pipeline, which predicts "
                "noise: leave it out"
            )
            yield key, message


def _own_scheduler_kept(
    values: Mapping[str, Any], sampler: Sampler, pair: KnownPair
) -> Iterator[tuple[str, str]]:
    """Find what a pair can't change whose noise levels only its own scheduler knows."""
    changed = [key for key in ("scheduler", *_FIXED_BY_SHIFT) if values[key] is not None]
    if sampler.kind == "classic" and values["scheduler"] is not None:
        changed.remove("scheduler")  # either of the right kind, or refused for that already
    if values["mode"] != "ode":
        changed.append("mode")
    for key in changed:
        message = (
            f"{pair.name} keeps its own scheduler ({pair.scheduler}), whose noise levels follow no "
            f"fixed shift: leave {key} out"
        )
        yield key, message


def check_one_evaluation(
    solver: str | None, blend: Blend, combination: Combination, problems: Problems
) -> None:
    """Check that extrapolated steps have a solver that asks the denoiser once a step."""
    if EXTRAPOLATED in blend.roles and solver == "heun":
        message = (
            "'heun' asks the denoiser twice a step, which extrapolated steps can't answer: set "
            f"another scheduler, or leave them out of stages {blend.letters!r}"
        )
        path = combination.path("sampling", "scheduler")
        problems.add(path, message, related=("sampling", "blend", "model"))
