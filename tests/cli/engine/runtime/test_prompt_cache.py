"""Prompts that an earlier run encoded come back bit for bit, or are encoded again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowblend_cli.diagnostics.doctor.self_test_worker import sprites_job
from flowblend_cli.engine.runtime import embedding_files
from flowblend_cli.engine.runtime.embedding_files import EmbeddingFiles
from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
from flowblend_cli.engine.runtime.prompt_cache import KeptEmbeddings, keep_embeddings
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import resolve_models, text_identity

SURROUNDINGS = {"torch": "2", "device": "cpu"}
CPU = torch.device("cpu")


def files(folder: Path, told: list[str] | None = None, identity: str = "text") -> KeptEmbeddings:
    tell = (told if told is not None else []).append
    return KeptEmbeddings(EmbeddingFiles(folder), identity, SURROUNDINGS, CPU, tell)


def job() -> Job:
    found = sprites_job()
    few = {"num_inference_steps": 1, "num_frames": 1, "max_sequence_length": 32}
    return replace(found, arguments=tuple(sorted((dict(found.arguments) | few).items())))


@pytest.fixture(scope="module")
def runtime() -> PipelineRuntime:
    torch.set_num_threads(1)
    return PipelineRuntime(resolve_models(job().model, Path.cwd()))


@pytest.fixture
def encoded(runtime: PipelineRuntime) -> Iterator[list[int]]:
    """One entry for each time that the text model runs."""
    calls: list[int] = []
    handle = runtime._pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def embeds(runtime: PipelineRuntime, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = runtime._pipe.encode_prompt(
        prompt, "", max_sequence_length=32, device=CPU
    )
    return found


def test_another_run_finds_a_prompt_and_its_text_model_rests(
    runtime: PipelineRuntime, encoded: list[int], tmp_path: Path
) -> None:
    runtime._pipe.__dict__.pop("encode_prompt")
    expected = embeds(runtime, "a red ring")
    assert len(encoded) == 2

    for run in range(2):
        runtime._pipe.__dict__.pop("encode_prompt", None)  # a process that knows no prompt
        keep_embeddings(runtime, EmbeddingFiles(tmp_path), lambda _: None)
        encoded.clear()
        found = embeds(runtime, "a red ring")
        assert len(encoded) == (0 if run else 2)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    embeds(runtime, "a blue ring")
    assert len(encoded) == 2
    assert len(list((tmp_path / ".flowblend" / "embeddings").iterdir())) == 2


def test_whatever_decides_an_embedding_is_in_its_name(tmp_path: Path) -> None:
    value = (torch.ones(2), None)
    files(tmp_path).keep("prompt", value)
    assert files(tmp_path).find("prompt") is not None
    assert files(tmp_path).find("another") is None
    assert files(tmp_path, identity="other weights").find("prompt") is None
    other = KeptEmbeddings(
        EmbeddingFiles(tmp_path), "text", {**SURROUNDINGS, "torch": "3"}, CPU, print
    )
    assert other.find("prompt") is None


def test_a_damaged_file_is_encoded_again_and_replaced(tmp_path: Path) -> None:
    store = files(tmp_path)
    store.keep("prompt", torch.ones(64))
    (path,) = (tmp_path / ".flowblend" / "embeddings").iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], bytes([*whole[:-1], whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        assert store.find("prompt") is None
    store.keep("prompt", torch.ones(64))
    found = store.find("prompt")
    assert found is not None
    assert torch.equal(found[0], torch.ones(64))


def test_a_full_folder_takes_no_more_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "MOST_BYTES", 1000)
    told: list[str] = []
    store = files(tmp_path, told)
    store.keep("small", torch.ones(2))
    for name in ("large", "larger"):
        store.keep(name, torch.ones(1000))
    assert store.find("small") is not None
    assert store.find("large") is None
    assert len(told) == 1


def test_what_other_runs_store_at_the_same_time_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "MOST_BYTES", 300_000)
    told: list[str] = []
    stores = [files(tmp_path, told) for _ in range(4)]
    for number in range(100):
        stores[number % 4].keep(f"prompt {number}", torch.ones(1000))
    kept = [path.stat().st_size for path in (tmp_path / ".flowblend/embeddings").iterdir()]
    assert 300_000 - 2 * max(kept) < sum(kept) <= 300_000
    assert len(told) == 4


def test_what_cant_be_stored_is_left_out(tmp_path: Path) -> None:
    value: Any = object()
    told: list[str] = []
    files(tmp_path, told).keep("prompt", value)
    assert not (tmp_path / ".flowblend").exists()
    assert not told


def test_the_text_models_decide_and_the_denoisers_dont(tmp_path: Path) -> None:
    folder = tmp_path / "sprites"
    shutil.copytree(bundled_dir() / "models" / "sprites", folder)
    spec = ModelSpec(str(folder))
    pipeline = resolve_models(spec, tmp_path).pipeline
    before = text_identity(pipeline)
    (folder / "transformer" / "config.json").write_text("{}")
    assert text_identity(pipeline) == before
    assert text_identity(replace(pipeline, variant="fp16")) != before  # other weights are read
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + " ")
    assert text_identity(pipeline) != before
