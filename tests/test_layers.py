"""Who may import whom: one row a folder, so that the plan of the house prevents a knot.

The graph is made of every import of every file: those at module level, those inside functions, and
those for types only. A name that a package's ``__init__`` hands on counts as an import of the file
that defines it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "flowblend_plugin": ROOT / "flowblend_plugin",
    "flowblend_cli": ROOT / "cli/flowblend_cli",
}
CLI, LIB = "flowblend_cli", "flowblend_plugin"

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}
PIXELS = {"numpy", "av", "PIL", "imageio"}
PURE_LIB = {
    f"{LIB}.errors",
    f"{LIB}.stages",
    f"{LIB}.schedulers.sigmas",
    f"{LIB}.calibration.calibration",
    f"{LIB}.calibration.criteria",
    f"{LIB}.checkpoints.safetensors_header",
}
ROOT_NOUNS = {f"{CLI}.{name}" for name in ("errors", "events", "jobs", "study", "text")}

# What each folder may import, besides the standard library, itself and the files before it in
# ``ORDER``. A row speaks for all files below it that no longer row names. A file that no row covers
# fails, and so does a new file in a package's root: say here what it may know.
TABLE: dict[str, set[str]] = {
    # The library.
    f"{LIB}.errors": set(),
    f"{LIB}.stages": {f"{LIB}.errors"},
    f"{LIB}.schedulers": {f"{LIB}.errors", f"{LIB}.stages", *HEAVY, "numpy"},
    f"{LIB}.schedulers.sigmas": {f"{LIB}.errors", f"{LIB}.stages"},
    f"{LIB}.denoisers": {f"{LIB}.errors", f"{LIB}.stages", *HEAVY},
    f"{LIB}.denoisers.adapter_files": {f"{LIB}.errors", "huggingface_hub", *HEAVY},
    f"{LIB}.denoisers.adapter_header": {f"{LIB}.errors"},
    f"{LIB}.stage_hooks": {
        f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.schedulers", f"{LIB}.denoisers",
        *HEAVY, "cache_dit",
    },
    f"{LIB}.switch": {
        f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.schedulers", f"{LIB}.denoisers",
        f"{LIB}.stage_hooks", *HEAVY,
    },
    f"{LIB}.checkpoints": {
        f"{LIB}.errors", f"{LIB}.schedulers", f"{LIB}.denoisers", f"{LIB}.stage_hooks",
        f"{LIB}.switch", *HEAVY, "numpy",
    },
    f"{LIB}.checkpoints.safetensors_header": {f"{LIB}.errors"},
    f"{LIB}.preview": {f"{LIB}.errors", f"{LIB}.schedulers", f"{LIB}.switch", *HEAVY, "numpy"},
    f"{LIB}.calibration": {
        f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.schedulers", f"{LIB}.denoisers",
        f"{LIB}.stage_hooks", f"{LIB}.switch", f"{LIB}.preview", *HEAVY, "numpy",
    },
    f"{LIB}.calibration.calibration": {f"{LIB}.errors"},
    f"{LIB}.calibration.criteria": {f"{LIB}.errors", f"{LIB}.stages"},
    f"{LIB}.modular": {
        f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.schedulers", f"{LIB}.denoisers",
        f"{LIB}.switch", *HEAVY,
    },
    f"{LIB}.flops": {f"{LIB}.errors", *HEAVY},
    f"{LIB}.completeness": set(HEAVY),
    f"{LIB}.metrics": {f"{LIB}.errors", "cv2", "numpy", "skimage"},
    f"{LIB}.metrics.learned": {f"{LIB}.errors", "numpy", "huggingface_hub", *HEAVY},
    f"{LIB}.prompt_cache": {f"{LIB}.errors", *HEAVY},
    f"{LIB}.numerics": set(HEAVY),
    LIB: {LIB},  # the face: every public name, imported when it is used
    # The command: the nouns that all folders share.
    f"{CLI}.text": set(),
    f"{CLI}.errors": {f"{CLI}.text", f"{LIB}.errors"},
    f"{CLI}.study": set(),
    f"{CLI}.jobs": {f"{CLI}.errors", f"{CLI}.study", f"{LIB}.stages"},
    f"{CLI}.events": set(),
    # The command's folders.
    f"{CLI}.data": set(),
    f"{CLI}.utils": {f"{CLI}.errors", f"{CLI}.text", f"{LIB}.errors", "platformdirs", "tomli",
                     *PIXELS},
    f"{CLI}.models": {
        *ROOT_NOUNS, f"{CLI}.utils", f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.schedulers.sigmas",
        f"{LIB}.calibration.calibration", f"{LIB}.denoisers.adapter_header",
        f"{LIB}.denoisers.compatibility", "ftfy", "huggingface_hub", "tokenizers", "tomli",
    },
    f"{CLI}.models.completeness_worker": {f"{CLI}.utils.worker_process", f"{LIB}.completeness"},
    f"{CLI}.artifacts": {*ROOT_NOUNS, f"{CLI}.utils", f"{LIB}.errors", *PIXELS},
    f"{CLI}.artifacts.schema": {
        *ROOT_NOUNS, f"{CLI}.recipe.schema", f"{CLI}.recipe.source.limits", f"{CLI}.utils",
        f"{LIB}.errors", "pydantic",
    },
    f"{CLI}.recipe": {
        *ROOT_NOUNS, f"{CLI}.models", f"{CLI}.utils", *PURE_LIB, f"{LIB}.metrics.catalogue",
        "pydantic", "pydantic_core", "tomli", "yaml",
    },
    f"{CLI}.planning": {
        *ROOT_NOUNS, f"{CLI}.models", f"{CLI}.utils", f"{LIB}.errors", f"{LIB}.stages",
        f"{LIB}.schedulers.sigmas", f"{LIB}.metrics",
    },
    f"{CLI}.planning.flops_worker": {f"{CLI}.utils.worker_process", f"{LIB}.flops"},
    f"{CLI}.engine": {
        *ROOT_NOUNS, f"{CLI}.planning", f"{CLI}.models", f"{CLI}.artifacts", f"{CLI}.utils",
        f"{CLI}.recipe.schema.names", f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.metrics",
        f"{LIB}.denoisers.adapter_header",
    },
    f"{CLI}.engine.executors.ray": {
        *ROOT_NOUNS, f"{CLI}.engine", f"{CLI}.models.identity", f"{CLI}.utils", f"{LIB}.errors",
        "ray",
    },
    f"{CLI}.engine.executors.ray_fetch": {
        *ROOT_NOUNS, f"{CLI}.engine", f"{CLI}.models", f"{LIB}.errors", "ray",
    },
    f"{CLI}.engine.executors.ray_cluster": {
        *ROOT_NOUNS, f"{CLI}.engine", f"{CLI}.utils", "ray",
    },
    f"{CLI}.engine.executors.ray_address": {*ROOT_NOUNS, f"{CLI}.utils", "ray"},
    f"{CLI}.engine.runtime": {
        *ROOT_NOUNS, f"{CLI}.planning", f"{CLI}.models", f"{CLI}.artifacts", f"{CLI}.utils",
        LIB, *HEAVY, "numpy",
    },
    f"{CLI}.console": {
        *ROOT_NOUNS, f"{CLI}.planning", f"{CLI}.artifacts", f"{CLI}.utils", f"{LIB}.stages",
    },
    f"{CLI}.console.live": {
        *ROOT_NOUNS, f"{CLI}.planning", f"{CLI}.utils", f"{LIB}.stages", "rich",
    },
    f"{CLI}.analysis": {
        *ROOT_NOUNS, f"{CLI}.artifacts", f"{CLI}.planning.metrics", f"{CLI}.utils",
        f"{LIB}.errors", f"{LIB}.stages", f"{LIB}.metrics", "nltk", *PIXELS,
    },
    f"{CLI}.analysis.web": {f"{CLI}.errors", f"{CLI}.text", "jinja2"},
    f"{CLI}.analysis.report.plots": {
        f"{CLI}.errors", f"{CLI}.text", f"{CLI}.utils", f"{LIB}.metrics.catalogue", "matplotlib",
        "numpy",
    },
    f"{CLI}.analysis.gallery": {
        *ROOT_NOUNS, f"{CLI}.engine", f"{CLI}.planning.run_progress", f"{CLI}.artifacts",
        f"{CLI}.utils", f"{LIB}.stages", f"{LIB}.metrics", *PIXELS,
    },
    f"{CLI}.diagnostics": {
        *ROOT_NOUNS, f"{CLI}.engine", f"{CLI}.console", f"{CLI}.planning", f"{CLI}.models",
        f"{CLI}.artifacts", f"{CLI}.utils", LIB, "huggingface_hub", "matplotlib", "numpy", "rich",
    },
    f"{CLI}.commands": {CLI, LIB, "click", "huggingface_hub", "rich"},
    f"{CLI}.main": {f"{CLI}.errors", f"{CLI}.text", f"{CLI}.utils", f"{LIB}.errors", "click"},
    f"{CLI}.__main__": {f"{CLI}.main"},
    CLI: {f"{CLI}.main"},
}  # fmt: skip

# Inside a folder: a name may import those before it, never those behind it. Names between bars
# stand side by side and don't know each other.
ORDER = {
    LIB: "errors < stages < schedulers | denoisers < stage_hooks < switch < checkpoints | preview "
    "< calibration | modular",
    f"{CLI}.recipe": "source < schema < sweep < prompts < expand < loader",
    f"{CLI}.engine": "run_options | signals | lease < output_folder < followup | limits < runtime "
    "< executors < publisher | extra_renders < batch_run < reproduce",
    f"{CLI}.analysis": "clips < compare < review < report",
    f"{CLI}.models": "bundled | contents | hub_cache | lockfile | pipeline_arguments | forwards "
    "| calibrations < completeness_worker < completeness | registry < adapters | solvers "
    "| pair_fit < pipeline_rules < prompt_length | identity < hub",
}
# These know nobody beside them in their folder.
APART = {LIB: {"completeness", "metrics", "flops"}, f"{CLI}.analysis": {"web", "gallery"}}
MAY_LOAD_TORCH = {LIB, f"{CLI}.engine.runtime"}
PURE = {
    f"{LIB}.errors",
    f"{LIB}.stages",
    f"{LIB}.schedulers.sigmas",
    f"{LIB}.calibration.calibration",
    f"{LIB}.calibration.criteria",
    f"{LIB}.checkpoints.safetensors_header",
    f"{LIB}.denoisers.adapter_header",
    f"{LIB}.denoisers.compatibility",
    f"{CLI}.text",
    f"{CLI}.errors",
    f"{CLI}.study",
    f"{CLI}.jobs",
    f"{CLI}.events",
    f"{CLI}.recipe",
    f"{CLI}.console",
    f"{CLI}.analysis.compare",
}


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(_modules())
FACES = {module for module, path in MODULES.items() if path.name == "__init__.py"}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@cache
def handed_on(face: str) -> dict[str, str]:
    """Names that a package's ``__init__`` hands on, and the file that each is defined in."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree_of(face))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if node.module.split(".")[0] in PACKAGES
    }


def _named(node: ast.ImportFrom) -> Iterator[str]:
    assert node.level == 0, "imports are absolute"
    assert node.module is not None
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        if inner in MODULES:
            yield inner
        elif node.module in FACES and node.module in MODULES:
            yield handed_on(node.module).get(alias.name, node.module)
        else:
            yield node.module


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that a file imports, wherever in it, as names of files or of foreign packages."""
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= set(_named(node))
    return frozenset(found - {module, CLI})  # the bare package holds the version


def ours(module: str) -> frozenset[str]:
    return frozenset(name for name in imports(module) if name.split(".")[0] in PACKAGES)


def covers(name: str, module: str) -> bool:
    return module == name or module.startswith(name + ".")


def row_of(module: str) -> str:
    return max((row for row in TABLE if covers(row, module)), key=len)


def part_of(module: str, folder: str) -> str:
    """The folder or file just below a folder that a module belongs to; empty for neither."""
    if module == folder or not covers(folder, module):
        return ""
    return module[len(folder) + 1 :].split(".")[0]


def is_allowed(module: str, imported: str) -> bool:
    if imported.split(".")[0] in sys.stdlib_module_names:
        return True
    row = row_of(module)
    if any(covers(allowed, imported) for allowed in TABLE[row]):
        return True
    folder = ".".join(module.split(".")[:2])
    return row not in PACKAGES and covers(folder, imported) and folder in TABLE


def importers_of(package: str) -> set[str]:
    return {module for module in MODULES if any(covers(package, one) for one in imports(module))}


def circles() -> list[list[str]]:
    """Files that import each other, in a circle of any length."""
    reached: dict[str, set[str]] = {}
    for start in MODULES:
        found, todo = set(), [start]
        while todo:
            for name in ours(todo.pop()):
                if name not in found and name in MODULES:
                    found.add(name)
                    todo.append(name)
        reached[start] = found
    return sorted(
        sorted(other for other in reached[one] if one in reached.get(other, ()))
        for one in MODULES
        if one in reached[one]
    )


def folders() -> list[str]:
    return sorted(FACES)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_what_its_row_allows(module: str) -> None:
    strangers = sorted(name for name in imports(module) if not is_allowed(module, name))

    assert not strangers, f"{module} (row {row_of(module)}) may not import {strangers}"


def test_the_roots_hold_the_files_that_the_table_names_and_no_other() -> None:
    for package in PACKAGES:
        children = {f"{package}.{part_of(module, package)}" for module in MODULES} - {f"{package}."}
        unlisted = sorted(child for child in children if row_of(child) == package)
        assert not unlisted, f"say in TABLE what {unlisted} may import"


def test_no_file_is_part_of_a_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize("folder", folders())
def test_no_two_parts_of_a_folder_import_each_other(folder: str) -> None:
    arrows = {
        (part_of(module, folder), part_of(name, folder))
        for module in MODULES
        for name in ours(module)
        if part_of(module, folder) and part_of(name, folder)
    }

    assert not {(a, b) for a, b in arrows if a != b and (b, a) in arrows}


def ranks(order: str) -> dict[str, int]:
    return {
        name.strip(): rank
        for rank, group in enumerate(order.split("<"))
        for name in group.split("|")
    }


@pytest.mark.parametrize("folder", ORDER)
def test_inside_a_folder_imports_run_one_way(folder: str) -> None:
    rank = ranks(ORDER[folder])
    against = [
        f"{module} -> {name}"
        for module in MODULES
        for name in ours(module)
        for here, there in [(part_of(module, folder), part_of(name, folder))]
        if here != there and here in rank and there in rank and rank[here] <= rank[there]
    ]

    assert not against


@pytest.mark.parametrize(("folder", "parts"), APART.items())
def test_parts_that_stand_apart_know_nobody_beside_them(folder: str, parts: set[str]) -> None:
    touched = [
        f"{module} -> {name}"
        for module in MODULES
        for name in ours(module)
        if part_of(module, folder) in parts
        and part_of(name, folder) not in {"", part_of(module, folder), "errors", "web"}
    ]

    assert not touched


def test_the_order_names_only_what_is_there() -> None:
    for folder, order in {
        **ORDER,
        **{name: " | ".join(parts) for name, parts in APART.items()},
    }.items():
        there = {part_of(module, folder) for module in MODULES}
        assert set(ranks(order)) <= there


def test_every_row_of_the_table_covers_a_file() -> None:
    assert {row_of(module) for module in MODULES} == set(TABLE)


def test_model_libraries_stay_in_the_library_and_the_runtime() -> None:
    for package in HEAVY:
        strangers = {
            module
            for module in importers_of(package)
            if not any(covers(home, module) for home in MAY_LOAD_TORCH)
        }
        assert not strangers


@pytest.mark.parametrize("room", sorted(PURE))
def test_what_is_pure_imports_no_arrays(room: str) -> None:
    for module in MODULES:
        if covers(room, module):
            assert not imports(module) & {*HEAVY, *PIXELS}


def test_only_the_schemas_of_recipes_and_of_what_is_read_back_know_pydantic() -> None:
    rows = {row_of(module) for module in importers_of("pydantic")}
    assert rows == {f"{CLI}.recipe", f"{CLI}.artifacts.schema"}


def test_nobody_imports_the_commands() -> None:
    commands = f"{CLI}.commands"
    assert all(covers(commands, module) for module in importers_of(commands))


def modules_after(code: str) -> list[str]:
    """Modules in memory after running some code in a fresh interpreter."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def loaded_after(code: str) -> set[str]:
    """Packages in memory after running some code in a fresh interpreter."""
    return {module.split(".")[0] for module in modules_after(code)}


COMMAND = """
from flowblend_cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["render", "--help"], ["plan", "--help"], ["info", "--help"],
     ["probe", "--help"], ["check", "quickstart"], ["plan", "quickstart"], ["schema"],
     ["report", "--help"], ["status", "--help"], ["recipes", "ls"], ["models", "ls"]],
    ids=" ".join,
)  # fmt: skip
def test_looking_and_checking_load_no_model_library(arguments: list[str]) -> None:
    loaded = loaded_after(COMMAND.format(arguments=arguments))

    assert not loaded & HEAVY


def test_help_loads_nothing_that_only_rendering_needs() -> None:
    loaded = loaded_after(COMMAND.format(arguments=["--help"]))

    assert not loaded & {*HEAVY, *PIXELS, "matplotlib", "pydantic", "rich"}


@pytest.mark.parametrize("command", ["render", "status", "report", "models"])
def test_help_of_a_command_loads_no_folder_that_does_its_work(command: str) -> None:
    loaded = modules_after(COMMAND.format(arguments=[command, "--help"]))

    working = [f"{CLI}.{name}" for name in ("analysis", "planning", "recipe", "diagnostics")]
    assert not [module for module in loaded if any(covers(name, module) for name in working)]


def test_stages_need_no_model_library() -> None:
    code = "from flowblend_plugin import StageSchedule; StageSchedule.parse('LSL', (0.4, 0.8))"

    assert not loaded_after(code) & {*HEAVY, "numpy", "click", "rich", "pydantic"}
