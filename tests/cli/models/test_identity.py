"""resolve_models: the files behind names, found once, and carried by requests as documents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.engine.executors.base import RenderRequest
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.errors import ModelMissingError
from flowblend_cli.jobs import AdapterSpec, ModelSpec
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.identity import ResolvedModels, model_identity, resolve_models

SPRITES = bundled_dir() / "models" / "sprites"
ADAPTERS = (
    AdapterSpec("monochrome", "large", "sprites"),
    AdapterSpec("monochrome", "small", "sprites"),
)


@pytest.fixture(scope="module")
def models() -> ResolvedModels:
    spec = ModelSpec("sprites", "sprites", denoisers=(("D", "sprites"),))
    return resolve_models(spec, Path.cwd(), ADAPTERS)


def test_names_become_files_that_are_there(models: ResolvedModels) -> None:
    assert Path(models.pipeline.folder) == SPRITES
    assert [role for role, _ in models.denoisers] == ["small", "D"]
    for _, denoiser in models.denoisers:
        assert (Path(denoiser.folder) / str(denoiser.subfolder) / "config.json").is_file()
    assert [(name, role) for name, role, _ in models.adapters] == [
        ("monochrome", "large"), ("monochrome", "small"),
    ]  # fmt: skip
    assert all(Path(path).is_file() for _, _, path in models.adapters)
    assert models.identity == model_identity(models.spec, Path.cwd(), ADAPTERS)
    assert set(models.identity) == {
        "pipeline", "small", "D", "LoRA monochrome large", "LoRA monochrome small",
    }  # fmt: skip


def test_a_request_is_read_back_equal_from_json(models: ResolvedModels, batch_of: Any) -> None:
    kept = CheckpointFile(Path("/out/.flowblend/checkpoints/a.safetensors"), "key", 5)
    for checkpoint in (kept, None):
        request = RenderRequest(3, batch_of().jobs[0], 7, models, "preview", "LLSS", 2, checkpoint)
        document = json.loads(json.dumps(request.to_document()))
        assert RenderRequest.from_document(document) == request


def test_a_model_that_is_half_there_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}'
    )
    with pytest.raises(ModelMissingError):
        resolve_models(ModelSpec(str(tmp_path)), tmp_path)


def test_the_file_that_scales_an_adapter_of_peft_is_part_of_it(tmp_path: Path) -> None:
    own = SPRITES / "adapters/monochrome_large.safetensors"
    adapter = AdapterSpec("x", "large", "./adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").write_bytes(own.read_bytes())
    seen = []
    for alpha in (None, 4, 8):
        if alpha is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        found = resolve_models(ModelSpec("sprites"), tmp_path, [adapter]).identity
        seen.append(found["LoRA x large"]["sha256"])

    assert seen[0] == hashlib.sha256(own.read_bytes()).hexdigest()
    assert len(set(seen)) == 3
