"""Inputs: the files that a request reads, as the driver lists them for workers of other machines.

Files of the recipe (folders of models, LoRA files, pictures) travel by their hashes to a worker
that lacks them. A repository of the Hub doesn't: a worker has to have the same files of it.
Wildcards, prompts and calibrations aren't read by workers, so they stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flowblend_cli.engine.executors.base import RenderRequest
from flowblend_cli.jobs import Job
from flowblend_cli.models.contents import (
    INDEX,
    components,
    denoiser_folder,
    files_of,
    reader_of,
    wanted,
)
from flowblend_cli.models.identity import ResolvedModel, ResolvedModels, file_hashes
from flowblend_plugin.denoisers.adapter_header import scale_file

PICTURES = "pictures"
# As much of a file as is in memory at once.
PIECE_BYTES = 16 * 2**20
_MOST_PIECES = 2048
# What a pipeline of this machine may have beside its components, and a denoiser's pipeline.
_BESIDE_PIPELINE = "preview.safetensors"
_BESIDE_DENOISER = "vae/config.json"
# A file of a repository that is larger is compared by so many samples.
_WHOLE_BYTES = 64 * 2**20
_SAMPLES = 32
_SAMPLE_BYTES = 2**20


@dataclass(frozen=True)
class InputFile:
    """A file of an input.

    Args:
        name: Its name in the input's folder, with ``/``.
        sha256: Hash of its bytes; of a file of a repository, its ``fingerprint``.
        size: Its bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Input:
    """Files that a request reads, in one folder.

    Args:
        folder: Where they lie on the driver's machine.
        files: The files.
        repo: Hub id of the repository that they are of; empty where they travel.
        commit: Its commit.
    """

    folder: str
    files: tuple[InputFile, ...]
    repo: str = ""
    commit: str = ""

    @property
    def key(self) -> str:
        """Hash of the files with their names, wherever they lie."""
        told = json.dumps([[one.name, one.sha256] for one in self.files])
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)

    def to_document(self) -> dict[str, Any]:
        """The input as plain JSON values; ``from_document`` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Input:
        """Read an input back from ``to_document``'s values."""
        return cls(**{**document, "files": tuple(InputFile(**one) for one in document["files"])})


class InputList:
    """Lists what requests read; each model's files are hashed once.

    Args:
        also: Jobs whose pictures are read with any request, such as a warm-up.
    """

    def __init__(self, also: Iterable[Job] = ()) -> None:
        self._also = tuple(also)
        self._known: dict[Hashable, Input | None] = {}

    def of_request(self, request: RenderRequest) -> dict[str, Input]:
        """What a request reads: its models, LoRA files and pictures.

        Returns:
            Each input by its place in the request, for ``placed``. What can't be read is left out;
            whoever renders says so.
        """
        found = self.of_models(request.models)
        folder = Path(request.models.recipe_dir)
        files = []
        for job in (request.job, *self._also):
            if job.image is not None:
                try:
                    size = (folder / job.image.path).stat().st_size
                except OSError:
                    continue
                files.append(InputFile(job.image.path, job.image.sha256, size))
        if files:
            found[PICTURES] = Input(str(folder), tuple(dict.fromkeys(files)))
        return found

    def of_models(self, models: ResolvedModels) -> dict[str, Input]:
        """What models and LoRA files read, by their place in a request."""
        found: dict[str, Input | None] = {}
        for role, model in [("pipeline", models.pipeline), *models.denoisers]:
            repo = models.identity[role].get("repo", "")
            make = partial(_of_model, model, repo, is_pipeline=role == "pipeline")
            found[role] = self._kept((role, model, repo), make)
        for name, role, path in models.adapters:
            found[_adapter_place(name, role)] = self._kept(path, partial(_of_adapter, Path(path)))
        return {place: one for place, one in found.items() if one is not None}

    def _kept(self, mark: Hashable, make: Callable[[], Input]) -> Input | None:
        if mark not in self._known:
            try:
                self._known[mark] = make()
            except OSError:
                self._known[mark] = None
        return self._known[mark]


class FilePieces:
    """Pieces of the files that travel: each is put into a cluster's store once, when asked for.

    Of very many, those that nobody asked for in a long time are let go.

    Args:
        put: Puts bytes into the store; what it returns stands for them.
    """

    def __init__(self, put: Callable[[bytes], Any]) -> None:
        self._put = put
        self._paths: dict[str, Path] = {}
        self._pieces: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    def know(self, inputs: Iterable[Input]) -> None:
        """Let the files of inputs be asked for; those of repositories don't travel."""
        for one in inputs:
            if not one.repo:
                self._paths |= {file.sha256: Path(one.folder, file.name) for file in one.files}

    def get(self, sha256: str, piece: int) -> Any:
        """What stands for a piece of ``PIECE_BYTES`` of a file; None if it can't be read."""
        with self._lock:
            found = self._pieces.pop((sha256, piece), None)
            if found is None:
                try:
                    with self._paths[sha256].open("rb") as file:
                        file.seek(piece * PIECE_BYTES)
                        found = self._put(file.read(PIECE_BYTES))
                except OSError:
                    return None
            self._pieces[sha256, piece] = found
            if len(self._pieces) > _MOST_PIECES:
                del self._pieces[next(iter(self._pieces))]
            return found


def placed(models: ResolvedModels, folders: Mapping[str, Path]) -> ResolvedModels:
    """Say where the files of models lie on another machine.

    Args:
        models: The models, as the driver found them.
        folders: The folder of each input there, by its place in a request.
    """

    def moved(role: str, model: ResolvedModel) -> ResolvedModel:
        return replace(model, folder=str(folders.get(role, model.folder)))

    return replace(
        models,
        recipe_dir=str(folders.get(PICTURES, models.recipe_dir)),
        pipeline=moved("pipeline", models.pipeline),
        denoisers=tuple((role, moved(role, model)) for role, model in models.denoisers),
        adapters=tuple(
            (name, role, str(folders.get(_adapter_place(name, role), Path(path).parent)
                             / Path(path).name))
            for name, role, path in models.adapters
        ),
    )  # fmt: skip


def fingerprint(path: Path) -> str:
    """Hash of a file's size and bytes; of a large file, of samples all over it.

    Raises:
        OSError: It can't be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(_SAMPLES):
                file.seek(sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _adapter_place(name: str, role: str) -> str:
    return f"LoRA {name} {role}"


def _of_adapter(path: Path) -> Input:
    beside = scale_file(path)
    names = [path.name] if beside is None else [path.name, beside.name]
    return _of_folder(path.parent, names, file_hashes(path.parent, names))


def _of_model(model: ResolvedModel, repo: str, *, is_pipeline: bool) -> Input:
    """The files of a model's folder that loading it reads, and no others."""
    folder = Path(model.folder)
    names = files_of(folder)
    if is_pipeline:
        inside, beside = [*components(reader_of(folder)(INDEX))], _BESIDE_PIPELINE
    else:
        at_top = "" if "config.json" in names else denoiser_folder(names)
        inside, beside = [model.subfolder or at_top or ""], _BESIDE_DENOISER
    chosen = sorted({*wanted(names, inside, model.variant), *({beside} & names)})
    if model.commit is None:
        return _of_folder(folder, chosen, file_hashes(folder, chosen))
    hashes = {name: fingerprint(folder / name) for name in chosen}
    return _of_folder(folder, chosen, hashes, repo, model.commit)


def _of_folder(
    folder: Path, names: Iterable[str], hashes: Mapping[str, str], repo: str = "", commit: str = ""
) -> Input:
    files = (InputFile(name, hashes[name], (folder / name).stat().st_size) for name in names)
    return Input(str(folder), tuple(files), repo, commit)
