"""resolve_models: the files behind names, found once, and carried by requests as documents."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.engine.executors.base import RenderRequest
from flowblend_cli.engine.runtime.checkpoint_file import CheckpointFile
from flowblend_cli.errors import ModelMissingError
from flowblend_cli.jobs import AdapterSpec, Batch, ImageSpec, Job, ModelSpec
from flowblend_cli.models import identity
from flowblend_cli.models.bundled import bundled_dir
from flowblend_cli.models.calibrations import BUNDLED_NAME
from flowblend_cli.models.completeness import Place
from flowblend_cli.models.identity import (
    ResolvedModel,
    ResolvedModels,
    hash_folder,
    job_key,
    local_places,
    model_identity,
    model_problems,
    resolve_models,
    text_identity,
)

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


# Job keys


IDENTITY = {"small": {"path": "/s", "sha256": "b" * 64}, "pipeline": {"sha256": "a" * 64}}
PICTURE = ImageSpec("first.png", "c" * 64)


@pytest.fixture
def job(batch_of: Callable[..., Batch], minimal: str) -> Job:
    job = batch_of(minimal.replace("red square", "röd kvadrat")).jobs[0]
    return replace(job, negative_prompt="blur", image=PICTURE)


@pytest.mark.parametrize("conversions", [(), ("orientation",), ("alpha", "profile")])
def test_a_key_hashes_what_decides_a_jobs_bits_as_sorted_ascii_json(
    job: Job, conversions: tuple[str, ...]
) -> None:
    job = replace(job, image=replace(PICTURE, conversions=conversions))
    document = json.loads(json.dumps(job.to_document()))
    for name in ("id", "recipe", "scene", "prompt_template", "origin"):
        document.pop(name, None)
    document["image"] = [PICTURE.sha256, *conversions] if conversions else PICTURE.sha256
    models = {"pipeline": "a" * 64, "small": "b" * 64}
    hashed = {"numerics": 1, "models": models, "job": document}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))

    assert set(document) >= {"arguments", "model", "negative_prompt", "output", "prompt", "seed"}
    assert set(document) >= {"sampling", "stages"}
    assert text.isascii()
    assert job_key(job, IDENTITY) == hashlib.sha256(text.encode("ascii")).hexdigest()


def test_names_leave_a_key_alone_and_whatever_decides_bits_changes_it(job: Job) -> None:
    def changed(**fields: Any) -> str:
        return job_key(replace(job, **fields), IDENTITY)

    key = job_key(job, IDENTITY)
    names = {"id": "other", "recipe": "other", "scene": "other", "prompt_template": "{a|b}"}
    assert {changed(**{name: value}) for name, value in names.items()} == {key}
    assert changed(image=replace(PICTURE, path="elsewhere/second.png")) == key
    moved = {role: {**known, "path": "/elsewhere"} for role, known in IDENTITY.items()}
    assert job_key(job, dict(reversed(moved.items()))) == key

    others = [
        changed(prompt="a blue square"),
        changed(negative_prompt=None),
        changed(seed=2),
        changed(stages=job.stages[:1]),
        changed(arguments=(*job.arguments, ("guidance_scale", 3.0))),
        changed(model=replace(job.model, small="wan2.1-t2v")),
        changed(sampling=replace(job.sampling, flow_shift=2.5)),
        changed(output=replace(job.output, crf=1)),
        changed(image=None),
        changed(image=replace(PICTURE, sha256="d" * 64)),
        changed(image=replace(PICTURE, conversions=("alpha",))),
        changed(adaptive=0.5),
        job_key(job, IDENTITY | {"pipeline": {"sha256": "d" * 64}}),
        job_key(job, {"pipeline": IDENTITY["pipeline"]}),
    ]
    assert len({key, *others}) == 1 + len(others)


# Hashes of folders


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_a_folders_hash_is_that_of_the_names_and_bytes_of_its_model_files(tmp_path: Path) -> None:
    files = {"b/w.safetensors": b"22", "a.json": b"1", "c/merges.txt": b"3", "c/spiece.model": b"4"}
    folder = written(tmp_path / "model", files)
    lines = "\n".join(
        f"{name} {hashlib.sha256(files[name]).hexdigest()}"
        for name in ("a.json", "b/w.safetensors", "c/merges.txt", "c/spiece.model")
    )
    whole = hashlib.sha256(lines.encode()).hexdigest()

    assert hash_folder(folder) == whole
    written(folder, {"README.md": b"words", "preview.safetensors": b"x", "a.bin": b"y"})
    written(folder, {BUNDLED_NAME: b"{}"})
    assert hash_folder(folder) == whole
    assert hash_folder(written(folder, {"b/preview.safetensors": b"x"})) != whole
    (folder / "b/preview.safetensors").unlink()
    (folder / "a.json").rename(folder / "d.json")
    assert hash_folder(folder) != whole


def test_a_folder_without_a_model_is_none(tmp_path: Path) -> None:
    written(tmp_path, {"README.md": b"words"})
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelMissingError, match=re.escape(f"{folder}: no model is there")):
            hash_folder(folder)


def test_the_hash_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "cache" / "deep" / "hashes.json"
    monkeypatch.setattr(identity, "cache_path", lambda *parts: kept.with_name("/".join(parts)))
    monkeypatch.setattr(identity, "_KEPT_FROM_BYTES", 4)
    folder = written(tmp_path / "model", {"large.safetensors": b"1234", "small.json": b"{}"})

    first = hash_folder(folder)
    marks = json.loads(kept.read_text("utf-8"))
    assert list(marks.values()) == [hashlib.sha256(b"1234").hexdigest()]
    assert [path.name for path in kept.parent.iterdir()] == ["hashes.json"]

    (mark,) = marks
    for known, expected in (("0" * 64, False), ("not a hash", True), (3, True)):
        kept.write_text(json.dumps({mark: known}), "utf-8")
        assert (hash_folder(folder) == first) is expected
    written(folder, {"large.safetensors": b"12345"})
    lines = [
        f"large.safetensors {hashlib.sha256(b'12345').hexdigest()}",
        f"small.json {hashlib.sha256(b'{}').hexdigest()}",
    ]
    assert hash_folder(folder) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert len(json.loads(kept.read_text("utf-8"))) == 2


def test_a_cache_that_cant_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "model", {"large.safetensors": b"1234"})
    plain = hash_folder(folder)
    written(tmp_path, {"file": b""})
    monkeypatch.setattr(identity, "cache_path", lambda *parts: tmp_path / "file" / "hashes.json")
    monkeypatch.setattr(identity, "_KEPT_FROM_BYTES", 4)
    assert hash_folder(folder) == plain


def with_small(folder: Path) -> Path:
    shutil.copytree(SPRITES / "transformer_small", folder / "small")
    return folder


# What prompts go through


def test_the_text_of_a_pipeline_is_all_but_what_no_prompt_goes_through(tmp_path: Path) -> None:
    names = ("tokenizer", "text_encoder", "transformer", "transformer_2", "vae", "scheduler")
    index = json.dumps({name: ["x", "Y"] for name in names} | {"absent": ["x", "Y"]}).encode()
    files = {f"{name}/config.json": name.encode() for name in (*names, "stray")}
    folder = written(tmp_path / "p", {"model_index.json": index, **files})
    pipeline = ResolvedModel("p", str(folder), None, None, "e" * 64)
    whole = text_identity(pipeline)

    written(folder, {f"{name}/config.json": b"other" for name in (*names[2:], "stray")})
    assert text_identity(pipeline) == whole
    others = set()
    for name in names[:2]:
        written(folder, {f"{name}/config.json": b"other"})
        others.add(text_identity(pipeline))
    written(folder, {"model_index.json": index + b" "})
    others.add(text_identity(pipeline))
    assert len(others | {whole}) == 4
    assert text_identity(replace(pipeline, commit="f" * 40)) == "e" * 64


# Where models lie, and what keeps them from being loaded


def test_places_are_named_with_the_subfolder_that_a_denoiser_lies_in(tmp_path: Path) -> None:
    shutil.copytree(SPRITES, tmp_path / "whole")
    shutil.copytree(SPRITES / "transformer", tmp_path / "alone")
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    model = ModelSpec("./whole", "./whole", denoisers=(("D", "./alone"), ("H", "some/hub-model")))

    assert list(local_places(model, tmp_path)) == [
        ("./whole", Place(whole, None, True, None)),
        ("./whole", Place(whole, "transformer_small", False, None)),
        ("./alone", Place(alone, None, False, None)),
    ]
    found = resolve_models(replace(model, denoisers=(("D", "./alone"),)), tmp_path)
    assert found.pipeline == ResolvedModel("./whole", str(whole), None, None, hash_folder(whole))
    inside = hash_folder(whole / "transformer_small")
    assert dict(found.denoisers) == {
        "small": ResolvedModel("./whole", str(whole), "transformer_small", None, inside),
        "D": ResolvedModel("./alone", str(alone), None, None, hash_folder(alone)),
    }
    assert found.identity["small"] == {"path": str(whole / "transformer_small"), "sha256": inside}
    assert list(model_problems(found.spec, tmp_path)) == []


def test_problems_name_the_model_that_has_them(tmp_path: Path) -> None:
    shutil.copytree(SPRITES, tmp_path / "whole")
    shutil.copytree(SPRITES / "transformer", tmp_path / "alone")
    (weights,) = (tmp_path / "alone").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    model = ModelSpec("./whole", "./alone", denoisers=(("D", "some/hub-model"),))

    problems = dict(model_problems(model, tmp_path))
    assert set(problems) == {"small", "D"}
    assert "./alone" in problems["small"]
    assert weights.name in problems["small"]
    assert (
        "'some/hub-model' isn't in the local Hub cache (model_index.json is missing)"
        in problems["D"]
    )
    assert set(dict(model_problems(model, tmp_path, only_here=True))) == {"small"}
    with pytest.raises(ModelMissingError) as caught:
        resolve_models(model, tmp_path)
    assert set(str(caught.value).split("\n")) == set(problems.values())


def test_a_denoiser_of_another_family_is_told_for_its_own_key(tmp_path: Path) -> None:
    shutil.copytree(SPRITES / "transformer", tmp_path / "alone")
    config = tmp_path / "alone" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(values | {"_class_name": "LTXVideoTransformer3DModel"}), "utf-8")

    told = [
        problem
        for key, problem in model_problems(ModelSpec("sprites", "./alone"), tmp_path)
        if key == "small"
    ]
    assert any("'./alone' doesn't fit 'sprites': " in problem for problem in told)


def test_a_denoiser_within_a_pipeline_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    shutil.copytree(SPRITES, tmp_path / "whole")
    model = ModelSpec("sprites", "./whole")
    (weights,) = (tmp_path / "whole" / "transformer").glob("*.safetensors")
    weights.write_bytes(b"not the denoiser that is used")
    assert list(model_problems(model, tmp_path)) == []

    (weights,) = (tmp_path / "whole" / "transformer_small").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-64])
    ((key, problem),) = model_problems(model, tmp_path)
    assert key == "small"
    assert "transformer_small" in problem
    assert weights.name in problem

    weights.unlink()
    assert [key for key, _ in model_problems(model, tmp_path)] == ["small"]


def test_a_pipeline_has_its_place_whether_or_not_a_denoiser_is_in_it(tmp_path: Path) -> None:
    written(tmp_path / "half", {"model_index.json": b"{}"})
    places = list(local_places(ModelSpec("./half", variant="fp16"), tmp_path))
    assert places == [("./half", Place(tmp_path / "half", None, True, "fp16"))]


def test_a_model_of_the_hub_is_known_by_its_repository_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    folder = shutil.copytree(SPRITES, tmp_path / commit)
    asked = []

    def snapshot(repo: str, revision: str | None) -> Path | None:
        asked.append((repo, revision))
        return folder

    monkeypatch.setattr(identity, "snapshot", snapshot)
    found = resolve_models(ModelSpec("some/model", "./small"), with_small(tmp_path))
    digest = hashlib.sha256(f'["some/model","{commit}",null]'.encode()).hexdigest()

    assert found.pipeline == ResolvedModel("some/model", str(folder), None, commit, digest)
    about = {"repo": "some/model", "commit": commit, "sha256": digest}
    assert found.identity["pipeline"] == about
    assert {repo for repo, _ in asked} == {"some/model"}
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelMissingError, match=r"\(model_index.json is missing\)"):
        model_identity(ModelSpec("some/model"), tmp_path)
