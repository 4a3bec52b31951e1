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
# Weights by their name: a variant (fp16, ema) stands in it, or none does.
SHARD = re.compile(r"[^/\\]+\.safetensors")
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?P<shard>-\d{5}-of-(?P<total>\d{5}))?(?:\.(?P<after>\w+))?\.safetensors"
    r"(?P<index>\.index(?:\.(?P<of_index>\w+))?\.json)?",
    re.ASCII,
)
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


def variant_of(file: str) -> str | None:
    """The variant that the name of a weights file, or of their index, has; empty for none.

    Returns:
        None where the file is neither.
    """
    match = _WEIGHTS.fullmatch(file)
    return match and (match["variant"] or match["after"] or match["of_index"] or "")


def variant_in(files: Collection[str], variant: str | None) -> str:
    """Which weights of a component's folder are loaded: the variant's where there are any."""
    return variant if variant and any(variant_of(file) == variant for file in files) else ""


def wanted(
    names: Collection[str], folders: Collection[str], variant: str | None = None
) -> list[str]:
    """Choose the files of a repository that loading some of its folders reads.

    Args:
        names: All files of the repository.
        folders: The folders; an empty name is the repository's own.
        variant: Variant of the weights, taken in each folder that has it.
    """
    chosen = {INDEX} & set(names)
    for folder in folders:
        inside = {
            file: name
            for name in names
            for before, _, file in [name.rpartition("/")]
            if before == folder and file.endswith(SUFFIXES)
        }
        taken = variant_in(inside, variant)
        for file, name in inside.items():
            if variant_of(file) == (taken if ".safetensors" in file else None):
                chosen.add(name)
    return sorted(chosen)


def missing_of_pipeline(
    names: Collection[str], read: Read, variant: str | None = None
) -> list[str]:
    """List files that a pipeline can't be loaded without, and that aren't among ``names``.

    Args:
        names: The files that are there.
        read: Reads one of them as a JSON object; empty where it can't.
        variant: See ``wanted``.
    """
    if INDEX not in names:
        return [INDEX]
    missing: list[str] = []
    for name, (library, kind) in components(read(INDEX)).items():
        missing += missing_of_component(names, read, name, library, kind, variant)
    return missing


def missing_of_denoiser(
    names: Collection[str], read: Read, folder: str | None, variant: str | None = None
) -> list[str]:
    """List such files of one denoiser, in a folder of its repository; None finds the folder."""
    folder = denoiser_folder(names) if folder is None else folder
    if folder is None:
        return [f"{DENOISER_FOLDERS[1]}/config.json"]
    return missing_of_component(names, read, folder, "diffusers", "", variant)


def missing_of_component(
    names: Collection[str],
    read: Read,
    name: str,
    library: str,
    kind: str,
    variant: str | None = None,
) -> list[str]:
    """List such files of one component.

    Args:
        names: See ``missing_of_pipeline``.
        read: Likewise.
        name: Folder of the component; empty where its files lie at the top.
        library: The library of its class.
        kind: The class.
        variant: See ``wanted``.
    """
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
        lacking += _missing_weights(inside, read, prefix, _WHOLE[library], variant)
    return [prefix + file for file in lacking]


def _missing_of_tokenizer(inside: set[str], kind: str) -> list[str]:
    lacking = [] if "tokenizer_config.json" in inside else ["tokenizer_config.json"]
    has_words = any(name in _VOCABULARIES or name.endswith(".model") for name in inside)
    if not has_words and "Byte" not in kind and "ByT5" not in kind:
        lacking.append("tokenizer.json")
    return lacking


def _missing_weights(
    inside: set[str], read: Read, prefix: str, whole: str, variant: str | None
) -> list[str]:
    """The weights of one model: one file, or an index and all of its shards."""
    taken = variant_in(inside, variant)
    single, index = weight_names(whole, taken)
    if single in inside:
        return []
    if index in inside:
        return sorted(_shards(read, prefix + index) - inside)
    for name in sorted(inside):
        match = _WEIGHTS.fullmatch(name)
        if match and match["shard"] and variant_of(name) == taken:
            if match["stem"] != whole.removesuffix(".safetensors"):
                continue
            numbered = {
                name.replace(match["shard"], f"-{number:05}-of-{match['total']}")
                for number in range(1, int(match["total"]) + 1)
            }
            return [index, *sorted(numbered - inside)]
    return [single]


def _shards(read: Read, index: str) -> set[str]:
    """The files that an index names; what is no file's name is told by ``completeness``."""
    named = read(index).get("weight_map")
    listed = named.values() if isinstance(named, dict) else ()
    return {one for one in listed if isinstance(one, str) and SHARD.fullmatch(one)}


def weight_names(whole: str, variant: str) -> tuple[str, str]:
    """Names of a model's single file of weights, and of the index of several.

    Args:
        whole: The file's name without a variant.
        variant: The variant; empty for none.
    """
    if not variant:
        return whole, f"{whole}.index.json"
    stem = whole.removesuffix(".safetensors")
    return f"{stem}.{variant}.safetensors", f"{whole}.index.{variant}.json"


def weight_files(
    inside: Collection[str], read: Read, prefix: str, variant: str | None
) -> list[str]:
    """The files that a component's weights are read from; empty where it has none.

    Args:
        inside: Names of the files in its folder.
        read: Reads one of the model's files as a JSON object.
        prefix: What stands before their names in the model.
        variant: See ``wanted``.
    """
    taken = variant_in(inside, variant)
    for whole in _WHOLE.values():
        single, index = weight_names(whole, taken)
        if single in inside:
            return [single]
        if index in inside:
            return sorted(_shards(read, prefix + index) & set(inside))
    return []


def other_variants(names: Collection[str], missing: Collection[str]) -> list[str]:
    """The variants that are there of weights that are missing."""
    folders = {lacking.rpartition("/")[0] for lacking in missing if ".safetensors" in lacking}
    found = {
        variant_of(file)
        for folder, _, file in (name.rpartition("/") for name in names)
        if folder in folders
    }
    return sorted(variant for variant in found if variant)


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


def check_contents(
    folder: Path,
    name: str,
    subfolder: str | None,
    *,
    pipeline: bool,
    variant: str | None = None,
) -> None:
    """Check that a model's folder is complete and brings no code, before anything loads it.

    Args:
        folder: The folder of the pipeline or repository.
        name: The model as the recipe names it.
        subfolder: The denoiser's folder; None to look for it.
        pipeline: Whether a whole pipeline is wanted, instead of one denoiser.
        variant: See ``wanted``.

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
        missing = missing_of_pipeline(names, read, variant)
    elif "config.json" in names and subfolder is None:
        missing = missing_of_component(names, read, "", "diffusers", "", variant)
    else:
        missing = missing_of_denoiser(names, read, subfolder, variant)
    pickle = pickled(names, missing)
    if pickle is not None:
        raise ModelMissingError(
            f"model {name!r} has pickle weights only ({pickle}), which can run any code: use a "
            "repository or folder with safetensors weights"
        )
    if (
        variant
        and pipeline
        and not any(variant_of(name.rpartition("/")[2]) == variant for name in names)
    ):
        raise ModelMissingError(
            f"model {name!r} has no weights of the variant {variant} in {folder}: remove variant "
            "from [model], or fetch them with `flowblend models fetch`"
        )
    others = other_variants(names, missing)
    if others:
        have = " and ".join(others)
        raise ModelMissingError(
            f"model {name!r} has weights of the variant {have} only: {name_files(missing)} missing "
            f'in {folder}; set variant = "{others[0]}" in [model]'
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
