"""Worker process that measures frames, beside the next render.

``python -m flowblend_cli.engine.followup.measure_worker`` is handed requests until no more come,
see ``measurer.Request``, and answers each. The frames follow a request, unless it names a file to
decode. References stay in memory for those that are compared with them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from flowblend_cli.utils.worker_process import Channel

NICENESS = 10
KEPT_BYTES = 2**30


class References:
    """Frames that others are compared with: the latest ones, up to a bound on their bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Any, bool]] = OrderedDict()

    def keep(self, name: str, frames: Any, on_file: bool) -> None:
        """Remember a job's frames; the oldest ones go where there are too many.

        Args:
            name: The job.
            frames: Its frames.
            on_file: Whether they were decoded from its file.
        """
        self._kept[name] = (frames, on_file)
        while sum(kept.nbytes for kept, _ in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)

    def find(self, wanted: dict[str, Any]) -> tuple[Any, bool]:
        """The frames of a reference, and whether they were decoded from its file."""
        if wanted["job"] in self._kept:
            return self._kept[wanted["job"]]
        frames = decode(wanted)
        self.keep(wanted["job"], frames, on_file=True)
        return frames, True


def decode(wanted: dict[str, Any]) -> Any:
    """The frames of a finished file."""
    from flowblend_cli.artifacts.reading import read_native_frames

    return read_native_frames(Path(wanted["path"]), wanted["scale"])


def measure(request: dict[str, Any], frames: Any, references: References) -> dict[str, Any]:
    """Answer one request; named metrics that the frames are too few or too small for are left out.

    Args:
        request: See ``measuring.Request``.
        frames: uint8 RGB, (T, H, W, 3); None to decode the request's file.
        references: What was kept so far.
    """
    from flowblend_plugin import metrics
    from flowblend_plugin.errors import MeasureError

    on_file = frames is None
    if on_file:
        frames = decode(request["file"])
    if request["is_reference"]:
        references.keep(request["job"], frames, on_file)
    reference = None
    if request["reference"] is not None:
        reference, decoded = references.find(request["reference"])
        on_file = on_file or decoded
        if reference.shape != frames.shape:
            reference = None
    names = request["names"]
    if names is not None:
        names = [name for name in names if _suits(metrics.METRICS[name], frames, reference)]
    missing = ""
    try:
        values = metrics.measure(frames, names, reference=reference)
    except MeasureError as error:
        light = [name for name in names or () if metrics.METRICS[name].needs != "weights"]
        if not names or len(light) == len(names):
            raise
        # A network that isn't there costs the metrics of networks, and no other.
        values, missing = metrics.measure(frames, light, reference=reference), str(error)
    tracks = []
    if request["tracks"] and _suits(metrics.METRICS["flow_mean"], frames, None):
        tracks = metrics.tracks(frames).round(5).tolist()
    return {"metrics": values, "tracks": tracks, "on_file": on_file, "missing": missing}


def _suits(metric: Any, frames: Any, reference: Any) -> bool:
    has_all = metric.needs == "frames" or reference is not None
    return has_all and metric.is_large_enough(frames.shape)


def main() -> None:
    """Answer until no further request comes."""
    os.nice(NICENESS)
    channel, references = Channel(), References()
    while (request := channel.receive()) is not None:
        try:
            answer = measure(request, request.pop("frames", None), references)
        except Exception as error:  # noqa: BLE001 - whatever one clip does, the next is measured
            answer = {"error": f"{error}" or type(error).__name__}
        channel.send(answer)
        del request


if __name__ == "__main__":
    main()
