"""What ran is observed on the modules, whoever shares them, and whoever else calls them."""

from __future__ import annotations

import asyncio
import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from diffusers.callbacks import PipelineCallback
from peft import LoraConfig
from tiny import SCHEDULERS, ForwardRecorder, ltx_denoiser, ltx_pipe, run_ltx, run_wan
from tiny import wan_denoiser as denoiser
from tiny import wan_pipe as pipe_of

from flowblend_plugin import (
    Adapter,
    Cache,
    DenoiserSwitch,
    Stage,
    StageHook,
    StageSchedule,
    SwitchError,
)

LSL = StageSchedule.parse("LSL", boundaries=(0.4, 0.8))
LSEL = StageSchedule.parse("LSEL", boundaries=(0.3, 0.5, 0.7))


def guided(scale: float | None) -> StageSchedule:
    return StageSchedule(
        (Stage("large", 0.34), Stage("small", 0.67, guidance_scale=scale), Stage("large"))
    )


def small() -> Any:
    return denoiser(layers=1, heads=1, seed=1)


def blended(stages: StageSchedule, module: Any, callback: Any = None, **call: Any) -> Any:
    pipe = pipe_of()
    with DenoiserSwitch(pipe, module, stages):
        return run_wan(pipe, callback_on_step_end=callback, **call)


def traces(*modules: Any) -> list[bool]:
    return ["_compiled_call_impl" in vars(module) for module in modules]


# Who calls.


def made(pipe: Any, how: str) -> Any:
    parts = pipe.components
    other = WanPipeline(**parts) if how == "components" else WanPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("how", ["components", "from_pipe"])
@pytest.mark.parametrize("passes_the_callback", [False, True])
def test_another_pipe_of_the_same_components_is_refused_at_its_start(
    how: str, passes_the_callback: bool
) -> None:
    pipe, module = pipe_of(), small()
    expected = run_wan(pipe_of())
    ran = ForwardRecorder(large=pipe.transformer, small=module)
    with DenoiserSwitch(pipe, module, LSL) as switch:
        other = made(pipe, how)
        with pytest.raises(SwitchError, match="another WanPipeline uses the scheduler"):
            run_wan(other, **{"callback_on_step_end": switch} if passes_the_callback else {})
        assert ran.roles == []
        other.scheduler = SCHEDULERS["euler"]()
        assert torch.equal(run_wan(other), expected)
        ran.roles.clear()
        run_wan(pipe)
        assert ran.per_step() == tuple(switch.denoisers_run) == LSL.denoisers(6)


def test_a_scheduler_set_in_the_block_is_refused_and_stays() -> None:
    pipe, scheduler = pipe_of(), SCHEDULERS["unipc"]()
    with DenoiserSwitch(pipe, small(), LSL):
        pipe.scheduler = scheduler
        with pytest.raises(SwitchError, match=r"replaced .* by a UniPCMultistepScheduler"):
            run_wan(pipe)
    assert pipe.scheduler is scheduler
    run_wan(pipe)


@pytest.mark.parametrize("how", ["another", "compiled"])
def test_a_denoiser_set_in_the_block_is_refused_at_the_start_and_stays(how: str) -> None:
    pipe = pipe_of()
    new = denoiser(seed=5) if how == "another" else torch.compile(pipe.transformer, backend="eager")
    with DenoiserSwitch(pipe, small(), LSL) as switch:
        pipe.transformer = new
        with pytest.raises(SwitchError, match=r"pipe\.transformer was replaced"):
            run_wan(pipe)
        assert switch.denoisers_run == []
    assert pipe.transformer is new


def test_a_denoiser_set_after_a_forgotten_switch_stays() -> None:
    pipe, new, module = pipe_of(), denoiser(seed=5), small()
    large, switch = pipe.transformer, DenoiserSwitch(pipe, module, "SL", (0.5,))
    pipe.scheduler.set_timesteps(4)
    assert pipe.transformer is module
    del switch
    gc.collect()
    with DenoiserSwitch(pipe, module, LSL):
        assert pipe.transformer is large
    switch = DenoiserSwitch(pipe, module, LSL)
    pipe.transformer = new
    del switch
    gc.collect()
    with DenoiserSwitch(pipe, module, LSL):
        assert pipe.transformer is new


@pytest.mark.parametrize("what", ["another", "the large one"])
def test_a_denoiser_set_in_mid_trajectory_is_refused_at_that_step(what: str) -> None:
    pipe = pipe_of()
    new = denoiser(seed=5) if what == "another" else pipe.transformer

    def replace(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if index == 3:
            pipe.transformer = new
        return kwargs

    with DenoiserSwitch(pipe, small(), LSL) as switch:
        with pytest.raises(SwitchError, match=r"pipe\.transformer was replaced"):
            run_wan(pipe, callback_on_step_end=replace)
        assert len(switch.denoisers_run) == 4


class Stubborn(DiffusionPipeline):
    """A pipeline that holds on to the denoiser that it had at first, or to a copy of it."""

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.copies = False

    def __call__(self) -> torch.Tensor:
        kept = copy.copy(self.transformer) if self.copies else self.transformer
        return own_loop(self, lambda: kept)


def test_a_pipeline_that_holds_on_to_a_denoiser_is_told_so() -> None:
    pipe = Stubborn(denoiser(), SCHEDULERS["euler"]())
    with DenoiserSwitch(pipe, small(), LSL) as switch:
        told = "step 2 was planned for the small denoiser, in transformer, and this Stubborn called"
        with pytest.raises(SwitchError, match=f"^{told} the large one: it keeps"):
            pipe()
        assert switch.denoisers_run == ["large"] * 2
        pipe.copies = True
        with pytest.raises(
            SwitchError, match=r"step 0 was planned for the large denoiser, in .* called none: it"
        ):
            pipe()


def test_a_pipeline_whose_steps_another_one_runs_is_refused_by_name() -> None:
    class Combined(WanPipeline):
        """As diffusers' combined pipelines, which make one for each part of their work."""

    pipe = pipe_of()
    outer = Combined(**pipe.components)
    outer.decoder_pipe = pipe
    with pytest.raises(SwitchError, match=r"attach the switch to pipe\.decoder_pipe"):
        DenoiserSwitch(outer, small(), LSL)
    with DenoiserSwitch(outer.decoder_pipe, small(), LSL):
        pass


def test_one_pipe_in_two_threads_is_refused() -> None:
    pipe = pipe_of()
    stopped: list[bool] = []

    def intrude() -> None:
        with pytest.raises(InterruptedError):
            run_wan(pipe, callback_on_step_end=stop)
        stopped.append(True)

    def stop(*_: Any) -> Any:
        raise InterruptedError

    def during(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        return kwargs

    with (
        DenoiserSwitch(pipe, small(), LSL),
        pytest.raises(SwitchError, match="begun in another thread"),
    ):
        run_wan(pipe, callback_on_step_end=during)
    assert stopped == [True]


# Shared modules.


@pytest.mark.parametrize("stages", [guided(5.0), LSEL, LSL], ids=["guidance", "E", "plain"])
@pytest.mark.parametrize("other_has_a_switch", [False, True])
def test_a_pipe_called_in_anothers_callback_may_share_its_modules(
    stages: StageSchedule, other_has_a_switch: bool
) -> None:
    module = small()
    expected = blended(stages, module)
    other = pipe_of(transformer=denoiser(seed=3) if other_has_a_switch else module)

    def run_other(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if other_has_a_switch:
            with DenoiserSwitch(other, module, guided(7.0)) as switch:
                run_wan(other, steps=3, num_frames=9)
            assert switch.denoisers_run == ["large", "small", "large"]
        else:
            run_wan(other, steps=1, guidance_scale=1.0, num_frames=9)
        return kwargs

    assert torch.equal(blended(stages, module, run_other), expected)


def test_what_a_callback_asks_a_denoiser_isnt_a_step_of_the_pipe() -> None:
    module, large = small(), denoiser()
    inputs = {
        "hidden_states": torch.zeros(1, 4, 2, 4, 4),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.zeros(1, 4, 8),
    }

    class Asks(PipelineCallback):
        tensor_inputs: list[str] = []  # noqa: RUF012

        def callback_fn(self, pipe: Any, index: Any, timestep: Any, kwargs: Any) -> Any:
            large(**inputs)
            module(**inputs)
            return kwargs

    def ask(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        return Asks().callback_fn(pipe, index, timestep, kwargs)

    expected = blended(guided(5.0), module)
    for callback in (ask, Asks()):
        pipe = pipe_of(transformer=large)
        with DenoiserSwitch(pipe, module, guided(5.0)):
            assert torch.equal(run_wan(pipe, callback_on_step_end=callback), expected)
    pipe = pipe_of(transformer=large)
    asked: list[int] = []

    def on_step(index: int, role: str) -> None:
        large(**inputs)
        asked.append(index)

    with DenoiserSwitch(pipe, module, guided(5.0), on_step=on_step):
        assert torch.equal(run_wan(pipe), expected)
    assert asked == list(range(6))


def own_loop(pipe: Any, model: Callable[[], Any]) -> torch.Tensor:
    """A denoising loop of the user's own, with the pipe's scheduler."""
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            velocity = model()(latents, t.expand(1), embeds, return_dict=False)[0]
            latents = pipe.scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


def test_a_loop_of_ones_own_is_observed_too() -> None:
    pipe, module = pipe_of(), small()
    other, theirs = pipe_of(), ltx_pipe()
    with DenoiserSwitch(pipe, module, LSEL) as switch, DenoiserSwitch(other, module, LSL):
        expected = own_loop(pipe, lambda: pipe.transformer)
        assert switch.denoisers_run == list(LSEL.denoisers(5))
        found: list[torch.Tensor] = []

        def within(*args: Any) -> Any:
            found.append(own_loop(pipe, lambda: pipe.transformer))
            return args[-1]

        with DenoiserSwitch(theirs, ltx_denoiser(layers=1), LSL):
            run_ltx(theirs, steps=2, callback_on_step_end=within)
        run_wan(other, steps=2, callback_on_step_end=within)
        assert [torch.equal(one, expected) for one in found] == [True] * 4
        kept = pipe.transformer
        with pytest.raises(SwitchError, match=r"pipe\.transformer|called the large one"):
            own_loop(pipe, lambda: kept)


# Servers.


@contextmanager
def hasty_threads() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_a_server_serves_a_hundred_requests_with_shared_denoisers() -> None:
    pipe, module = pipe_of(transformer=denoiser(layers=1)), small()
    kinds = [(guided(5.0), 3.0), (LSEL, 3.0), (guided(None), 1.0), (LSL, 4.0)]

    def serve(number: int) -> torch.Tensor:
        stages, scale = kinds[number % len(kinds)]
        mine = copy.copy(pipe)
        mine.scheduler = copy.deepcopy(pipe.scheduler)
        with DenoiserSwitch(mine, module, stages) as switch:
            latents = run_wan(mine, steps=4, guidance_scale=scale)
        assert switch.denoisers_run == list(stages.denoisers(4))
        return latents

    expected = [serve(number) for number in range(len(kinds))]

    async def serve_all() -> list[torch.Tensor]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(4) as pool:
            return await asyncio.gather(
                *(loop.run_in_executor(pool, serve, number) for number in range(100))
            )

    with hasty_threads():
        found = asyncio.run(serve_all())
    wrong = [n for n, one in enumerate(found) if not torch.equal(one, expected[n % len(kinds)])]
    assert wrong == []
    assert pipe.transformer is not module
    assert traces(pipe.transformer, module) == [False, False]


def test_what_a_stage_sets_on_a_shared_module_is_for_one_pipe_at_a_time() -> None:
    module, other = small(), pipe_of(transformer=denoiser(seed=3))
    cached = StageSchedule((Stage("small", cache=Cache.of("mag", {"mag_ratios": (1.0,) * 6})),))
    said: list[str] = []

    def run_other(pipe: Any, index: int, timestep: Any, kwargs: Any) -> Any:
        if index == 5:  # the stage is over when the last step's callback runs
            return kwargs
        other.transformer = module
        with pytest.raises(SwitchError, match="is shared with a pipe in a stage that sets"):
            run_wan(other, steps=1)
        other.transformer = denoiser(seed=3)
        with (
            DenoiserSwitch(other, module, StageSchedule((Stage("small"),))),
            pytest.raises(SwitchError, match="is shared with a pipe in a stage that sets") as error,
        ):
            run_wan(other, steps=1)
        said.append(str(error.value))
        return kwargs

    pipe = pipe_of()
    with DenoiserSwitch(pipe, module, cached):
        expected = run_wan(pipe)
        assert torch.equal(run_wan(pipe, callback_on_step_end=run_other), expected)
    assert len(said) == 5
    run_wan(pipe_of(transformer=module), steps=1)


# What the place on a module is for others.


def test_nothing_stays_on_a_module() -> None:
    pipe, module = pipe_of(), small()
    first, second = pipe_of(transformer=pipe.transformer), pipe_of(transformer=pipe.transformer)
    with DenoiserSwitch(first, module, LSL):
        with DenoiserSwitch(second, module, LSL):
            assert traces(pipe.transformer, module) == [True, True]
        run_wan(first)
        assert copy.deepcopy(module)._compiled_call_impl is None
        assert not module._compiled_call_impl  # as peft asks whether it is compiled
    assert traces(pipe.transformer, module) == [False, False]
    switch = DenoiserSwitch(pipe, module, LSL)
    del switch
    gc.collect()
    assert traces(pipe.transformer, module) == [False, False]


def test_a_module_compiled_in_place_while_a_switch_is_attached_stays_compiled() -> None:
    torch._dynamo.reset()
    pipe, module, expected = pipe_of(), small(), blended(LSL, small())
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with DenoiserSwitch(pipe, module, LSL):
        module.compile(backend=backend)
        assert torch.equal(run_wan(pipe), expected)
    assert module._compiled_call_impl is not None
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("where", ["callback", "on_step"])
@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_module_compiled_within_a_call_is_observed_or_named(where: str, index: int) -> None:
    pipe, module, expected = pipe_of(), small(), blended(LSL, small())

    def act(step: int, role: str) -> None:
        if step == index:
            module.compile(backend="eager")

    def callback(pipe: Any, step: int, timestep: Any, given: Any) -> Any:
        act(step, "")
        return given

    with DenoiserSwitch(pipe, module, LSL, on_step=act if where == "on_step" else None) as switch:
        if where == "on_step" or index == 5:  # the last callback comes after the last step
            call = callback if where == "callback" else None
            assert torch.equal(run_wan(pipe, callback_on_step_end=call), expected)
            assert switch.denoisers_run == list(switch.denoisers)
        else:
            with pytest.raises(SwitchError, match="compiled in place"):
                run_wan(pipe, callback_on_step_end=callback)
    assert module._compiled_call_impl is not None
    torch._dynamo.reset()


def test_a_loop_that_hops_between_threads_is_told_to_stay_in_one() -> None:
    pipe = pipe_of()

    def steps() -> Iterator[torch.Tensor]:
        latents, embeds = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 8)
        pipe.scheduler.set_timesteps(6)
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                velocity = pipe.transformer(latents, t.expand(1), embeds, return_dict=False)[0]
            yield (latents := pipe.scheduler.step(velocity, t, latents, return_dict=False)[0])

    with DenoiserSwitch(pipe, small(), LSL) as switch:
        with ThreadPoolExecutor(1) as pool:
            loop = steps()
            for _ in range(6):
                pool.submit(next, loop).result()
        assert switch.denoisers_run == list(LSL.denoisers(6))
        loop = steps()
        next(loop)
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(SwitchError, match=r"max_workers=1"),
        ):
            pool.submit(next, loop).result()


def test_a_module_may_be_seen_by_one_pipe_and_compiled_by_another() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    module, plain = small(), pipe_of()
    plain.transformer = torch.compile(module, backend=backend)
    pipe = pipe_of()
    with DenoiserSwitch(pipe, module, LSL), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            run_wan(pipe, steps=5)
            run_wan(plain, steps=2)
    run_wan(plain, steps=2)
    assert len(graphs) == 1
    torch._dynamo.reset()


class Listens(StageHook):
    """Counts what this switch's own pipe ran, and answers in the third step."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.step = 0

    def begin_step(self, step: Any) -> None:
        self.step = step.index

    def denoiser_answer(self, call: Any) -> Any:
        return (torch.zeros_like(call.kwargs["hidden_states"]),) if self.step == 2 else None

    def denoiser_ran(self, call: Any, output: Any) -> None:
        self.ran.append((self.step, call.module, output[0].shape))


def test_a_hook_hears_and_answers_the_calls_of_its_own_pipe() -> None:
    pipe, module, hook = pipe_of(), small(), Listens()
    computed = ForwardRecorder(large=pipe.transformer, small=module)
    with DenoiserSwitch(pipe, module, LSL, hooks=[hook]):
        run_wan(pipe, steps=5)
    modules = {"large": pipe.transformer, "small": module}
    assert [step for step, *_ in hook.ran] == [0, 0, 1, 1, 3, 3, 4, 4]
    assert [one for _, one, _ in hook.ran] == [modules[role] for role in computed.roles]


# Moved or cast since.


def test_a_pipe_that_is_cast_after_attaching_is_refused_before_its_first_step() -> None:
    pipe, module = pipe_of(), small()
    with DenoiserSwitch(pipe, module, LSL) as switch:
        pipe.to(torch.bfloat16)
        with pytest.raises(
            SwitchError, match=r"dtype: large torch\.bfloat16, small torch\.float32"
        ):
            run_wan(pipe)
        assert switch.denoisers_run == []
        module.to(torch.bfloat16)
        run_wan(pipe)
    with DenoiserSwitch(pipe, module, "LLL", boundaries=(0.4, 0.8)):
        pipe.to(torch.float32)
        run_wan(pipe)  # nobody runs the other one


# Late starts.


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_late_start_that_nothing_announced_is_known_before_the_first_step(name: str) -> None:
    large, module = denoiser(), small()
    pipe = WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=large, scheduler=SCHEDULERS[name]()
    )
    pipe.set_progress_bar_config(disable=True)
    ran = ForwardRecorder(large=large, small=module)
    embeds = torch.zeros(1, 4, 8)
    with DenoiserSwitch(pipe, module, LSL) as switch:
        pipe(
            video=None, latents=torch.zeros(1, 4, 2, 4, 4), strength=0.5, num_inference_steps=10,
            height=32, width=32, prompt_embeds=embeds, negative_prompt_embeds=embeds,
            output_type="latent",
        )  # fmt: skip
        assert pipe.transformer is large
    planned = ("small",) * 3 + ("large",) * 2
    assert tuple(switch.denoisers_run) == planned
    assert ran.per_step(4 if name == "heun" else 2) == planned


def cogvideox(layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    return CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=8, num_layers=layers, sample_width=4, sample_height=4,
        sample_frames=5, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=4,
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "scheduler", [CogVideoXDDIMScheduler, DDIMScheduler, DDPMScheduler, PNDMScheduler]
)
def test_solvers_that_count_no_steps_start_late_too(scheduler: Any) -> None:
    large, module = cogvideox(2, 0), cogvideox(1, 1)
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe = CogVideoXVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=large, scheduler=scheduler(**more)
    )
    pipe.set_progress_bar_config(disable=True)
    ran = ForwardRecorder(large=large, small=module)
    with DenoiserSwitch(pipe, module, LSL) as switch:
        pipe(
            video=None, latents=torch.zeros(1, 2, 4, 4, 4), strength=0.5, num_inference_steps=10,
            height=32, width=32, prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1.0,
            output_type="latent",
        )  # fmt: skip
        assert pipe.transformer is large
    assert ran.per_step(1) == tuple(switch.denoisers_run)
    steps = 11 if scheduler is PNDMScheduler else 10
    assert tuple(switch.denoisers_run) == LSL.denoisers(steps)[5:]


def test_a_stage_begins_to_set_nothing_while_another_pipe_is_within_a_call() -> None:
    shared = denoiser(layers=1, seed=3)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    shared.add_adapter(config, adapter_name="x")
    shared.disable_adapters()
    plain = run_wan(pipe_of(transformer=shared))
    inside, on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        if threading.current_thread().name == "other" and not inside.is_set():
            inside.set()
            assert on.wait(30)

    handle = shared.blocks[0].register_forward_pre_hook(wait)
    found: list[torch.Tensor] = []
    other = threading.Thread(
        target=lambda: found.append(run_wan(pipe_of(transformer=shared))), name="other"
    )

    def start(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            other.start()
            assert inside.wait(30)
        return given

    stages = StageSchedule(
        (Stage("large", 0.4), Stage("small", 0.8, adapters=(Adapter("x"),)), Stage("large"))
    )
    pipe = pipe_of()
    try:
        with DenoiserSwitch(pipe, shared, stages):
            with pytest.raises(SwitchError, match="another call that runs it at this moment"):
                run_wan(pipe, callback_on_step_end=start)
            on.set()
            other.join()
    finally:
        on.set()
        handle.remove()
    assert torch.equal(found[0], plain)


def test_a_callback_that_frees_offloaded_models_ends_nothing() -> None:
    def free(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe.maybe_free_model_hooks()
        return given

    pipe = pipe_of()
    with DenoiserSwitch(pipe, small(), "LSL", (0.4, 0.8)) as switch:
        found = run_wan(pipe, callback_on_step_end=free)
        assert switch.denoisers_run == list(switch.denoisers)
        assert torch.equal(found, run_wan(pipe))


def test_numbers_that_overflow_are_the_pipelines_own() -> None:
    broken = small()
    with torch.no_grad():
        broken.proj_out.weight.fill_(float("nan"))
    assert blended(guided(5.0), broken).isnan().all()


@pytest.mark.skipif(bool(sys.gettrace() or sys.getprofile()), reason="a debugger holds frames")
def test_what_a_pipeline_deletes_is_freed_before_its_call_ends() -> None:
    class Frugal(type(pipe_of())):  # type: ignore[misc]
        def __call__(self, **given: Any) -> Any:
            large = torch.zeros(1000)
            seen = weakref.ref(large)
            found = self._loop(given)
            del large
            self.is_freed = seen() is None
            return found

        def _loop(self, given: dict[str, Any]) -> Any:
            return run_wan(super().__call__, **given)

    pipe = pipe_of()
    frugal = Frugal(**pipe.components)
    frugal.set_progress_bar_config(disable=True)
    with DenoiserSwitch(frugal, small(), "LSL", (0.4, 0.8)):
        frugal()
    assert frugal.is_freed


def test_a_denoiser_answers_for_itself_after_a_call_that_failed_in_an_extrapolated_stage() -> None:
    def fail(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise RuntimeError("on purpose")
        return given

    pipe = pipe_of()
    switch = DenoiserSwitch(pipe, small(), "LEL", (0.4, 0.8))
    with pytest.raises(RuntimeError, match="on purpose"):
        run_wan(pipe, callback_on_step_end=fail)
    inputs = {
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 4, 8),
        "return_dict": False,
    }
    with torch.no_grad():
        first, second = (
            pipe.transformer(hidden_states=torch.randn(1, 4, 2, 4, 4), **inputs)[0] for _ in "ab"
        )
    assert not torch.equal(first, second)
    switch.detach()
