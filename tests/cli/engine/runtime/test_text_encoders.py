"""Text encoders are read once a prompt has to be encoded, and change no bit by that.

The oracle is a runner that reads them at once, as diffusers does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import images, unets
from families.base import built
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from flowblend_cli.engine.executors.base import Answer, RenderFailure, RenderRequest, RenderResult
from flowblend_cli.engine.executors.child_process import ChildProcessExecutor
from flowblend_cli.engine.executors.job_runner import JobRunner
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.engine.runtime.text_encoders import AbsentEncoder, late_parts
from flowblend_cli.errors import ModelMissingError, StopRequested
from flowblend_cli.events import JobStarted, captured_events
from flowblend_cli.jobs import Job
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import ResolvedModels, resolve_models

TOKENIZER = bundled_dir() / "models" / "sprites" / "tokenizer"
WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "w", "a", "l", "k</w>", "run</w>"]
RECIPE = """\
[model]
pipeline = "./model"
[defaults]
num_inference_steps = 2
height = 32
width = 32
{more}
[blend]
stages = "L"
[[scene]]
name = "{{{{name}}}}"
prompt = "a walk"
{picture}
"""


def clip(kind: Any, hidden: int, projection: int) -> Any:
    config = CLIPTextConfig(
        hidden_size=hidden, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=projection, vocab_size=len(WORDS), max_position_embeddings=8,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return built(kind, 3, config=config)


def words() -> Any:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def t5() -> Any:
    config = T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=len(sentences())
    )
    return built(T5EncoderModel, 4, config=config)


def sentences() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def sdxl() -> Any:
    pipe = unets.sdxl_pipe()
    pipe.register_modules(
        vae=unets.tiny_vae(), tokenizer=words(), tokenizer_2=words(),
        text_encoder=clip(CLIPTextModel, 4, 4),
        text_encoder_2=clip(CLIPTextModelWithProjection, 4, 6),
    )  # fmt: skip
    return pipe


def sd3() -> Any:
    pipe = images.sd3_pipe()
    pipe.register_modules(
        vae=unets.tiny_vae(), tokenizer=words(), tokenizer_2=words(), tokenizer_3=sentences(),
        text_encoder=clip(CLIPTextModelWithProjection, 4, 3),
        text_encoder_2=clip(CLIPTextModelWithProjection, 4, 3), text_encoder_3=t5(),
    )  # fmt: skip
    pipe.vae.register_to_config(shift_factor=0.0)
    return pipe


def i2vgen() -> Any:
    pipe = unets.i2vgen_pipe()
    pipe.register_modules(tokenizer=words(), text_encoder=clip(CLIPTextModel, 8, 8))
    return pipe


class Pair:
    """A pipeline's folder, its job, and runners that render it."""

    def __init__(self, folder: Path, job: Job) -> None:
        torch.set_num_threads(1)
        self.job, self.kept = job, EmbeddingFiles(folder)
        self.models: ResolvedModels = resolve_models(job.model, folder)
        self.encoders = late_parts(Path(self.models.pipeline.folder))

    def request(self, job: Job, seed: int) -> RenderRequest:
        return RenderRequest(1, job, seed, self.models, planned="LL")

    def runner(self, *, at_once: bool = False) -> JobRunner:
        return JobRunner(lambda _: None, None, None if at_once else self.kept)

    def render(self, runner: JobRunner, job: Job, seed: int) -> RenderResult:
        answer = runner.run(self.request(job, seed), lambda: None)
        assert isinstance(answer, RenderResult), answer
        return answer

    def are_there(self, runner: JobRunner) -> list[bool]:
        assert runner._runtime is not None
        pipe = runner._runtime._pipe
        return [not isinstance(getattr(pipe, name), AbsentEncoder) for name in self.encoders]

    @contextmanager
    def without_encoders(self) -> Iterator[None]:
        """Take the text encoders' weights away for a while."""
        folder = Path(self.models.pipeline.folder)
        files = [file for name in self.encoders for file in (folder / name).glob("*.safetensors")]
        assert len(files) == len(self.encoders)
        for file in files:
            file.rename(file.with_suffix(".away"))
        try:
            yield
        finally:
            for file in files:
                file.with_suffix(".away").rename(file)


def steps(job: Job, number: int) -> Job:
    arguments = dict(job.arguments) | {"num_inference_steps": number}
    return replace(job, arguments=tuple(arguments.items()))


@pytest.fixture(params=["wan", "sdxl", "sd3", "i2vgen"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, batch_of: Callable[..., Any]) -> Pair:
    more = picture = ""
    if request.param == "wan":
        source = bundled_dir() / "models" / "sprites"
        for part in source.rglob("*"):
            if part.is_file() and "transformer_small" not in part.parts:
                goal = tmp_path / "model" / part.relative_to(source)
                goal.parent.mkdir(parents=True, exist_ok=True)
                goal.symlink_to(part)
        more = "num_frames = 1\nmax_sequence_length = 32"
    else:
        {"sdxl": sdxl, "sd3": sd3, "i2vgen": i2vgen}[request.param]().save_pretrained(
            tmp_path / "model"
        )
    if request.param == "i2vgen":
        Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "first.png")
        more, picture = "num_frames = 2", 'image = "first.png"'
    (job,) = batch_of(RECIPE.format(more=more, picture=picture).replace("{{name}}", "s")).jobs
    return Pair(tmp_path, job)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_second_run_never_reads_them_and_a_first_one_does_to_the_same_bits(pair: Pair) -> None:
    job, at_once = pair.job, pair.runner(at_once=True)
    more, other = steps(job, 3), replace(job, prompt="a run")
    expected = [pair.render(at_once, *one).pixels_sha256 for one in ((job, 1), (more, 2))]
    of_other = pair.render(at_once, other, 3).pixels_sha256
    assert len({*expected, of_other}) == 3

    first = pair.runner()
    assert pair.render(first, job, 1).pixels_sha256 == expected[0]
    assert all(pair.are_there(first))
    second = pair.runner()
    with pair.without_encoders():
        assert pair.render(second, more, 2).pixels_sha256 == expected[1]
        assert pair.render(second, job, 1).pixels_sha256 == expected[0]
        assert not any(pair.are_there(second))

        missing = second.run(pair.request(other, 3), lambda: None)
        assert isinstance(missing, RenderFailure)
        assert missing.kind == "models"
        assert isinstance(missing.error, ModelMissingError)
        assert "can't be loaded" in str(missing.error)
    assert pair.render(second, other, 3).pixels_sha256 == of_other
    assert all(pair.are_there(second))
    assert pair.render(second, more, 2).pixels_sha256 == expected[1]


@pytest.mark.night
@pytest.mark.parametrize("pair", ["wan"], indirect=True)
def test_another_process_finds_what_this_one_encoded(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = pair.render(pair.runner(), pair.job, 1)
    executor = ChildProcessExecutor(None, tmp_path)
    try:
        with pair.without_encoders():
            executor.submit(pair.request(pair.job, 1))
            while not isinstance(answer := executor.poll(1.0), Answer):
                pass
    finally:
        executor.close()
    assert isinstance(answer, RenderResult), answer
    assert answer.pixels_sha256 == first.pixels_sha256


@pytest.mark.parametrize("pair", ["wan"], indirect=True)
@pytest.mark.parametrize("is_resumed", [False, True])
def test_seconds_in_which_they_are_read_are_no_jobs(
    pair: Pair, tmp_path: Path, is_resumed: bool
) -> None:
    kept = CheckpointFile.of(tmp_path, pair.job.id, "ab" * 32, 1)
    if is_resumed:
        before = [StopRequested]  # after the first step

        def stop() -> None:
            if before:
                raise before.pop()

        half = JobRunner(lambda _: None)
        stopped = half.run(replace(pair.request(pair.job, 1), checkpoint=kept), stop)
        assert isinstance(stopped, RenderFailure)
    told = captured_events()
    runner = JobRunner(told, None, pair.kept)
    encoders = runner._load(pair.models)._encoders
    load = encoders._load

    def slowly(others: dict[str, Any]) -> Any:
        time.sleep(2.0)
        return load(others)

    encoders._load = slowly
    answer = runner.run(replace(pair.request(pair.job, 1), checkpoint=kept), lambda: None)
    assert isinstance(answer, RenderResult)
    assert told.of(JobStarted)[0].resumed_at == (1 if is_resumed else 0)
    assert encoders.elapsed_s > 2.0
    assert 0 < answer.elapsed_s < 2.0
    assert len(answer.step_s) == 2
    assert all(0 <= seconds < 2.0 for seconds in answer.step_s)


@pytest.mark.parametrize("pair", ["sdxl"], indirect=True)
def test_whatever_else_a_pipeline_does_with_one_reads_them_all(pair: Pair) -> None:
    runtime = pair.runner()._load(pair.models)
    at_once = pair.runner(at_once=True)._load(pair.models)
    absent = runtime._pipe.text_encoder
    assert runtime._pipe.text_encoder_2.config.projection_dim == 6
    assert not hasattr(absent, "_hf_hook")
    assert runtime.late_s == 0
    tokens = torch.tensor([[0, 2, 1]])
    with torch.no_grad():
        found, expected = absent(tokens)[0], at_once._pipe.text_encoder(tokens)[0]
    assert torch.equal(found, expected)
    assert absent.dtype is torch.float32
    for name in pair.encoders:
        theirs = dict(getattr(at_once._pipe, name).named_parameters())
        mine = dict(getattr(runtime._pipe, name).named_parameters())
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert dict(runtime._pipe.config) == dict(at_once._pipe.config)


@pytest.mark.parametrize("pair", ["wan"], indirect=True)
def test_a_job_draws_what_it_would_have_drawn_whatever_loading_draws(pair: Pair) -> None:
    encoders = pair.runner()._load(pair.models)._encoders
    load = encoders._load

    def drawing(others: dict[str, Any]) -> Any:
        torch.rand(3)  # as for a tensor that no file has
        return load(others)

    encoders._load = drawing
    before = torch.get_rng_state()
    encoders.arrive()
    assert encoders.elapsed_s > 0
    assert torch.equal(torch.get_rng_state(), before)
