"""FlowBlendScheduler, and wrap_scheduler, which gives stages to every other scheduler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from flowblend_plugin.errors import SchedulerConfigError, StageError, SwitchError
from flowblend_plugin.schedulers.factory import lost_settings
from flowblend_plugin.schedulers.noise import Seed
from flowblend_plugin.schedulers.sigmas import PLAIN_PIPELINES, start_level
from flowblend_plugin.schedulers.stage_mixin import StageMixin, with_stages
from flowblend_plugin.schedulers.stage_solvers import check_grid
from flowblend_plugin.stages import StageSchedule

AnyScheduler = TypeVar("AnyScheduler", bound=SchedulerMixin)
# Keys of a solver's config that change the trajectory and that Euler doesn't have.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "prediction_type": (None, "flow_prediction"),
    "final_sigmas_type": (None, "zero"),
    "thresholding": (None, False),
    "use_lu_lambdas": (None, False),
    "rescale_betas_zero_snr": (None, False),
    "scale_factors": (None,),
    "upscale_mode": (None, "bicubic"),
}


def make_stages(
    stages: StageSchedule | str | Sequence[Mapping[str, Any]] | None,
    boundaries: Sequence[float] | None = None,
    boundary_sigmas: Sequence[float] | None = None,
    names: Mapping[str, str] | None = None,
) -> StageSchedule | None:
    """Take stages as an object or as a string with its boundaries; None stays None.

    Raises:
        StageError: The string and the boundaries make no schedule, or boundaries stand alone.
    """
    if isinstance(stages, str):
        return StageSchedule.parse(stages, boundaries, boundary_sigmas, names)
    if boundaries is not None or boundary_sigmas is not None:
        raise StageError(
            "boundaries belong to a stage string such as 'LSL', and stages is "
            f"{'missing' if stages is None else 'a StageSchedule, which has its own'}: give both "
            "as strings and numbers, or leave the boundaries out"
        )
    if stages is None or isinstance(stages, StageSchedule):
        return stages
    return StageSchedule.from_document(stages)


def agreed_stages(scheduler: Any, stages: StageSchedule | None) -> StageSchedule:
    """Choose between the stages of a scheduler and those given to a switch: they mustn't differ.

    Raises:
        SwitchError: There are none, or they differ.
    """
    own = scheduler.stages if isinstance(scheduler, StageMixin) else None
    if own is None and stages is None:
        raise SwitchError(
            "no stages: give the switch stages (such as 'LSL' with boundaries=(0.4, 0.8)), or give "
            "the pipe a FlowBlendScheduler that has them"
        )
    if own is not None and stages is not None and own != stages:
        raise SwitchError(
            f"the pipe's scheduler has stages {own} and the switch was given {stages}: give them "
            "in one place"
        )
    chosen = stages or own
    assert chosen is not None
    return chosen


def wrap_scheduler(
    scheduler: AnyScheduler,
    stages: StageSchedule | str | None = None,
    boundaries: Sequence[float] | None = None,
    boundary_sigmas: Sequence[float] | None = None,
    seed: Seed | None = None,
) -> AnyScheduler:
    """Copy a scheduler and teach the copy to announce stages; the solver stays what it is.

    Args:
        scheduler: Any diffusers scheduler; it isn't touched. One that is wrapped already is
            wrapped anew, once.
        stages: The stages, or a stage string; None announces nothing.
        boundaries: See ``StageSchedule.parse``.
        boundary_sigmas: See ``StageSchedule.parse``.
        seed: Seed of a stochastic solver's own noise, one number (sample b of a batch then uses
            ``seed + b``) or one per sample; solvers without noise don't use it. A generator that
            ``step`` is handed goes before it. None keeps what the scheduler has.

    Returns:
        A scheduler of the same class name, config, state and save format.

    Raises:
        StageError: The stages make no schedule.
        SwitchError: It isn't a scheduler of latents, so that it can't have stages.
    """
    kind = with_stages(type(scheduler))
    wrapped = copy.deepcopy(scheduler)
    wrapped.__class__ = kind
    wrapped._copy_number, wrapped.was_copied = 0, False  # type: ignore[attr-defined]
    wrapped._stages = make_stages(stages, boundaries, boundary_sigmas)  # type: ignore[attr-defined]
    if seed is not None:
        wrapped._seed = seed  # type: ignore[attr-defined]
    return wrapped


class FlowBlendScheduler(with_stages(FlowMatchEulerDiscreteScheduler)):  # type: ignore[misc]
    """Flow-match Euler with stages in its config, deterministic or stochastic.

    Args:
        num_train_timesteps: Number of training timesteps; timestep = sigma x this.
        shift: Shift of the noise levels; above 1 spends more steps on high noise.
        stages: Stage string such as ``"LSL"``, or a StageSchedule, which the config then holds as
            its letters or, where those don't say all, as its document; None announces no stages.
        boundaries: Stage ends as fractions of the steps.
        boundary_sigmas: Stage ends as noise levels, instead of ``boundaries``.
        mode: ``"ode"`` (deterministic) or ``"sde"`` (fresh noise at every step:
            ``x0 = x - sigma v``, then ``(1 - sigma') x0 + sigma' noise``).
        seed: Seed of the SDE's noise; the same seed gives the same bits although pipelines hand
            schedulers no generator. Sample b of a batch uses ``seed + b``. None draws one for each
            trajectory, which ``seed_used`` then tells.
        **kwargs: Anything else that ``FlowMatchEulerDiscreteScheduler`` takes.

    Raises:
        SchedulerConfigError: ``mode`` is neither ``"ode"`` nor ``"sde"``.
        StageError: The stages make no schedule.

    Reference:
        Stages: FlowBlending, arXiv:2512.24724.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stages: StageSchedule | str | list[dict[str, Any]] | None = None,
        boundaries: Sequence[float] | None = None,
        boundary_sigmas: Sequence[float] | None = None,
        mode: str = "ode",
        seed: int | Sequence[int] | None = None,
    ) -> None:
        if mode not in ("ode", "sde"):
            raise SchedulerConfigError(f"mode must be 'ode' or 'sde', got {mode!r}")
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
            stochastic_sampling=mode == "sde",
        )
        self._stages = make_stages(stages, boundaries, boundary_sigmas)
        # JSON, which configs are saved as, knows lists only.
        given = {"boundaries": boundaries, "boundary_sigmas": boundary_sigmas, "seed": seed}
        spelt: dict[str, Any] = {
            name: tuple(value) for name, value in given.items() if isinstance(value, Sequence)
        }
        if isinstance(stages, StageSchedule):
            spelt["stages"] = stages.to_document()
            if stages.is_spelt:
                spelt |= {
                    "stages": stages.letters,
                    "boundaries": stages.boundaries,
                    "boundary_sigmas": stages.boundary_sigmas,
                }
        if spelt:
            # diffusers leaves values that it noted as defaults out of a round trip.
            noted = [k for k in self.config.get("_use_default_values", []) if k not in spelt]
            self.register_to_config(**spelt, _use_default_values=noted)
        self._seed = seed if mode == "sde" else None
        self._draws_seed = mode == "sde"

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        # diffusers looks its names up among its own classes.
        found: list[type] = super()._get_compatibles()
        return [cls, *found, FlowMatchEulerDiscreteScheduler]

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make the scheduler from another scheduler's config, mapping ``flow_shift`` to ``shift``.

        Args:
            config: Config of any flow-matching diffusers scheduler.
            return_unused_kwargs: As in diffusers.
            **kwargs: Values that override the config, such as ``stages`` and ``boundaries``.

        Returns:
            The scheduler.

        Raises:
            SchedulerConfigError: The config asks for what flow-match Euler doesn't have.
        """
        if isinstance(config, Mapping):
            config = _euler_config(config)
        return super().from_config(config, return_unused_kwargs, **kwargs)


def _euler_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a flow-matching scheduler's config to flow-match Euler's keys."""
    name = config.get("_class_name")
    carried = dict(config)
    problems = lost_settings(config, _REFUSED)
    # No scheduler that knows nothing but flow matching has betas.
    if "beta_start" in config and not config.get("use_flow_sigmas"):
        problems.insert(0, "use_flow_sigmas is off (not a flow-matching config)")
    if problems:
        raise SchedulerConfigError(
            f"FlowBlendScheduler can't carry the config of {name or 'this scheduler'}: "
            f"{'; '.join(problems)}. Keep that scheduler and let DenoiserSwitch wrap it, or use "
            "wrap_scheduler"
        )
    stochastic = carried.pop("stochastic_sampling", None)
    if stochastic or str(config.get("algorithm_type")).startswith("sde-"):
        carried.setdefault("mode", "sde")
    shift = carried.pop("flow_shift", None)
    if shift is not None:
        carried["shift"] = shift
    return {k: v for k, v in carried.items() if k not in _REFUSED and k != "use_flow_sigmas"}


@contextmanager
def begin_at(pipe: Any, sigma_max: float) -> Iterator[None]:
    """Let a pipeline's calls begin at the noise level ``t = sigma_max / (1 + sigma_max)``.

    Its scheduler's first level becomes t, the others are spaced from there as its solver spaces
    them, and the initial latents are t times the noise. Attach a DenoiserSwitch inside.

    Args:
        pipe: A text-to-video or text-to-picture pipeline of flow matching.
        sigma_max: Noise to begin at in EDM's convention, above 0: 200 is level 0.9950.

    Raises:
        StageError: ``sigma_max`` isn't above 0.
        SchedulerConfigError: The pipeline isn't one that this is known to hold for, or its
            scheduler isn't a flow-matching one with a fixed shift.

    Reference:
        See ``flowblend_plugin.schedulers.sigmas.start_level``.
    """
    level = start_level(sigma_max)
    if type(pipe).__name__ not in PLAIN_PIPELINES:
        raise SchedulerConfigError(
            f"sigma_max isn't possible with {type(pipe).__name__}, whose first latents may hold "
            f"more than noise: leave it out, or use one of {', '.join(sorted(PLAIN_PIPELINES))}"
        )
    check_grid(pipe.scheduler)
    own, prepare = pipe.scheduler, pipe.prepare_latents
    scheduler: Any = wrap_scheduler(own, getattr(own, "stages", None))
    scheduler._start_level = level
    pipe.scheduler = scheduler
    pipe.prepare_latents = _scaling(prepare, level)
    try:
        yield
    finally:
        del pipe.prepare_latents
        pipe.scheduler = own


def _scaling(prepare: Callable[..., Any], level: float) -> Callable[..., Any]:
    def scaled(*args: Any, **kwargs: Any) -> Any:
        found = prepare(*args, **kwargs)
        if isinstance(found, torch.Tensor):
            return found * level
        latents, *more = found
        return (latents * level, *more)

    return scaled
