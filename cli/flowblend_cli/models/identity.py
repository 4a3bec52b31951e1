"""job_key and resolve_models: hashes that a finished file must match to count as a job's.

A job's key covers the job as written, the bytes of its models and flowblend's numerics, and
nothing that only names things.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelFaultError, ModelMissingError
from flowblend_cli.jobs import AdapterSpec, Job, ModelSpec
from flowblend_cli.models.adapters import adapter_file
from flowblend_cli.models.calibrations import BUNDLED_NAME
from flowblend_cli.models.completeness import Place, find_faults
from flowblend_cli.models.contents import check_contents, files_of, read_json, variant_in
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.pair_fit import check_pair
from flowblend_cli.models.pipeline_rules import channel_problem
from flowblend_cli.models.registry import ModelSource, resolve_model, resolve_small
from flowblend_cli.utils.cache_dirs import cache_path
from flowblend_cli.utils.json_files import keep_json
from flowblend_plugin.denoisers.adapter_header import scale_file
from flowblend_plugin.errors import PairMismatchError

NUMERICS_VERSION = 1
_MODEL_SUFFIXES = {".json", ".safetensors", ".model", ".txt"}
# Files of a pipeline's folder that decide no pixel by themselves.
_NO_MODEL = (BUNDLED_NAME, "preview.safetensors")
# Components that no prompt goes through.
_NO_TEXT = ("transformer", "unet", "vae", "scheduler")
# Files so large have their hashes kept.
_KEPT_FROM_BYTES = 64 * 1024 * 1024
_NAMES_ONLY = ("id", "recipe", "scene", "prompt_template", "origin")

Identity = dict[str, Any]


def job_key(job: Job, identity: Identity) -> str:
    """Hash everything that decides a job's bits.

    Args:
        job: The job as written.
        identity: Its models, from ``model_identity``.

    Returns:
        64 hexadecimal digits.
    """
    hashes = {role: known["sha256"] for role, known in identity.items()}
    hashed = {"job": _decisive(job), "models": hashes, "numerics": NUMERICS_VERSION}
    return hashlib.sha256(_canonical(hashed)).hexdigest()


def recipe_key(job: Job) -> str:
    """Hash what a recipe alone says of a job's bits: its key without the files of its models.

    It is the same on every machine, whichever models lie there, and before they are fetched.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(_canonical(_decisive(job))).hexdigest()


def _decisive(job: Job) -> dict[str, Any]:
    """A job as written, without what only names things."""
    document = {k: v for k, v in job.to_document().items() if k not in _NAMES_ONLY}
    if job.image is not None:
        # Its pixels count, not its name.
        document["image"] = [job.image.sha256, *job.image.conversions]
        if not job.image.conversions:
            document["image"] = job.image.sha256
    return document


@dataclass(frozen=True)
class ResolvedModel:
    """A model's files on this machine.

    Args:
        name: The model as the recipe names it.
        folder: Folder that holds the pipeline, or the denoiser's subfolder.
        subfolder: Where a denoiser lies inside; None where the folder is the denoiser itself, or
            for a whole pipeline.
        commit: Commit of a Hub model; None for a folder of this machine.
        sha256: Hash of its files, or of repository and commit.
        variant: Variant of its weights; None where they have none.
    """

    name: str
    folder: str
    subfolder: str | None
    commit: str | None
    sha256: str
    variant: str | None = None


@dataclass(frozen=True)
class ResolvedModels:
    """The files that a job's model names mean, found once, for whoever renders it.

    Args:
        spec: The models as the recipe names them.
        recipe_dir: Folder that a job's picture is relative to.
        pipeline: The pipeline.
        denoisers: Each further denoiser, by its role.
        adapters: File of each LoRA adapter: its name, the denoiser that is to have it, the path.
        identity: What finished files record of all these: per role (``pipeline``, ``small``, a
            letter, ``LoRA NAME ROLE``) its source and ``sha256``.
        text_sha256: The pipeline's ``text_identity``: whoever renders needn't read text models to
            know which they are.
    """

    spec: ModelSpec
    recipe_dir: str
    pipeline: ResolvedModel
    denoisers: tuple[tuple[str, ResolvedModel], ...]
    adapters: tuple[tuple[str, str, str], ...]
    identity: Identity
    text_sha256: str = ""

    def to_document(self) -> dict[str, Any]:
        """All of it as plain JSON values; ``from_document`` reads it back equal."""
        return asdict(self) | {"spec": self.spec.to_document()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ResolvedModels:
        """Read back ``to_document``'s values."""
        return cls(
            spec=ModelSpec.from_document(document["spec"]),
            recipe_dir=document["recipe_dir"],
            pipeline=ResolvedModel(**document["pipeline"]),
            denoisers=tuple((role, ResolvedModel(**one)) for role, one in document["denoisers"]),
            adapters=tuple((name, role, path) for name, role, path in document["adapters"]),
            identity=document["identity"],
            text_sha256=document["text_sha256"],
        )


def resolve_models(
    model: ModelSpec, recipe_dir: Path, adapters: Iterable[AdapterSpec] = ()
) -> ResolvedModels:
    """Find the files of a job's models and LoRA adapters, and hash them, without loading them.

    Args:
        model: The models as the recipe names them.
        recipe_dir: Folder that relative folders start from.
        adapters: The adapters as the stages name them.

    Raises:
        ModelMissingError: Models aren't on this machine, or only half of them is, or their files
            are damaged or don't fit; tells all of it.
        ModelNameError: A model brings code of its own.
    """
    adapters = tuple(adapters)
    problems = [problem for _, problem in model_problems(model, recipe_dir)]
    for adapter in adapters:
        try:
            adapter_file(adapter.source, adapter.name, adapter.role, recipe_dir)
        except ModelMissingError as error:
            problems.append(str(error))
    if problems:
        raise ModelFaultError("\n".join(dict.fromkeys(problems)))
    found = _find_models(model, recipe_dir, adapters)
    return replace(found, text_sha256=text_identity(found.pipeline))


def _find_models(
    model: ModelSpec, recipe_dir: Path, adapters: Iterable[AdapterSpec]
) -> ResolvedModels:
    """The files of a job's models and adapters, and their hashes."""
    pipeline, about = _resolve(resolve_model(model.pipeline, recipe_dir), model, is_pipeline=True)
    identity = {"pipeline": about}
    denoisers = []
    for role, name in [("small", model.small), *model.denoisers]:
        if name is not None:
            found, identity[role] = _resolve(resolve_small(name, recipe_dir), model)
            denoisers.append((role, found))
    files = []
    for adapter in adapters:
        path = adapter_file(adapter.source, adapter.name, adapter.role, recipe_dir)
        place = f"LoRA {adapter.name} {adapter.role}"
        identity[place] = {"path": str(path), "sha256": adapter_sha256(path)}
        files.append((adapter.name, adapter.role, str(path)))
    return ResolvedModels(
        model, str(recipe_dir), pipeline, tuple(denoisers), tuple(files), identity
    )


def model_problems(
    model: ModelSpec, recipe_dir: Path, *, only_here: bool = False
) -> Iterator[tuple[str, str]]:
    """Tell everything that keeps a recipe's models from being loaded, as far as files show it.

    Args:
        model: The models as the recipe names them.
        recipe_dir: Folder that relative folders start from.
        only_here: Whether models that aren't on this machine pass.

    Returns:
        Each problem after the key of the model: ``"pipeline"``, ``"small"`` or a letter.

    Raises:
        ModelNameError: A model brings code of its own.
    """
    pipeline = resolve_model(model.pipeline, recipe_dir)
    named = [("small", model.small), *model.denoisers]
    further = [(key, resolve_small(name, recipe_dir)) for key, name in named if name is not None]
    places: dict[Place, tuple[str, str]] = {}
    for key, source in [("pipeline", pipeline), *further]:
        is_pipeline = key == "pipeline"
        subfolder = None if is_pipeline else source.subfolder
        try:
            folder = local_folder(source)
        except ModelMissingError as error:
            if not only_here:
                yield key, str(error)
            continue
        try:
            check_contents(
                folder, source.name, subfolder, pipeline=is_pipeline, variant=model.variant
            )
        except ModelMissingError as error:
            yield key, str(error)
        places[Place(folder, subfolder, is_pipeline, model.variant)] = key, source.name
    for place, faults in find_faults(places).items():
        key, name = places[place]
        yield from ((key, f"model {name!r} can't be loaded: {fault}") for fault in faults)
    problem = channel_problem(pipeline)
    if problem is not None:
        yield "pipeline", f"model {pipeline.name!r} can't be run: {problem}"
    for key, source in further:
        try:
            check_pair(pipeline, source)
        except PairMismatchError as error:
            listed = "; ".join(error.mismatches)
            names = f"{source.name!r} doesn't fit {pipeline.name!r}"
            yield key, f"{names}: {listed}: choose two of one family"


def local_places(model: ModelSpec, recipe_dir: Path) -> Iterator[tuple[str, Place]]:
    """Name the models of a recipe that are folders of this machine, and where they lie."""
    named = [model.pipeline, model.small, *(name for _, name in model.denoisers)]
    for number, name in enumerate(named):
        if name is None:
            continue
        source = resolve_small(name, recipe_dir) if number else resolve_model(name, recipe_dir)
        if source.path is not None:
            inside = source.subfolder if number else None
            yield name, Place(source.path, inside, number == 0, model.variant)


def model_identity(
    model: ModelSpec, recipe_dir: Path, adapters: Iterable[AdapterSpec] = ()
) -> Identity:
    """Tell which weights a job's models and LoRA adapters are, whether or not they are whole.

    Raises:
        ModelMissingError: A model isn't on this machine, or only half of it is.
        ModelNameError: A model brings code of its own.
    """
    return _find_models(model, recipe_dir, adapters).identity


_SHA256 = re.compile(r"[0-9a-f]{64}")


def text_identity(pipeline: ResolvedModel) -> str:
    """Hash whatever of a pipeline its prompts go through: all but denoisers, VAE and scheduler.

    Which of the weights are read is a matter of their variant.
    """
    if pipeline.commit is not None:
        return _of_variant(pipeline.sha256, pipeline.variant)
    folder = Path(pipeline.folder)
    index = folder / "model_index.json"
    parts = [
        name
        for name in sorted(read_json(index))
        if (folder / name).is_dir() and not name.startswith(_NO_TEXT)
    ]
    hashes = [(name, hash_folder(folder / name)) for name in parts]
    digest = hashlib.sha256(_canonical([_sha256(index), hashes])).hexdigest()
    return _of_variant(digest, pipeline.variant)


def _of_variant(digest: str, variant: str | None) -> str:
    if variant is None:
        return digest
    return hashlib.sha256(_canonical([digest, variant])).hexdigest()


def _resolve(
    source: ModelSource, spec: ModelSpec, *, is_pipeline: bool = False
) -> tuple[ResolvedModel, dict[str, Any]]:
    """A model's files, and what a finished file records of them."""
    place = local_folder(source)
    subfolder = None if is_pipeline else source.subfolder
    variant = spec.variant
    check_contents(place, source.name, subfolder, pipeline=is_pipeline, variant=variant)
    if not is_pipeline:
        variant = variant_in(files_of(place / (subfolder or "")), variant) or None
    about: dict[str, Any]
    if source.path is not None:
        folder, commit = source.path / (subfolder or ""), None
        about = {"path": str(folder), "sha256": hash_folder(folder)}
    else:
        commit = place.name
        digest = hashlib.sha256(_canonical([source.repo, commit, subfolder])).hexdigest()
        about = {"repo": source.repo, "commit": commit, "sha256": digest}
    model = ResolvedModel(source.name, str(place), subfolder, commit, about["sha256"], variant)
    return model, about


def local_folder(source: ModelSource) -> Path:
    """Find the folder of a model on this machine: its own, or its commit's in the Hub's cache.

    Args:
        source: The model; a whole pipeline, or a small denoiser in its subfolder.

    Returns:
        The folder that holds ``source.subfolder``, or the pipeline. In the cache it is named by
        the 40 digits of the commit: the pinned one, or the one that the cache last got.

    Raises:
        ModelMissingError: The model isn't in the cache.
    """
    if source.path is not None:
        return source.path
    assert source.repo is not None
    probe = f"{source.subfolder}/config.json" if source.subfolder else "model_index.json"
    folder = snapshot(source.repo, source.revision)
    if folder is None or not (folder / probe).is_file():
        pinned = f" at commit {source.revision}" if source.revision else ""
        raise ModelMissingError(
            f"model {source.repo!r} isn't in the local Hub cache{pinned} ({probe} is missing), and "
            "render downloads nothing unless it is told to: `flowblend models fetch` with the "
            "recipe fetches it, or render with --allow-download (a gated model: accept its licence "
            f"at https://huggingface.co/{source.repo}, then `hf auth login`)"
        )
    return folder


def hash_folder(folder: Path) -> str:
    """Hash a model folder: names and bytes of its configs, weights and tokenizer files.

    A calibration in it is left out, since what was chosen from it is in the job; and so is a
    projection for previews, which no finished pixel goes through.

    Raises:
        ModelMissingError: The folder isn't there, or holds no model file.
    """
    left_out = {folder / name for name in _NO_MODEL}
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _MODEL_SUFFIXES and path not in left_out
    ]
    if not paths:
        raise ModelMissingError(f"{folder}: no model is there (no .json or .safetensors file)")
    names = [path.relative_to(folder).as_posix() for path in paths]
    lines = [f"{name} {digest}" for name, digest in file_hashes(folder, names).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash files of a folder; the hashes of large ones are kept.

    Args:
        folder: The folder.
        names: Their names in it.

    Returns:
        SHA-256 of each, by its name, in the order in which they were named.

    Raises:
        OSError: One isn't there, or can't be read.
    """
    cache = cache_path("hashes.json")
    known = _known_hashes(cache)
    before = len(known)
    found = {name: _kept_sha256(folder / name, known) for name in names}
    if len(known) > before:
        keep_json(cache, known)
    return found


def _known_hashes(cache: Path) -> dict[str, str]:
    """Hashes of large files that were kept, by path, size and times."""
    return {
        mark: digest
        for mark, digest in read_json(cache).items()
        if isinstance(digest, str) and _SHA256.fullmatch(digest)
    }


def adapter_sha256(path: Path) -> str:
    """Hash of a LoRA file; where peft saved it, also of the file beside it that scales it."""
    beside = scale_file(path)
    if beside is None:
        return _sha256(path)
    return hashlib.sha256(f"{_sha256(path)}\n{_sha256(beside)}".encode()).hexdigest()


def _kept_sha256(path: Path, known: dict[str, str]) -> str:
    """Hash of a file; that of a large one is kept, so that a 28 GB model is read once.

    Args:
        path: The file.
        known: Hashes of large files by path, size and times, which a new one is added to.
    """
    stat = path.stat()
    if stat.st_size < _KEPT_FROM_BYTES:
        return _sha256(path)
    mark = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    if mark not in known:
        known[mark] = _sha256(path)
    return known[mark]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
