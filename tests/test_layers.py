"""Who may import whom: the table that keeps the rooms apart."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "flowblend_plugin": ROOT / "flowblend_plugin",
    "flowblend_cli": ROOT / "cli/flowblend_cli",
}

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors"}
PIXELS = {"numpy", "av", "PIL", "imageio"}

# Rooms are named from the most particular on: a module belongs to the longest name that fits it.
# What a room may import besides the standard library and itself; first our own rooms, then others'
# packages. A room that isn't listed here fails: add it, and say what it may know.
ALLOWED: dict[str, set[str]] = {
    # The library knows nothing of recipes, commands or terminals.
    "flowblend_plugin.errors": set(),
    "flowblend_plugin.stages.stage": {"flowblend_plugin.errors"},
    "flowblend_plugin.stage_checks": {"flowblend_plugin.errors", "flowblend_plugin.stages.stage"},
    "flowblend_plugin.stages": {
        "flowblend_plugin.errors",
        "flowblend_plugin.stages.stage",
        "flowblend_plugin.stage_checks",
    },
    "flowblend_plugin.stages.capabilities": set(),
    "flowblend_plugin.grids": {"flowblend_plugin.errors", "flowblend_plugin.stages"},
    "flowblend_plugin.schedulers.sigmas": {
        "flowblend_plugin.errors",
        "flowblend_plugin.grids",
        "flowblend_plugin.stages",
    },
    "flowblend_plugin.denoisers.compatibility": {"flowblend_plugin.errors"},
    "flowblend_plugin.calibration.calibration": {"flowblend_plugin.errors"},
    "flowblend_plugin.checkpoints.safetensors_header": {"flowblend_plugin.errors"},
    "flowblend_plugin.calibration.criteria": {
        "flowblend_plugin.calibration.calibration",
        "flowblend_plugin.errors",
        "flowblend_plugin.stages",
    },
    "flowblend_plugin.stage_hooks.cache_dit": {"flowblend_plugin.errors", "cache_dit"},
    # Frames in, numbers out; a network's weights are met in one room.
    "flowblend_plugin.metrics": {
        "flowblend_plugin.errors",
        "flowblend_plugin.metrics.learned",
        "cv2",
        "numpy",
        "skimage",
    },
    "flowblend_plugin.metrics.learned": {
        "flowblend_plugin.errors",
        "flowblend_plugin.metrics",
        "huggingface_hub",
        "numpy",
        "torch",
        "transformers",
    },
    "flowblend_plugin": {"flowblend_plugin", *HEAVY, "numpy"},
    # Words and values: everybody may use them, they use nobody.
    "flowblend_cli.text": set(),
    "flowblend_cli.advice": set(),
    "flowblend_cli.errors": {"flowblend_cli.text", "flowblend_plugin.errors"},
    "flowblend_cli.events": set(),
    "flowblend_cli.models.bundled": set(),
    "flowblend_cli.models.pipeline_arguments": set(),
    "flowblend_cli.data": set(),
    "flowblend_cli.study": set(),
    "flowblend_cli.jobs": {
        "flowblend_cli.errors",
        "flowblend_cli.study",
        "flowblend_plugin.stages",
    },
    "flowblend_cli.batching": set(),
    "flowblend_cli.planning.estimates": set(),
    "flowblend_cli.utils.process": set(),
    "flowblend_cli.utils.cache_dirs": {"platformdirs"},
    # From a recipe to jobs: no engine, no artifact, no model is ever loaded.
    "flowblend_cli.models.registry": {
        "flowblend_cli.models.bundled",
        "flowblend_cli.errors",
        "flowblend_cli.models.lockfile",
        "tomli",
    },
    # Models of the Hub: which files, at which commit; the one process that goes online.
    "flowblend_cli.models.contents": {"flowblend_cli.errors"},
    "flowblend_cli.models.lockfile": {
        "flowblend_cli.utils.files",
        "flowblend_cli.errors",
        "flowblend_cli.utils.toml_positions",
        "flowblend_cli.utils.streams",
        "tomli",
    },
    "flowblend_cli.models.hub.fetch_worker": {"flowblend_cli.models.contents", "huggingface_hub"},
    "flowblend_cli.hub": {
        "flowblend_cli.models.adapters",
        "flowblend_cli.models.bundled",
        "flowblend_cli.errors",
        "flowblend_cli.hub",
        "flowblend_cli.jobs",
        "flowblend_cli.models.registry",
        "flowblend_cli.text",
        "flowblend_cli.utils.worker_process",
        "huggingface_hub",
    },
    "flowblend_cli.models.adapters": {
        "flowblend_cli.models.bundled",
        "flowblend_cli.errors",
        "flowblend_cli.models.registry",
        "huggingface_hub",
    },
    "flowblend_cli.utils.images": {"flowblend_cli.errors", "flowblend_cli.text", "PIL"},
    "flowblend_cli.models.calibrations": {
        "flowblend_plugin.calibration.calibration",
        "flowblend_plugin.errors",
    },
    "flowblend_cli.models.solvers": {
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.models.registry",
        "flowblend_plugin.grids",
    },
    "flowblend_cli.recipe": {
        "flowblend_cli.advice",
        "flowblend_cli.models.adapters",
        "flowblend_cli.models.pipeline_arguments",
        "flowblend_cli.batching",
        "flowblend_cli.models.bundled",
        "flowblend_cli.models.calibrations",
        "flowblend_cli.errors",
        "flowblend_cli.models.forwards",
        "flowblend_cli.utils.images",
        "flowblend_cli.jobs",
        "flowblend_cli.models.solvers",
        "flowblend_cli.models.registry",
        "flowblend_cli.references",
        "flowblend_cli.study",
        "flowblend_cli.text",
        "flowblend_plugin.calibration.criteria",
        "flowblend_plugin.calibration.calibration",
        "flowblend_plugin.errors",
        "flowblend_plugin.grids",
        "flowblend_plugin.schedulers.sigmas",
        "flowblend_plugin.metrics.catalogue",
        "flowblend_plugin.stages",
        "flowblend_plugin.stages.capabilities",
        "pydantic",
        "pydantic_core",
        "tomli",
    },
    "flowblend_cli.planning.plan": {
        "flowblend_cli.followups",
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.models.solvers",
        "flowblend_cli.study",
        "flowblend_cli.text",
        "flowblend_plugin.errors",
        "flowblend_plugin.schedulers.sigmas",
        "flowblend_plugin.stages",
    },
    "flowblend_cli.models.identity": {
        "flowblend_cli.models.adapters",
        "flowblend_cli.utils.cache_dirs",
        "flowblend_cli.models.calibrations",
        "flowblend_cli.errors",
        "flowblend_cli.models.contents",
        "flowblend_cli.jobs",
        "flowblend_cli.models.registry",
        "huggingface_hub",
    },
    "flowblend_cli.utils.worker_process": {"flowblend_plugin.errors", "numpy"},
    # What jobs cost: torch only in the worker, which is a process of its own.
    "flowblend_cli.models.forwards": {"flowblend_cli.jobs", "flowblend_plugin.stages"},
    "flowblend_cli.planning.flops_worker": {"flowblend_plugin.flops"},
    "flowblend_cli.planning.flops_cache": {
        "flowblend_cli.utils.cache_dirs",
        "flowblend_cli.utils.worker_process",
    },
    "flowblend_cli.planning.flops": {
        "flowblend_cli.errors",
        "flowblend_cli.planning.flops_cache",
        "flowblend_cli.models.forwards",
        "flowblend_cli.jobs",
        "flowblend_cli.models.identity",
        "flowblend_cli.models.registry",
        "flowblend_cli.planning.plan",
        "flowblend_plugin.stages",
    },
    # Finished files: frames and documents, never models or recipes.
    "flowblend_cli.artifacts": {
        "flowblend_cli.errors",
        "flowblend_cli.text",
        "flowblend_plugin.errors",
        *PIXELS,
    },
    "flowblend_cli.artifacts.records": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.utils.streams",
    },
    "flowblend_cli.artifacts.manifest": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.artifacts.records",
    },
    "flowblend_cli.artifacts.existing": {
        "flowblend_cli.artifacts",
        "flowblend_cli.jobs",
        "flowblend_cli.artifacts.manifest",
    },
    "flowblend_cli.analysis.gallery.contact_sheet": {
        "flowblend_cli.artifacts",
        "flowblend_cli.text",
        *PIXELS,
    },
    # Pages for browsers: plain data in, one string out.
    "flowblend_cli.analysis.web": {"flowblend_cli.errors", "jinja2"},
    # Blind reviews: anonymous copies out, raters' files in.
    # What a folder's files say: the pure rooms first, then those that read files and write pages.
    "flowblend_cli.drawing": {"flowblend_cli.utils.cache_dirs"},
    **{
        f"flowblend_cli.report.{room}": {
            "flowblend_cli.jobs",
            "flowblend_cli.report",
            "flowblend_cli.study",
            "flowblend_cli.text",
            "flowblend_plugin.stages",
        }
        for room in (
            "clips",
            "variants",
            "conclusions",
            "sameness",
            "choices",
            "words",
            "findings",
            "document",
            "opinions",
            "tables",
        )
    },
    "flowblend_cli.analysis.compare.statistics": set(),
    "flowblend_cli.report": {
        "flowblend_cli.artifacts",
        "flowblend_cli.drawing",
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.analysis.web",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.report",
        "flowblend_cli.references",
        "flowblend_cli.planning.metrics",
        "flowblend_cli.engine.followup.pruning",
        "flowblend_cli.study",
        "flowblend_cli.text",
        "flowblend_plugin.errors",
        "flowblend_plugin.metrics",
        "flowblend_plugin.stages",
        "matplotlib",
        *PIXELS,
    },
    "flowblend_cli.analysis.report.write": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.report",
        "flowblend_cli.analysis.review.unblinding",
        "flowblend_cli.text",
    },
    "flowblend_cli.review": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.analysis.web",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.report",
        "flowblend_cli.review",
        "flowblend_cli.text",
        *PIXELS,
    },
    "flowblend_cli.analysis.review.arrangement": {"flowblend_cli.report"},
    "flowblend_cli.analysis.review.ratings": {
        "flowblend_cli.errors",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.analysis.review.arrangement",
        "flowblend_cli.text",
    },
    "flowblend_cli.analysis.review.unblinding": {
        "flowblend_cli.errors",
        "flowblend_cli.analysis.compare.statistics",
        "flowblend_cli.analysis.review.ratings",
        "nltk",
    },
    # Showing.
    "flowblend_cli.skips": {"flowblend_cli.events", "flowblend_cli.text"},
    "flowblend_cli.progress": {
        "flowblend_cli.events",
        "flowblend_cli.console.live",
        "flowblend_cli.skips",
        "flowblend_cli.text",
    },
    "flowblend_cli.console.live": {
        "flowblend_cli.events",
        "flowblend_cli.progress",
        "flowblend_cli.skips",
        "flowblend_cli.text",
        "flowblend_plugin.stages",
        "rich",
    },
    "flowblend_cli.console.log_file": {
        "flowblend_cli.progress",
        "flowblend_cli.console.run_state",
        "flowblend_cli.utils.streams",
        "flowblend_cli.text",
    },
    # What a run does, for others to look at: how long it takes, and how far it is.
    "flowblend_cli.planning.workloads": {
        "flowblend_cli.planning.estimates",
        "flowblend_cli.planning.flops",
        "flowblend_cli.jobs",
        "flowblend_cli.planning.plan",
        "flowblend_plugin.errors",
        "flowblend_plugin.stages",
    },
    "flowblend_cli.console.run_state": {
        "flowblend_cli.utils.process",
        "flowblend_cli.errors",
        "flowblend_cli.planning.estimates",
        "flowblend_cli.events",
        "flowblend_cli.jobs",
        "flowblend_cli.progress",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.planning.workloads",
    },
    "flowblend_cli.console.status": {
        "flowblend_cli.utils.process",
        "flowblend_cli.errors",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.console.run_state",
    },
    # Running: the only rooms of the command that meet models are runtime and placement.
    "flowblend_cli.files": {"flowblend_cli.errors"},
    "flowblend_cli.engine.signals": {"flowblend_cli.errors"},
    "flowblend_cli.tally": {
        "flowblend_cli.events",
        "flowblend_cli.progress",
        "flowblend_cli.text",
    },
    "flowblend_cli.engine.limits": {
        "flowblend_cli.jobs",
        "flowblend_cli.engine.run_options",
        "flowblend_cli.engine.signals",
        "flowblend_cli.tally",
        "flowblend_cli.text",
    },
    "flowblend_cli.planning.ordering": {"flowblend_cli.jobs"},
    "flowblend_cli.engine.runtime.oom_retry": {
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.runtime.placement",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_cli.engine.runtime.finite_checks",
    },
    "flowblend_cli.engine.runtime.finite_checks": {
        "flowblend_cli.artifacts",
        "flowblend_plugin",
        "numpy",
    },
    "flowblend_cli.engine.runtime.placement": {
        "flowblend_cli.advice",
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.text",
        "torch",
    },
    "flowblend_cli.engine.runtime.prompt_cache": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.models.identity",
        "flowblend_cli.models.registry",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_plugin.errors",
        "flowblend_plugin.checkpoints.serialization",
    },
    "flowblend_cli.engine.runtime.pipeline": {
        "flowblend_cli.models.adapters",
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.utils.images",
        "flowblend_cli.jobs",
        "flowblend_cli.models.identity",
        "flowblend_cli.models.registry",
        "flowblend_cli.engine.runtime.placement",
        "flowblend_cli.engine.runtime.finite_checks",
        "flowblend_plugin",
        "numpy",
        *HEAVY,
    },
    "flowblend_cli.peaks": set(),
    "flowblend_cli.steptimes": set(),
    "flowblend_cli.engine.run_options": set(),
    "flowblend_cli.leftovers": {"flowblend_cli.artifacts", "flowblend_cli.artifacts.records"},
    "flowblend_cli.engine.executors.in_process": {
        "flowblend_cli.engine.runtime.checkpoint_file",
        "flowblend_cli.engine.runtime.prompt_cache",
        "flowblend_cli.engine.runtime.resume",
        "flowblend_plugin.errors",
        "flowblend_cli.artifacts",
        "flowblend_cli.events",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.runtime.oom_retry",
        "flowblend_cli.peaks",
        "flowblend_cli.planning.plan",
        "flowblend_cli.progress",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_cli.steptimes",
        "flowblend_plugin.stages",
    },
    # A job in mid-render: what is stored of it, and what is known of that without torch.
    "flowblend_cli.engine.runtime.checkpoint_file": {
        "flowblend_cli.artifacts",
        "flowblend_cli.artifacts.records",
        "flowblend_plugin.errors",
        "flowblend_plugin.checkpoints.safetensors_header",
    },
    "flowblend_cli.engine.runtime.resume": {
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.runtime.checkpoint_file",
        "flowblend_cli.progress",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_cli.steptimes",
        "flowblend_cli.engine.signals",
        "flowblend_plugin.checkpoints.checkpoint",
        "flowblend_plugin.errors",
    },
    # The same in a process of its own: this side of the pipe knows no model library either.
    "flowblend_cli.engine.executors.worker": {
        "flowblend_cli.engine.runtime.checkpoint_file",
        "flowblend_cli.events",
        "flowblend_cli.jobs",
        "flowblend_cli.progress",
        "flowblend_cli.engine.executors.in_process",
        "flowblend_cli.engine.signals",
        "flowblend_cli.utils.worker_process",
        "flowblend_plugin.errors",
    },
    "flowblend_cli.engine.executors.child_process": {
        "flowblend_cli.engine.runtime.checkpoint_file",
        "flowblend_cli.errors",
        "flowblend_cli.events",
        "flowblend_cli.jobs",
        "flowblend_cli.progress",
        "flowblend_cli.engine.executors.in_process",
        "flowblend_cli.engine.signals",
        "flowblend_cli.text",
        "flowblend_cli.utils.worker_process",
        "flowblend_plugin.errors",
    },
    "flowblend_cli.engine.publisher": {
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.models.identity",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.engine.executors.in_process",
    },
    # Beside the renders: measuring in a process of its own, and pure decisions about what follows.
    "flowblend_cli.engine.followup.measure_worker": {
        "flowblend_cli.artifacts",
        "flowblend_plugin.errors",
        "flowblend_plugin.metrics",
        "flowblend_cli.utils.worker_process",
    },
    "flowblend_cli.engine.followup.measurer": {"flowblend_cli.utils.worker_process"},
    "flowblend_cli.planning.metrics": {
        "flowblend_cli.errors",
        "flowblend_cli.study",
        "flowblend_plugin.errors",
        "flowblend_plugin.metrics",
    },
    "flowblend_cli.references": {"flowblend_cli.jobs"},
    "flowblend_cli.followups": {
        "flowblend_cli.jobs",
        "flowblend_cli.study",
        "flowblend_cli.text",
    },
    "flowblend_cli.engine.followup.pruning": {
        "flowblend_cli.followups",
        "flowblend_cli.jobs",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.study",
    },
    "flowblend_cli.engine.followup.adaptation": {
        "flowblend_cli.followups",
        "flowblend_cli.jobs",
        "flowblend_cli.study",
        "flowblend_plugin.metrics",
    },
    "flowblend_cli.engine.followup.study_run": {
        "flowblend_cli.engine.followup.adaptation",
        "flowblend_cli.events",
        "flowblend_cli.followups",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.followup.measurer",
        "flowblend_cli.planning.ordering",
        "flowblend_cli.progress",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.references",
        "flowblend_cli.planning.metrics",
        "flowblend_cli.engine.followup.pruning",
        "flowblend_cli.study",
        "flowblend_cli.text",
        "flowblend_plugin.metrics",
    },
    "flowblend_cli.looking": {
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.progress",
        "flowblend_cli.engine.executors.in_process",
        "flowblend_cli.study",
        "flowblend_cli.engine.followup.study_run",
    },
    "flowblend_cli.engine.extra_renders": {
        "flowblend_cli.errors",
        "flowblend_cli.jobs",
        "flowblend_cli.progress",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.engine.executors.in_process",
        "flowblend_cli.engine.followup.study_run",
    },
    "flowblend_cli.engine.output_folder": {"flowblend_cli.errors", "filelock"},
    "flowblend_cli.engine.reproduce": {
        "flowblend_cli.artifacts",
        "flowblend_cli.engine.batch_run",
        "flowblend_cli.artifacts.existing",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.run_options",
        "flowblend_cli.progress",
    },
    "flowblend_cli.engine.batch_run": {
        "flowblend_cli.engine.runtime.checkpoint_file",
        "flowblend_cli.artifacts",
        "flowblend_cli.errors",
        "flowblend_cli.events",
        "flowblend_cli.artifacts.existing",
        "flowblend_cli.models.hub.fetch",
        "flowblend_cli.jobs",
        "flowblend_cli.models.identity",
        "flowblend_cli.leftovers",
        "flowblend_cli.engine.limits",
        "flowblend_cli.engine.output_folder",
        "flowblend_cli.looking",
        "flowblend_cli.artifacts.manifest",
        "flowblend_cli.engine.run_options",
        "flowblend_cli.progress",
        "flowblend_cli.engine.publisher",
        "flowblend_cli.artifacts.records",
        "flowblend_cli.engine.executors.child_process",
        "flowblend_cli.engine.executors.in_process",
        "flowblend_cli.engine.extra_renders",
        "flowblend_cli.engine.signals",
        "flowblend_cli.study",
        "flowblend_cli.engine.followup.study_run",
        "flowblend_cli.tally",
        "flowblend_plugin.errors",
    },
    # Measuring a pair: the models are met in runtime and placement, as in a render.
    "flowblend_cli.probing": {
        "flowblend_cli.artifacts",
        "flowblend_cli.models.calibrations",
        "flowblend_cli.engine.batch_run",
        "flowblend_cli.errors",
        "flowblend_cli.planning.flops",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.runtime.placement",
        "flowblend_cli.planning.plan",
        "flowblend_cli.progress",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_cli.engine.signals",
        "flowblend_cli.text",
        "flowblend_plugin.calibration.criteria",
        "flowblend_plugin.calibration.calibration",
        "flowblend_plugin.errors",
        "flowblend_plugin.calibration.sensitivity",
        "flowblend_plugin.stages",
        "rich",
    },
    "flowblend_cli.diagnostics.probe.plot": {
        "flowblend_cli.drawing",
        "flowblend_cli.diagnostics.probe.summary",
        "flowblend_cli.text",
        "flowblend_plugin.calibration.criteria",
        "flowblend_plugin.calibration.calibration",
        "flowblend_plugin.errors",
        "matplotlib",
    },
    "flowblend_cli.analysis.gallery.comparison": {
        "flowblend_cli.artifacts",
        "flowblend_cli.engine.batch_run",
        "flowblend_cli.errors",
        "flowblend_cli.artifacts.existing",
        "flowblend_cli.analysis.gallery.contact_sheet",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.run_options",
        "flowblend_cli.progress",
        "flowblend_plugin.stages",
        *PIXELS,
    },
    # What could go wrong on a machine: torch only in the worker, likewise.
    "flowblend_cli.doctor": {
        "flowblend_cli.artifacts",
        "flowblend_cli.utils.worker_process",
        "huggingface_hub",
        "numpy",
    },
    "flowblend_cli.diagnostics.doctor.self_test_worker": {
        "flowblend_cli.artifacts",
        "flowblend_cli.jobs",
        "flowblend_cli.engine.runtime.pipeline",
        "flowblend_plugin",
    },
    # The command line may use every room, but no model library and no schema library itself.
    "flowblend_cli.commands": {
        "flowblend_cli",
        "flowblend_plugin",
        "click",
        "huggingface_hub",
        "rich",
    },
    "flowblend_cli.utils.streams": set(),
    "flowblend_cli.main": {
        "flowblend_cli.errors",
        "flowblend_cli.utils.streams",
        "flowblend_cli.text",
        "flowblend_plugin.errors",
        "click",
    },
    "flowblend_cli.__main__": {"flowblend_cli.main"},
    "flowblend_cli": {"flowblend_cli.main"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, inside functions too, but not for types only."""
    yield from _imports(ast.parse(path.read_text("utf-8")))


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else str(node.module)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def covers(room: str, module: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str:
    return max((room for room in ALLOWED if covers(room, module)), key=len)


def is_allowed(module: str, imported: str) -> bool:
    if imported.split(".")[0] in sys.stdlib_module_names or imported == "flowblend_cli":
        return True  # the bare package holds the version
    room = room_of(module)
    ours = imported.split(".")[0] in PACKAGES
    if ours and room_of(imported) == room:
        return True
    return any(covers(allowed, imported) for allowed in ALLOWED[room])


def importers_of(package: str) -> set[str]:
    return {
        room_of(module)
        for module, path in MODULES.items()
        if any(covers(package, imported) for imported in imports(path))
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may_know(module: str) -> None:
    strangers = sorted(name for name in imports(MODULES[module]) if not is_allowed(module, name))

    assert not strangers, f"{module} (room {room_of(module)}) may not import {strangers}"


def test_every_module_of_the_command_has_a_room_of_its_own() -> None:
    homeless = [
        module
        for module in MODULES
        if room_of(module) == "flowblend_cli" and module != "flowblend_cli"
    ]

    assert not homeless, f"say in ALLOWED what {homeless} may import"


def test_model_libraries_stay_in_the_library_and_the_runtime() -> None:
    for package in HEAVY:
        allowed = {
            "flowblend_plugin",
            "flowblend_plugin.metrics.learned",
            "flowblend_cli.engine.runtime.pipeline",
            "flowblend_cli.engine.runtime.placement",
        }
        assert importers_of(package) <= allowed


def test_only_the_recipe_room_knows_pydantic() -> None:
    assert importers_of("pydantic") == {"flowblend_cli.recipe"}


def test_no_room_imports_the_commands() -> None:
    assert importers_of("flowblend_cli.commands") <= {"flowblend_cli.commands"}


def loaded_after(code: str) -> set[str]:
    """Packages in memory after running some code in a fresh interpreter."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {line.split(".")[0] for line in done.stdout.splitlines()}


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


def test_stages_need_no_model_library() -> None:
    code = "from flowblend_plugin import StageSchedule; StageSchedule.parse('LSL', (0.4, 0.8))"

    assert not loaded_after(code) & {*HEAVY, "numpy", "click", "rich", "pydantic"}


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for module, path in MODULES.items():
        text = path.read_text("utf-8")
        if text.count("\n") >= 400:
            too_long.append(module)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = node.end_lineno - node.body[0].lineno + 1
                if ast.get_docstring(node) is not None:
                    body -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                if body >= 50:
                    too_long.append(f"{module}.{node.name}")

    assert not too_long
