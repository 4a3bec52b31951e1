"""find_faults: what is wrong with models' files, told before anything is loaded, and offline.

Headers and indices are read here. What a component's class asks for is told by a worker process,
which builds it without memory; its answer is kept, so that a model is looked at in this way once.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from flowblend_cli.models.contents import (
    INDEX,
    SHARD,
    components,
    denoiser_folder,
    files_of,
    missing_of_component,
    reader_of,
    weight_files,
)
from flowblend_cli.text import count
from flowblend_cli.utils.cache_dirs import cache_path
from flowblend_cli.utils.files import open_regular, read_regular
from flowblend_cli.utils.json_files import keep_json, read_json
from flowblend_cli.utils.worker_process import run_worker

# Raised when a change here or in the library makes other answers to the same request.
CHECK_VERSION = 2
_PATIENCE_S = 600
_MAX_HEADER = 100_000_000  # safetensors' own limit
_MAX_JSON = 256 * 2**20
_MOST_TENSORS = 20  # that are named of one component
_LARGE_BYTES = 64 * 2**20
# Sizes of numbers in bits, by what safetensors call them.
_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_FLOATS = ("F", "BF")


class Stored(NamedTuple):
    """How a file stores a tensor: the kind of its numbers, in safetensors' words, and its shape."""

    dtype: str
    shape: tuple[int, ...]


_Tensors = dict[str, Stored]


@dataclass(frozen=True)
class Place:
    """A model's files on this machine.

    Args:
        folder: Folder of the pipeline, or that holds a denoiser.
        subfolder: A denoiser's folder inside; None where ``folder`` is the denoiser itself, or for
            a pipeline.
        is_pipeline: Whether all components count, instead of one denoiser.
        variant: Variant of the weights.
    """

    folder: Path
    subfolder: str | None = None
    is_pipeline: bool = True
    variant: str | None = None


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a model's files.

    Args:
        component: The component; empty for a denoiser that is a folder of its own.
        file: The file, relative to the model's folder.
        problem: What is wrong with it, and with which tensor.
        is_of_file: Whether the file by itself shows it, whatever its component is.
    """

    component: str
    file: str
    problem: str
    is_of_file: bool = False

    def __str__(self) -> str:
        inside = f"{self.component}: " if self.component else ""
        return f"{inside}{self.file} {self.problem}"


@dataclass(frozen=True)
class _Component:
    """One component: where it lies, its class, and the files that are read of it."""

    name: str
    folder: Path
    library: str
    kind: str
    names: frozenset[str]
    weights: tuple[str, ...]

    @property
    def has_tensors(self) -> bool:
        return bool(self.weights)

    def fault(self, file: str, problem: str, *, is_of_file: bool = False) -> Fault:
        path = f"{self.name}/{file}" if self.name else file
        return Fault(self.name, path, problem, is_of_file)


def find_faults(places: Iterable[Place]) -> dict[Place, tuple[Fault, ...]]:
    """Tell all that is wrong with the files of models that are on this machine.

    Files that are missing altogether are told by ``models.contents``, and not here.

    Returns:
        The faults of each place; none for a component whose class can't be asked, since its
        libraries aren't installed.
    """
    found: dict[Place, list[Fault]] = {}
    asked: list[tuple[Place, _Component, _Tensors, str]] = []
    indices: dict[Place, str] = {}
    for place in dict.fromkeys(places):
        faults = found.setdefault(place, [])
        indices.update((place, request) for request in _index_request(place))
        for component in _components_of(place):
            own = list(_config_faults(component))
            tensors = _read_tensors(component, own)
            faults += own
            if not own:
                asked.append((place, component, tensors, _request(component, tensors)))
    answers = _answers({request for *_, request in asked} | set(indices.values()))
    for place, request in indices.items():
        told = answers.get(request, [])
        found[place] += [Fault(one["component"], INDEX, one["problem"]) for one in told]
    for place, component, tensors, request in asked:
        found[place] += _named(component, tensors, answers.get(request, []))
    return {place: tuple(faults) for place, faults in found.items()}


def component_keys(place: Place) -> list[str]:
    """The keys under which it is kept whether a model's index and components are whole."""
    requests = [_request(one, _read_tensors(one, [])) for one in _components_of(place)]
    requests += _index_request(place)
    return sorted({str(json.loads(request)["key"]) for request in requests})


def _components_of(place: Place) -> Iterator[_Component]:
    """The components of a model that have all of their files."""
    names, read = files_of(place.folder), reader_of(place.folder)
    if place.is_pipeline:
        parts = components(read(INDEX)) if INDEX in names else {}
    else:
        inside = place.subfolder
        if inside is None:
            inside = "" if "config.json" in names else denoiser_folder(names)
        parts = {} if inside is None else {inside: ("diffusers", "")}
    for name, (library, kind) in parts.items():
        if missing_of_component(names, read, name, library, kind, place.variant):
            continue
        prefix = f"{name}/" if name else ""
        inside_names = {one.removeprefix(prefix) for one in names if one.startswith(prefix)}
        own = frozenset(one for one in inside_names if "/" not in one)
        weights = weight_files(own, read, prefix, place.variant)
        yield _Component(name, place.folder / name, library, kind, own, tuple(weights))


def _config_faults(component: _Component) -> Iterator[Fault]:
    for name in sorted(component.names):
        if name.endswith(".json"):
            try:
                _json_of(component.folder / name)
            except OSError as error:
                reason = f"can't be read ({error.strerror or error})"
                yield component.fault(name, reason, is_of_file=True)
            except (ValueError, RecursionError):
                yield component.fault(name, "isn't JSON", is_of_file=True)


def _json_of(path: Path) -> Any:
    # Not ``read_config``: a tokenizer's vocabulary may be larger than its limit.
    return json.loads(read_regular(path, _MAX_JSON, follow=True))


def _read_tensors(component: _Component, faults: list[Fault]) -> _Tensors:
    """A component's tensors; what is wrong with its files is added to the faults."""
    tensors: _Tensors = {}
    holders: dict[str, str] = {}
    for name in component.weights:
        found, problem = read_header(component.folder / name)
        if problem:
            faults.append(component.fault(name, problem, is_of_file=True))
        tensors |= found
        holders |= dict.fromkeys(found, name)
    if not faults:
        faults += _index_faults(component, holders)
    return tensors


def _index_faults(component: _Component, holders: Mapping[str, str]) -> Iterator[Fault]:
    """Tensors that an index promises of a shard which hasn't got them."""
    for name in sorted(component.names):
        if not name.endswith(".json") or ".safetensors.index" not in name:
            continue
        listed = _json_of(component.folder / name)
        wanted = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(wanted, dict) or not wanted:
            yield component.fault(name, "has no weight_map, which tells where each tensor is")
            continue
        if not isinstance(listed.get("metadata"), dict):
            yield component.fault(name, "has no metadata, without which no loader reads it")
        strange = [one for one in map(str, wanted.values()) if not SHARD.fullmatch(one)]
        if strange:
            yield component.fault(name, f"names {strange[0]!r}, which is no file of weights")
        absent = set(map(str, wanted.values())) - set(component.names)
        if absent and component.weights:  # a whole file, which diffusers reads after an index
            if name.startswith("diffusion_pytorch_model"):
                whole = component.weights[0]
                problem = f"names shards that aren't here, and is read before {whole}: delete it"
                yield component.fault(name, problem)
        elif set(map(str, wanted.values())) == set(component.weights):
            wrong = [one for one, shard in wanted.items() if holders.get(one) != shard]
            problems = [f"names {one} in {wanted[one]}, which hasn't got it" for one in wrong]
            yield from (component.fault(name, problem) for problem in _shortened(problems))


def read_header(path: Path) -> tuple[_Tensors, str | None]:
    """Read how a safetensors file stores its tensors, without its weights.

    Returns:
        Each tensor by its name, and what is wrong with the file, if anything.
    """
    try:
        size = path.stat().st_size
        with open_regular(path, sys.maxsize, follow=True) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                return {}, "is no safetensors file, or is cut short"
            header = file.read(length)
    except OSError as error:
        return {}, f"can't be read ({error.strerror or error})"
    try:
        told = json.loads(header)
        told.pop("__metadata__", None)
        tensors = {
            name: Stored(str(one["dtype"]), tuple(int(side) for side in one["shape"]))
            for name, one in told.items()
        }
        places = {name: (*map(int, one["data_offsets"]),) for name, one in told.items()}
        end = max((last for _, last in places.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return {}, "has a header that can't be read"
    if 8 + length + end != size:
        return {}, f"has {size} bytes, and its header tells of {8 + length + end}"
    return tensors, _layout_problem(tensors, places)


def _layout_problem(tensors: _Tensors, places: Mapping[str, tuple[int, ...]]) -> str | None:
    """A tensor whose bytes aren't as many as its shape asks for, or don't follow the last one's."""
    after = 0
    for name, (start, end) in sorted(places.items(), key=lambda one: one[1]):
        dtype, shape = tensors[name]
        if dtype not in _BITS:
            return f"has the tensor {name} in {dtype!r}, which no safetensors file has"
        wanted = math.prod(shape) * _BITS[dtype] // 8
        if end - start != wanted or min(shape, default=0) < 0:
            shown = f"{dtype} {list(shape)}"
            return f"has the tensor {name} as {shown} in {end - start} bytes: expected {wanted}"
        if start != after:
            return f"has the tensor {name} at byte {start} of its data: expected {after}"
        after = end
    return None


def _index_request(place: Place) -> list[str]:
    """Ask about a pipeline's index; nothing for a denoiser, or where there is no index."""
    index = reader_of(place.folder)(INDEX) if place.is_pipeline else {}
    if not index:
        return []
    key = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    return [json.dumps({"index": index, "key": key}, sort_keys=True)]


def _request(component: _Component, tensors: _Tensors) -> str:
    """Ask about one component: a text that is equal where the answer must be."""
    read = sorted(one for one in component.names if one.endswith((".json", ".model", ".txt")))
    hashes = {one: _hash(component.folder / one) for one in read}
    asked = {
        "library": component.library,
        "kind": component.kind,
        "files": hashes,
        "shapes": {name: one.shape for name, one in tensors.items()},
        "has_tensors": component.has_tensors,
    }
    other = {name: one.dtype for name, one in tensors.items() if not one.dtype.startswith(_FLOATS)}
    if other:
        asked["dtypes"] = other
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return json.dumps({**asked, "key": key, "folder": str(component.folder)}, sort_keys=True)


def _hash(path: Path) -> str:
    if path.stat().st_size > _LARGE_BYTES:
        return str(path.stat().st_size)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _answers(requests: Collection[str]) -> dict[str, list[dict[str, str]]]:
    """What the worker process, or whoever asked before, says of each component."""
    answers, unknown = {}, []
    for request in sorted(requests):
        key = json.loads(request)["key"]
        known = [] if key in _shipped() else _kept(key)
        if known is None:
            unknown.append(request)
        else:
            answers[request] = known
    told = _ask([*map(json.loads, unknown)]) if unknown else []
    for request, answer in zip(unknown, told, strict=False):
        if "faults" in answer:
            answers[request] = answer["faults"]
            keep_json(_path_of(json.loads(request)["key"]), answer["faults"])
    return answers


def _ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if "torch" in sys.modules:  # a process that has it already needs no other one
        from flowblend_cli.models import completeness_worker

        return [completeness_worker.answer(request) for request in requests]
    module = "flowblend_cli.models.completeness_worker"
    return run_worker(module, {"requests": requests}, name="model check", patience_s=_PATIENCE_S)[0]


def _named(
    component: _Component, tensors: _Tensors, told: Iterable[Mapping[str, str]]
) -> Iterator[Fault]:
    """The faults that the worker told, each with the file that has, or should have, its tensor."""
    by_file: dict[str, list[str]] = {}
    for fault in told:
        tensor = fault.get("tensor")
        if tensor is None:
            by_file.setdefault(_config_of(component), []).append(fault["problem"])
            continue
        file = _file_of(component, tensor, tensors)
        by_file.setdefault(file, []).append(fault["problem"])
    for file, problems in by_file.items():
        yield from (component.fault(file, one) for one in _shortened(problems))


def _shortened(problems: list[str]) -> list[str]:
    left = len(problems) - _MOST_TENSORS
    more = [f"has {count(left, 'more such tensor')}"] if left > 0 else []
    return problems[:_MOST_TENSORS] + more


def _config_of(component: _Component) -> str:
    usual = ("config.json", "scheduler_config.json", "tokenizer_config.json")
    return next((one for one in usual if one in component.names), "")


def _file_of(component: _Component, tensor: str, tensors: _Tensors) -> str:
    """The file that has a tensor, or the one that is to list it."""
    if len(component.weights) == 1:
        return component.weights[0]
    if tensor in tensors:
        for name in component.weights:
            if tensor in read_header(component.folder / name)[0]:
                return name
    return next((one for one in sorted(component.names) if ".safetensors.index" in one), "")


@cache
def _shipped() -> frozenset[str]:
    """Requests about the bundled models, which are whole."""
    text = (files("flowblend_cli") / "data" / "whole_components.json").read_text("utf-8")
    return frozenset(json.loads(text))


def _path_of(key: str) -> Path:
    versions = []
    for package in ("diffusers", "transformers"):
        try:
            versions.append(version(package))
        except PackageNotFoundError:
            versions.append("")
    told = " ".join([str(CHECK_VERSION), *versions, key])
    return cache_path("completeness", f"{hashlib.sha256(told.encode()).hexdigest()}.json")


def _kept(key: str) -> list[dict[str, str]] | None:
    """An answer from the disk; None where there is none, or where it is damaged."""
    try:
        answer = read_json(_path_of(key))
        faults = [{str(name): str(text) for name, text in one.items()} for one in answer]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None
    return faults if all("problem" in one for one in faults) else None
