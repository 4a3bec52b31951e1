"""``flowblend probe`` at work: measures a pair of denoisers and writes the calibration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from flowblend_cli.diagnostics.probe.prepare import ProbePlan
from flowblend_cli.diagnostics.probe.progress_bar import ProbeBar, runs_of
from flowblend_cli.engine.signals import StopSignals
from flowblend_cli.errors import OutputError, StopRequested, UsageError
from flowblend_cli.models.calibrations import read_calibration
from flowblend_cli.models.identity import resolve_models
from flowblend_cli.utils.files import publish
from flowblend_plugin.calibration.calibration import Calibration
from flowblend_plugin.errors import CalibrationError

_PICTURES = (".svg", ".png")
# Our plots hold this mark near their beginning; only such files are replaced.
_MARK = b"flowblend probe"
_HEAD = 4096


class Stopped(Exception):  # noqa: N818 - a signal is no error
    """A signal stopped the probe; nothing was written.

    Args:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped, and nothing was written")
        self.exit_code = exit_code


def measure(
    probing: ProbePlan,
    recipe_dir: Path,
    *,
    sensitivity_prompts: int,
    positions: int,
    quiet: bool = False,
) -> Calibration:
    """Load the models and measure the pair.

    Args:
        probing: The plan of the probe.
        recipe_dir: Folder that the models' folders are relative to.
        sensitivity_prompts: How many of the prompts are asked for sensitivities, too.
        positions: Steps at which sensitivities are measured.
        quiet: Say nothing but warnings.

    Raises:
        Stopped: A signal arrived.
        UsageError: The models are to be offloaded.
        ModelMissingError: A model isn't on this machine.
        DeviceLostError: The device isn't there, or the models don't fit into its memory.
        FlowBlendError: The pair can't be measured.
    """
    # torch: only where something is measured
    from flowblend_cli.engine.runtime.pipeline import PipelineRuntime
    from flowblend_cli.engine.runtime.placement import Placement
    from flowblend_plugin.calibration.sensitivity import default_positions

    job = probing.jobs[0]
    if Placement(job.model).offload != "none":
        raise UsageError(
            f"a probe asks both denoisers at every step, so that none can be offloaded (found "
            f"offload = {job.model.offload!r}): add --set model.offload=none"
        )
    asked = default_positions(job.num_inference_steps, positions)
    progress = ProbeBar(list(runs_of(probing.jobs, sensitivity_prompts, asked)), quiet=quiet)
    with progress, StopSignals(progress.message) as stop:

        def on_step(index: int) -> None:
            stop.check()
            progress.step(index)

        def on_run(what: str) -> None:
            stop.check()
            progress.run_done()

        try:
            runtime = PipelineRuntime(resolve_models(job.model, recipe_dir))
            if runtime.note is not None:
                progress.message(runtime.note)
            stop.check()
            return runtime.calibrate(
                probing.jobs,
                cost_ratio=probing.cost_ratio,
                conditions=probing.conditions,
                sensitivity_prompts=sensitivity_prompts,
                positions=positions,
                on_step=on_step,
                on_run=on_run,
            )
        except StopRequested:
            raise Stopped(stop.exit_code or 1) from None


def outputs(path: Path) -> tuple[Path, ...]:
    """The files of a probe: the calibration, and its pictures beside it."""
    return (path, *(path.with_suffix(suffix) for suffix in _PICTURES))


def check_outputs(path: Path) -> None:
    """Check, before hours of measuring, that the files can be written.

    Raises:
        UsageError: The name isn't one of a JSON file, its folder isn't there, or a file that is no
            calibration of ours, or none of its pictures, has a name that is needed.
        OutputError: The folder refuses.
    """
    if path.suffix != ".json":
        raise UsageError(f"{path} is no name for a calibration: expected one that ends in .json")
    if not path.parent.is_dir():
        raise UsageError(f"{path} can't be written: its folder doesn't exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} can't be written: its folder is read-only")
    for place in outputs(path):
        if (place.exists() or place.is_symlink()) and not _is_ours(place):
            raise UsageError(
                f"{place} exists already, is nothing that flowblend probe wrote, and isn't "
                "overwritten: give another --out"
            )


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix in _PICTURES:
            with path.open("rb") as file:
                return _MARK in file.read(_HEAD)
        read_calibration(path)
    except CalibrationError as error:
        # One of ours may be of another version, or damaged.
        return not any(told in str(error) for told in ("is no calibration", "can't be read"))
    except OSError:
        return False
    return True


def write(
    calibration: Calibration, path: Path, draw: Callable[[], tuple[bytes, ...]]
) -> tuple[Path, ...]:
    """Write a calibration and its pictures, each complete or not at all.

    Args:
        calibration: The calibration.
        path: Its file; the pictures get the same stem.
        draw: Makes the pictures, SVG and PNG; called when the calibration is safe on the disk.

    Returns:
        The files.

    Raises:
        OutputError: The disk refuses.
    """
    text = json.dumps(calibration.to_document(), indent=1, allow_nan=False) + "\n"
    publish(path.absolute(), text.encode())
    found = outputs(path)
    for place, picture in zip(found[1:], draw(), strict=True):
        publish(place.absolute(), picture)
    return found
