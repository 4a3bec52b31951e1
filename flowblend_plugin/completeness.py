"""tensor_faults: what a component's files lack, or have too much, told without reading weights.

The component is built on the meta device, where tensors have shapes and no memory, and the loaders'
own rules say which names mean the same (tied weights, former names) and which may be left out.
``index_faults`` asks a pipeline's class which components it can't be without.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers.models.modeling_utils import no_init_weights
from diffusers.pipelines import pipeline_loading_utils

Shapes = Mapping[str, Sequence[int]]
Dtypes = Mapping[str, str]
Fault = dict[str, str]

_PACKAGE = __name__.partition(".")[0]
_NULL = [None, None]  # what an index says of a component that isn't there
_DENOISERS = ("transformer", "unet", "transformer_2")
# What safetensors call the kinds of numbers that no weight of a module is, unless it is quantised.
_NO_FLOATS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "C64": torch.complex64,
}  # fmt: skip

# Parts of a whole checkpoint that a component made of a part of it leaves aside.
_UNUSED_HEADS = frozenset(
    {
        "classifier", "cls", "decoder", "lm_head", "logit_bias", "logit_scale", "pooler", "score",
        "text_model", "text_projection", "vision_model", "visual_projection",
    }
)  # fmt: skip
# Tables that former versions stored, and that are computed anew today.
_COMPUTED = frozenset({"bias_table", "inv_freq", "masked_bias", "position_ids"})


def index_faults(index: Mapping[str, Any]) -> list[Fault]:
    """Compare a pipeline's ``model_index.json`` with what its class asks for.

    Args:
        index: What the file says.

    Returns:
        One entry a fault: ``component``, empty for the pipeline itself, and ``problem`` in words,
        of which the file is the subject.
    """
    kind = index.get("_class_name")
    found: Any = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    is_pipeline = isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)
    if not is_pipeline or found is diffusers.DiffusionPipeline:
        return [{"component": "", "problem": _no_pipeline(kind, found)}]
    needed, _ = found._get_signature_keys(found)
    types: Mapping[str, Sequence[Any]] = found._get_signature_types()
    null = [name for name in needed if index.get(name, _NULL) == _NULL]
    faults = {
        name: _absent_problem(name, found, index, types.get(name, ()))
        if name in null
        else _entry_problem(name, index[name], types.get(name, ()))
        for name in needed
    }
    denoisers = [name for name in _DENOISERS if name in needed]
    if denoisers and set(denoisers) <= set(null) and not faults[denoisers[0]]:
        names = " or ".join(denoisers)
        faults[denoisers[0]] = f"names no denoiser: expected a class for {names}, and its folder"
    return [{"component": name, "problem": one} for name, one in faults.items() if one]


def tensor_faults(
    library: str, kind: str, folder: Path, shapes: Shapes, dtypes: Dtypes | None = None
) -> list[Fault]:
    """Compare the tensors of a component's files with those that its class and config ask for.

    Args:
        library: Module that has the class, as in ``model_index.json``.
        kind: The class; empty for the one that the config names.
        folder: Folder of the component, with its ``config.json``.
        shapes: Shape of each tensor in its files.
        dtypes: What safetensors call the numbers of those that aren't floats; None for no such.

    Returns:
        One entry a fault: ``tensor``, and ``problem`` in words, of which the file that has or lacks
        it is the subject; no ``tensor`` where the config itself can't be used. Empty too where the
        class isn't known here, or the weights are quantised, so that other names are right.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if not isinstance(config, dict):
        return [{"problem": "is no JSON object"}]
    cls = _class(library, kind or str(config.get("_class_name")))
    if cls is None:
        return []
    compare: Callable[[Any, Path, Shapes, Dtypes], Iterator[Fault]] | None = None
    if issubclass(cls, diffusers.ModelMixin):
        compare = _faults_of_diffusers
    elif issubclass(cls, transformers.PreTrainedModel):
        compare = _faults_of_transformers
    if compare is None or "quantization_config" in config:
        return []
    with _quiet():
        faults = list(compare(cls, folder, shapes, dtypes or {}))
    return sorted(faults, key=lambda fault: fault.get("tensor", ""))


def config_fault(library: str, kind: str, folder: Path) -> str | None:
    """Say why a tokenizer, processor or scheduler can't be made of its files; None if it can."""
    cls: Any = _class(library, kind)
    if cls is None or not hasattr(cls, "from_pretrained"):
        return None
    try:
        with _quiet():
            cls.from_pretrained(str(folder), local_files_only=True)
    except ImportError:
        return None  # a package is missing here, and nothing of the model
    except Exception as error:  # noqa: BLE001 - whatever broken files make its class raise
        return f"{kind} can't be made of it: {_first_line(error)}"
    return None


def store_tokenizer(library: str, kind: str, folder: Path, path: Path) -> None:
    """Store a tokenizer of any form as one ``tokenizer.json``, whole or not at all.

    Args:
        library: Module that has its class.
        kind: The class.
        folder: Folder of its files.
        path: The file to write.
    """
    cls: Any = _class(library, kind) or transformers.AutoTokenizer
    with _quiet():
        tokenizer = cls.from_pretrained(str(folder), local_files_only=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(tokenizer.backend_tokenizer.to_str(), "utf-8")
    temporary.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what loaders print about tensors to ourselves, for a while."""
    logs: Any = (diffusers.utils.logging, transformers.utils.logging)
    before = [log.get_verbosity() for log in logs]
    has_bar = transformers.utils.logging.is_progress_bar_enabled()
    for log in logs:
        log.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.set_verbosity(level)
        if has_bar:
            transformers.utils.logging.enable_progress_bar()


def _class(library: str, kind: str) -> type | None:
    """Find a class as diffusers does, which imports only the libraries that it knows, and ours."""
    loading: Any = pipeline_loading_utils
    names = (
        [library]
        if library in loading.LOADABLE_CLASSES or library.partition(".")[0] == _PACKAGE
        else []
    )
    if library == "transformers":  # classes that later versions call otherwise
        kind = loading._maybe_remap_transformers_class(kind) or kind
    for name in (*names, f"diffusers.pipelines.{library}"):
        try:
            found = getattr(importlib.import_module(name), kind, None)
        except ImportError:
            continue
        if isinstance(found, type):
            return found
    return None


def _no_pipeline(kind: Any, found: Any) -> str:
    """What is wrong with the pipeline's class that an index names."""
    if kind is None:
        return "has no _class_name: expected the class of a pipeline, such as WanPipeline"
    backends = getattr(found, "_backends", None)
    if backends:
        return f"names {kind}, which needs packages that aren't here: {', '.join(backends)}"
    known = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    near = difflib.get_close_matches(str(kind), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"has {kind!r} as _class_name, and diffusers {diffusers.__version__} has no such pipeline"
        f"{hint}: expected a class of diffusers"
    )


def _absent_problem(name: str, cls: Any, index: Mapping[str, Any], types: Sequence[Any]) -> str:
    """What is wrong where an index names no component; nothing where the class can do without."""
    if name in cls._optional_components:
        return ""
    found = "has null as" if name in index else "doesn't name the"
    return f"{found} {name}, which {cls.__name__} can't be without: expected {_expected(types)}"


def _entry_problem(name: str, entry: Any, types: Sequence[Any]) -> str:
    """What is wrong with the library and class that an index names for a component."""
    is_pair = isinstance(entry, list) and len(entry) == 2
    if not is_pair or not all(isinstance(word, str) for word in entry):
        return f"has {json.dumps(entry)[:80]}: expected {_expected(types)}"
    library, kind = entry
    found: Any = _class(library, kind)
    if found is None:
        return f"names {kind} of {library}, which isn't there: expected {_expected(types)}"
    models = tuple(one for one in types if isinstance(one, type) and one is not type(None))
    of_models = models and all(issubclass(one, torch.nn.Module) for one in models)
    wanted = models if name in _DENOISERS else (torch.nn.Module,)
    if of_models and not (issubclass(found, wanted) or hasattr(found, "_backends")):
        return f"names {kind} of {library}, which doesn't fit: expected {_expected(types)}"
    return ""


def _expected(types: Sequence[Any]) -> str:
    """The library and class that would be right, as an index has them."""
    named = [(library_of(one), one.__name__) for one in types if isinstance(one, type)]
    shown = [json.dumps(pair) for pair in named if _class(*pair) is not None]
    return " or ".join(shown[:3]) or '["LIBRARY", "CLASS"]'


def library_of(cls: type) -> str:
    """Name the library of a class as an index has it: a folder of pipelines, or the package."""
    path = cls.__module__.split(".")
    folder = path[-2] if len(path) > 1 else ""
    return folder if path[0] == "diffusers" and hasattr(diffusers.pipelines, folder) else path[0]


def _faults_of_diffusers(cls: Any, folder: Path, shapes: Shapes, dtypes: Dtypes) -> Iterator[Fault]:
    try:
        model = _built(lambda: cls.from_config(cls.load_config(folder)))
    except Exception as error:  # noqa: BLE001 - whatever a config that doesn't fit makes it raise
        yield {"problem": f"{cls.__name__} can't be made of it: {_first_line(error)}"}
        return
    found = _on_meta(shapes, dtypes)
    model._fix_state_dict_keys_on_load(found)
    wanted = model.state_dict()
    yield from (_missing(name) for name in wanted.keys() - found.keys())
    ignored = cls._keys_to_ignore_on_load_unexpected or ()
    for name in found.keys() - wanted.keys():
        if not any(re.search(pattern, name) for pattern in ignored):
            yield _unexpected(name)
    for name in found.keys() & wanted.keys():
        if found[name].shape != wanted[name].shape:
            yield _misshapen(name, found[name].shape, wanted[name].shape)
        if wanted[name].dtype.is_floating_point and not found[name].dtype.is_floating_point:
            yield _no_floats(name, found[name].dtype)


def _built(make: Callable[[], Any]) -> Any:
    """Make a module without its weights; where it computes with tensors then, as loaders do it."""
    try:
        with torch.device("meta"):
            return make()
    except Exception:  # noqa: BLE001 - what computing without values raises
        with no_init_weights(), init_empty_weights():
            return make()


def _faults_of_transformers(
    cls: Any, folder: Path, shapes: Shapes, dtypes: Dtypes
) -> Iterator[Fault]:
    try:
        config = cls.config_class.from_pretrained(folder, local_files_only=True)
        model, told = cls.from_pretrained(
            None,
            config=config,
            state_dict=_on_meta(shapes),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # noqa: BLE001 - as above
        yield {"problem": f"{cls.__name__} can't be made of it: {_first_line(error)}"}
        return
    yield from (_missing(name) for name in told["missing_keys"])
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers()} | _COMPUTED
    children = {name for name, _ in model.named_children()}
    whole: set[str] | None = None
    for name in told["unexpected_keys"]:
        head = name.removeprefix(f"{cls.base_model_prefix}.").partition(".")[0]
        is_head = head in _UNUSED_HEADS - children
        if is_head or name.rpartition(".")[2] in computed:
            continue
        whole = _tensors_of_architectures(cls, config) if whole is None else whole
        if name not in whole:
            yield _unexpected(name)
    for name, found, wanted in told["mismatched_keys"]:
        yield _misshapen(name, found, wanted)
    floats = {name for name, one in model.state_dict().items() if one.dtype.is_floating_point}
    prefix = f"{cls.base_model_prefix}."
    for name, dtype in dtypes.items():
        if {name, prefix + name, name.removeprefix(prefix)} & floats:
            yield _no_floats(name, _NO_FLOATS[dtype])


def _tensors_of_architectures(cls: type, config: Any) -> set[str]:
    """Name the tensors of the classes that a checkpoint was written by; they may be more."""
    names: set[str] = set()
    for written_by in config.architectures or ():
        other = getattr(transformers, str(written_by), None)
        if other is None or other is cls:
            continue
        try:
            with torch.device("meta"):
                names |= other(config).state_dict().keys()
        except Exception:  # noqa: BLE001, S112 - a class that this config doesn't fit tells nothing
            continue
    return names


def _on_meta(shapes: Shapes, dtypes: Dtypes | None = None) -> dict[str, torch.Tensor]:
    kinds = {name: _NO_FLOATS[dtype] for name, dtype in (dtypes or {}).items()}
    return {
        name: torch.empty(tuple(shape), dtype=kinds.get(name, torch.float32), device="meta")
        for name, shape in shapes.items()
    }


def _missing(name: str) -> Fault:
    return {"tensor": name, "problem": f"lacks the tensor {name}"}


def _unexpected(name: str) -> Fault:
    problem = f"has an unexpected tensor, {name}, which its config doesn't ask for"
    return {"tensor": name, "problem": problem}


def _misshapen(name: str, found: Sequence[int], wanted: Sequence[int]) -> Fault:
    problem = f"has the tensor {name} in shape {list(found)}, its config asks for {list(wanted)}"
    return {"tensor": name, "problem": problem}


def _no_floats(name: str, dtype: torch.dtype) -> Fault:
    problem = (
        f"has the tensor {name} in {str(dtype).removeprefix('torch.')}: expected floats, since its "
        "config names no quantization_config"
    )
    return {"tensor": name, "problem": problem}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
