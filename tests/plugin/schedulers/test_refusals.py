"""Each refusal whole: what was found, why it can't be, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from tiny import FLOW, ltx_pipe, wan_pipe

from flowblend_plugin import DenoiserSwitch, FlowBlendScheduler, StageSchedule, wrap_scheduler
from flowblend_plugin.errors import FlowBlendError
from flowblend_plugin.schedulers.factory import FLOW_NAMES, NAMES, STOCHASTIC, make_scheduler
from flowblend_plugin.schedulers.flow_blend import agreed_stages, begin_at, make_stages
from flowblend_plugin.schedulers.sigmas import (
    PLAIN_PIPELINES,
    SigmaSegment,
    join_segments,
    noise_levels,
    start_level,
)
from flowblend_plugin.schedulers.stage_solvers import check_grid, spread_stages
from flowblend_plugin.schedulers.support import check_supported
from flowblend_plugin.stages import SOLVERS, Cache, Stage

EULER, DDIM = FlowMatchEulerDiscreteScheduler(shift=3.0), DDIMScheduler()
LSL, SL = StageSchedule.parse("LSL", (0.4, 0.8)), StageSchedule.parse("SL", (0.5,))
UNIPC = UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True, final_sigmas_type="sigma_min")
FLOWS, ALL = ", ".join(FLOW_NAMES), ", ".join(NAMES)
NO_FLOW = (
    "this pipeline's DDIMScheduler isn't a flow-matching scheduler: leave flow_shift and mode out, "
    "and keep its own or choose dpmpp_2m_karras or euler_a"
)


def begun(pipe: Any) -> Callable[[], None]:
    def begin() -> None:
        with begin_at(pipe, 200.0):
            pass

    return begin


def spread(stages: StageSchedule, scheduler: Any = EULER, iterations: int = 9) -> Any:
    scheduler.set_timesteps(5)
    return lambda: spread_stages(scheduler, stages, iterations)


AR_STEP = "frames that begin one after another (ar_step) are at steps of their own, and "
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: make_scheduler(EULER, "euler_b"),
        f"scheduler 'euler_b' can't be configured here: choose one of {ALL}",
    ),
    (
        lambda: make_scheduler(DDIM, flow_shift=3.0),
        f"scheduler 'DDIMScheduler' can't be configured here: choose one of {ALL}",
    ),
    (
        lambda: make_scheduler(EULER, "deis", mode="sde"),
        (
            "scheduler 'deis' has no stochastic form for mode 'sde': use one of "
            f"{', '.join(STOCHASTIC)}"
        ),
    ),
    (
        lambda: make_scheduler(FlowMatchHeunDiscreteScheduler(), mode="sde"),
        (
            "scheduler 'heun' has no stochastic form for mode 'sde': use one of "
            f"{', '.join(STOCHASTIC)}"
        ),
    ),
    (
        lambda: make_scheduler(EULER, "euler_a"),
        (
            "'euler_a' is for pipelines that predict noise, and this one's "
            f"FlowMatchEulerDiscreteScheduler is of flow matching: choose one of {FLOWS}"
        ),
    ),
    (
        lambda: make_scheduler(UniPCMultistepScheduler(**FLOW), "euler_a"),
        (
            "'euler_a' is for pipelines that predict noise, and this one's "
            f"UniPCMultistepScheduler is of flow matching: choose one of {FLOWS}"
        ),
    ),
    (
        lambda: make_scheduler(DDIM, "euler_a", flow_shift=2.0),
        "'euler_a' has no flow_shift: leave it out",
    ),
    (
        lambda: make_scheduler(DDIMScheduler(thresholding=True), "euler_a"),
        (
            "this pipeline's DDIMScheduler has clip_sample = True, thresholding = True, which "
            "'euler_a' would lose: leave scheduler out, and keep the pipeline's own"
        ),
    ),
    (lambda: make_scheduler(DDIM, "deis"), NO_FLOW),
    (lambda: check_grid(DDIM), NO_FLOW),
    (
        lambda: make_scheduler(FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), "deis"),
        (
            "this pipeline's FlowMatchEulerDiscreteScheduler shifts its noise levels by the size "
            "of the picture, which another solver or a fixed flow_shift would lose: leave them out"
        ),
    ),
    (
        lambda: make_scheduler(UNIPC, mode="sde", name="lcm"),
        (
            "this pipeline's UniPCMultistepScheduler has use_karras_sigmas = True, which another "
            "solver would lose: leave scheduler and mode out, and keep the pipeline's own"
        ),
    ),
    *(
        (
            lambda kind=kind: check_grid(kind(**FLOW)),
            (
                f"{kind.__name__} has a grid that can't be divided among stages or begun at a "
                f"sigma_max: choose a scheduler of {', '.join(SOLVERS)}"
            ),
        )
        for kind in (DEISMultistepScheduler, SASolverScheduler)
    ),
    (
        lambda: check_grid(UniPCMultistepScheduler(**FLOW, final_sigmas_type="sigma_min")),
        (
            "UniPCMultistepScheduler has final_sigmas_type = 'sigma_min', which stages with steps "
            "of their own and sigma_max would lose: leave them out"
        ),
    ),
    (
        lambda: FlowBlendScheduler.from_config(
            {**UniPCMultistepScheduler(thresholding=True).config, "_class_name": "UniPC"}
        ),
        (
            "FlowBlendScheduler can't carry the config of UniPC: use_flow_sigmas is "
            "off (not a flow-matching config); prediction_type = 'epsilon'; thresholding = True. "
            "Keep that scheduler and let DenoiserSwitch wrap it, or use wrap_scheduler"
        ),
    ),
    (
        lambda: FlowBlendScheduler.from_config({"prediction_type": "sample"}),
        (
            "FlowBlendScheduler can't carry the config of this scheduler: prediction_type = "
            "'sample'. Keep that scheduler and let DenoiserSwitch wrap it, or use wrap_scheduler"
        ),
    ),
    (lambda: FlowBlendScheduler(mode="SDE"), "mode must be 'ode' or 'sde', got 'SDE'"),
    (
        lambda: make_stages(None, boundaries=(0.5,)),
        (
            "boundaries belong to a stage string such as 'LSL', and stages is missing: give both "
            "as strings and numbers, or leave the boundaries out"
        ),
    ),
    (
        lambda: make_stages(LSL, boundary_sigmas=(0.5,)),
        (
            "boundaries belong to a stage string such as 'LSL', and stages is a StageSchedule, "
            "which has its own: give both as strings and numbers, or leave the boundaries out"
        ),
    ),
    (
        lambda: agreed_stages(EULER, None),
        (
            "no stages: give the switch stages (such as 'LSL' with boundaries=(0.4, 0.8)), or give "
            "the pipe a FlowBlendScheduler that has them"
        ),
    ),
    (
        lambda: agreed_stages(wrap_scheduler(EULER, LSL), SL),
        (
            f"the pipe's scheduler has stages {LSL} and the switch was given {SL}: give them in "
            "one place"
        ),
    ),
    (
        begun(ltx_pipe()),
        (
            "sigma_max isn't possible with LTXPipeline, whose first latents may hold more than "
            f"noise: leave it out, or use one of {', '.join(sorted(PLAIN_PIPELINES))}"
        ),
    ),
    (
        lambda: noise_levels("ddim", 5),
        (
            "the noise levels of scheduler 'ddim' aren't known here: use one of deis, dpmpp_2m, "
            "dpmpp_2m_sde, flow_match_euler, heun, lcm, sa_solver, unipc, or give boundaries as "
            "fractions of the steps"
        ),
    ),
    *(
        (
            lambda value=value: start_level(value),
            f"sigma_max must be a number above 0, such as 200, got {value!r}",
        )
        for value in (0, -1.5, float("inf"), float("nan"), True)
    ),
    (
        lambda: join_segments([SigmaSegment("unipc", 3, 0.6), SigmaSegment("unipc", 3)], start=0.5),
        (
            "noise levels must descend from 0.5 to 0, and the steps around 0.5 don't: move "
            "until_sigma (0.6) away from there, or give the stage fewer steps"
        ),
    ),
    (
        lambda: join_segments([SigmaSegment("flow_match_euler", 3)], start=0.0005),
        (
            "noise levels must descend from 0.0005 to 0, and the steps around 0.0005 don't: move "
            "until_sigma (none) away from there, or give the stage fewer steps"
        ),
    ),
    (
        spread(LSL, FlowMatchHeunDiscreteScheduler()),
        (
            f"{AR_STEP}FlowMatchHeunDiscreteScheduler takes two iterations a step: choose another "
            "solver"
        ),
    ),
    (
        spread(StageSchedule.parse("LS", boundary_sigmas=(0.5,))),
        f"{AR_STEP}boundary_sigmas ask for one: give boundaries, as fractions of the iterations",
    ),
    (
        spread(StageSchedule((Stage("large", cache=Cache.of("first_block", {})),))),
        f"{AR_STEP}a stage's cache counts them: leave it out",
    ),
    (
        spread(StageSchedule.parse("SL", (0.05,)), iterations=21),
        (
            f"{AR_STEP}stage 0 gets none of 5 steps, but the first of 21 iterations: let it end "
            "later, or leave it out"
        ),
    ),
    (
        lambda: wrap_scheduler(EULER, LSL).set_timesteps(5),
        (
            "this scheduler has stages (LSL) but no living DenoiserSwitch: keep the switch in a "
            "variable while the pipe runs; or, where this pipe is a copy of one that has a switch, "
            "give it a switch or a scheduler of its own"
        ),
    ),
    (
        lambda: wrap_scheduler(EULER).step(torch.zeros(1), 1.0, torch.zeros(1), colour="red"),
        (
            "this pipeline hands its scheduler colour, which FlowMatchEulerDiscreteScheduler "
            "doesn't take: choose another scheduler, or keep the pipeline's own"
        ),
    ),
]


@pytest.mark.parametrize(("refused", "says"), REFUSED, ids=range(len(REFUSED)))
def test_a_refusal_says_what_is_there_why_not_and_what_to_do(
    refused: Callable[[], Any], says: str
) -> None:
    with pytest.raises(FlowBlendError) as caught:
        refused()
    assert str(caught.value) == says


def test_what_is_harmless_isnt_refused() -> None:
    assert check_grid(EULER) == "flow_match_euler"
    assert check_grid(UniPCMultistepScheduler(**FLOW)) == "unipc"
    spread(LSL)()
    assert FlowBlendScheduler.from_config({"shift": 2.0}).shift == 2.0
    assert make_stages(None) is None
    assert make_stages(LSL) is LSL
    assert agreed_stages(wrap_scheduler(EULER, LSL), LSL) == LSL
    assert agreed_stages(EULER, LSL) is LSL
    config = DPMSolverMultistepScheduler(**FLOW).config
    assert FlowBlendScheduler.from_config(config).config.mode == "ode"
    assert make_scheduler(EULER) is EULER
    assert make_scheduler(PNDMScheduler()).config.prediction_type == "epsilon"


def test_a_switch_refuses_a_history_that_cant_be_reset() -> None:
    pipe = wan_pipe(PNDMScheduler())
    with pytest.raises(FlowBlendError, match="solver_history = 'reset' isn't possible with PNDM"):
        DenoiserSwitch(pipe, stages="LLL", solver_history="reset")


def test_a_class_that_lacks_what_stages_go_by_is_refused_by_its_name() -> None:
    class Bare:
        def step(self, model_output: Any, timestep: Any, sample: Any) -> None:
            """As schedulers have it."""

    class Silent(Bare):
        def set_timesteps(self, num_inference_steps: int) -> None:
            """As schedulers have it."""

    class Wordy(Silent):
        order = "two"

    class Sound(Silent):
        order = 2

    way_out = (
        "Give the pipe a scheduler of latents, such as FlowMatchEulerDiscreteScheduler or "
        "DDIMScheduler, or run it without a switch"
    )
    no_order = "it doesn't say how often it asks a denoiser in a step (order)"
    for kind, why in (
        (int, "it has no step of a model output, a timestep and a sample"),
        (Bare, "it has no set_timesteps"),
        (Silent, no_order),
        (Wordy, no_order),
    ):
        with pytest.raises(FlowBlendError) as caught:
            check_supported(kind)
        assert str(caught.value) == f"{kind.__name__} can't have stages: {why}. {way_out}"
    check_supported(Sound)
