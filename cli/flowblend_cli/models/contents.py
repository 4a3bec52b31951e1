"""Contents of models: the files of a pipeline or denoiser, read from its small JSON files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelMissingError, ModelNameError
from flowblend_cli.utils.json_files import NotJson, read_config

INDEX = "model_index.json"
# All that a pipeline reads, and nothing that can run code while it is read.
SUFFIXES = (".safetensors", ".json", ".model", ".txt")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
DENOISER_FOLDERS = ("transformer_small", "transformer", "unet")

_WHOLE = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
# Weights without a variant in their name (fp16, ema): those that are loaded.
_PLAIN = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d{5}-of-\d{5})?\.safetensors(?:\.index\.json)?"
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_COMPONENT = re.compile(r"\w+", re.ASCII)
_READS_NO_WEIGHTS = ("Tokenizer", "Processor", "FeatureExtractor")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
# Keys that name code in the repository, which loaders that trust it would run.
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_code")
_CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)

Read = Callable[[str], Mapping[str, Any]]


def files_of(folder: Path) -> set[str]:
    """The files of a folder by their relative names; a link that leads nowhere isn't one."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it can't be read."""
    try:
        value = read_config(path)
    except (OSError, NotJson):
        return {}
    return value if isinstance(value, dict) else {}


def reader_of(folder: Path) -> Read:
    """A function that reads a JSON object of a folder; empty where there is none."""
    return lambda name: read_json(folder / name)


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline that have folders of their own, with library and class."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list)
        and len(value) == 2
        and all(isinstance(word, str) for word in value)
        and _COMPONENT.fullmatch(name)
    }


def denoiser_folder(names: Collection[str]) -> str | None:
    """The folder of the denoiser in a repository; None if it has none."""
    return next((one for one in DENOISER_FOLDERS if f"{one}/config.json" in names), None)


def wanted(names: Collection[str], folders: Collection[str]) -> list[str]:
    """Choose the files of a repository that loading some of its folders reads.

    Args:
        names: All files of the repository.
        folders: The folders.
    """
    return sorted(name for name in names if name == INDEX or _is_wanted(name, folders))


def _is_wanted(name: str, folders: Collection[str]) -> bool:
    folder, _, file = name.partition("/")
    if folder not in folders or not file or "/" in file or not file.endswith(SUFFIXES):
        return False
    return ".safetensors" not in file or _PLAIN.fullmatch(file) is not None


def missing_of_pipeline(names: Collection[str], read: Read) -> list[str]:
    """List files that a pipeline can't be loaded without, and that aren't among ``names``.

    Args:
        names: The files that are there.
        read: Reads one of them as a JSON object; empty where it can't.
    """
    if INDEX not in names:
        return [INDEX]
    missing: list[str] = []
    for name, (library, kind) in components(read(INDEX)).items():
        missing += _missing_of_component(names, read, name, library, kind)
    return missing


def missing_of_denoiser(names: Collection[str], read: Read, folder: str | None) -> list[str]:
    """List such files of one denoiser, in a folder of its repository; None finds the folder."""
    folder = denoiser_folder(names) if folder is None else folder
    if folder is None:
        return [f"{DENOISER_FOLDERS[1]}/config.json"]
    return _missing_of_component(names, read, folder, "diffusers", "")


def _missing_of_component(
    names: Collection[str], read: Read, name: str, library: str, kind: str
) -> list[str]:
    prefix = f"{name}/" if name else ""
    inside = {one.removeprefix(prefix) for one in names if one.startswith(prefix)}
    if kind.endswith("Scheduler"):
        lacking = [] if "scheduler_config.json" in inside else ["scheduler_config.json"]
    elif "Tokenizer" in kind:
        lacking = _missing_of_tokenizer(inside, kind)
    elif any(word in kind for word in _READS_NO_WEIGHTS) or library not in _WHOLE:
        lacking = [] if inside else [""]
    else:
        lacking = [] if "config.json" in inside else ["config.json"]
        lacking += _missing_weights(inside, read, prefix, _WHOLE[library])
    return [prefix + file for file in lacking]


def _missing_of_tokenizer(inside: set[str], kind: str) -> list[str]:
    lacking = [] if "tokenizer_config.json" in inside else ["tokenizer_config.json"]
    has_words = any(name in _VOCABULARIES or name.endswith(".model") for name in inside)
    if not has_words and "Byte" not in kind and "ByT5" not in kind:
        lacking.append("tokenizer.json")
    return lacking


def _missing_weights(inside: set[str], read: Read, prefix: str, whole: str) -> list[str]:
    """The weights of one model: one file, or an index and all of its shards."""
    if whole in inside:
        return []
    index = f"{whole}.index.json"
    if index in inside:
        shards = read(prefix + index).get("weight_map")
        listed = {str(one) for one in shards.values()} if isinstance(shards, dict) else set()
        return sorted(listed - inside)
    stem = whole.removesuffix(".safetensors")
    for name in sorted(inside):
        match = _SHARD.fullmatch(name)
        if match and match[1] == stem:
            total = int(match[3])
            numbered = {f"{stem}-{n:05}-of-{match[3]}.safetensors" for n in range(1, total + 1)}
            return [index, *sorted(numbered - inside)]
    return [whole]


def pickled(names: Collection[str], missing: Collection[str]) -> str | None:
    """A pickle in a folder where safetensors are missing; None if there is none."""
    for lacking in missing:
        if lacking.endswith(".safetensors"):
            folder = lacking.rpartition("/")[0]
            for name in sorted(names):
                if name.rpartition("/")[0] == folder and name.endswith(PICKLE_SUFFIXES):
                    return name
    return None


def code_of(names: Collection[str], read: Read) -> Iterator[str]:
    """Find what makes loaders that trust a repository run its code."""
    index = read(INDEX)
    kind = index.get("_class_name")
    if INDEX in names and kind is not None and not isinstance(kind, str):
        yield f"{INDEX}: its _class_name names a pipeline file"
    for name, (library, _) in components(index).items():
        if f"{name}/{library}.py" in names or f"{library}.py" in names:
            yield f"{INDEX}: {name} names {library}.py"
    configs = [one for one in names if one == INDEX or one.rpartition("/")[2] in _CONFIGS]
    for config in sorted(configs):
        found = read(config)
        for key in _CODE_KEYS:
            if found.get(key):
                yield f"{config}: {key}"


def check_contents(folder: Path, name: str, subfolder: str | None, *, pipeline: bool) -> None:
    """Check that a model's folder is complete and brings no code, before anything loads it.

    Args:
        folder: The folder of the pipeline or repository.
        name: The model as the recipe names it.
        subfolder: The denoiser's folder; None to look for it.
        pipeline: Whether a whole pipeline is wanted, instead of one denoiser.

    Raises:
        ModelNameError: It brings code of its own.
        ModelMissingError: Files of it are missing, or its weights are pickles.
    """
    names, read = files_of(folder), reader_of(folder)
    _require_json(folder, names, name)
    code = next(code_of(names, read), None)
    if code is not None:
        raise ModelNameError(
            f"model {name!r} brings code of its own ({code}), and nothing that a recipe names is "
            "run: use a model that diffusers loads without it"
        )
    if pipeline:
        missing = missing_of_pipeline(names, read)
    elif "config.json" in names and subfolder is None:
        missing = _missing_of_component(names, read, "", "diffusers", "")
    else:
        missing = missing_of_denoiser(names, read, subfolder)
    pickle = pickled(names, missing)
    if pickle is not None:
        raise ModelMissingError(
            f"model {name!r} has pickle weights only ({pickle}), which can run any code: use a "
            "repository or folder with safetensors weights"
        )
    if missing:
        raise ModelMissingError(
            f"model {name!r} is only half there: {name_files(missing)} missing in {folder}; "
            "`flowblend models fetch` completes a model of the Hub"
        )


def _require_json(folder: Path, names: Collection[str], model: str) -> None:
    """Raise unless every config of a model is a JSON object, which loading it takes for granted."""
    for name in sorted(names):
        if name == INDEX or name.rpartition("/")[2] in _CONFIGS:
            try:
                found = read_config(folder / name)
                reason = "" if isinstance(found, dict) else "is no JSON object"
            except (OSError, NotJson) as error:
                reason = getattr(error, "strerror", None) or str(error)
            if reason:
                raise ModelMissingError(
                    f"model {model!r} can't be used: {name} in {folder} {reason}: fetch or copy it "
                    "again"
                )


def name_files(names: Collection[str]) -> str:
    """Name some files with their verb: at most three, and how many more, ``"a, b are"``."""
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
