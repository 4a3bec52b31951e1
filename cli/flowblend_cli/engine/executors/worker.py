"""Render jobs in a process of its own, which the command supervises.

``python -m flowblend_cli.engine.executors.worker`` reads orders on stdin, one JSON line each, and
carries them out one after the other. What happens meanwhile goes to stdout, one JSON line each
too; the last line about an order is its answer, which the frames follow where it has some, see
``workers.write_frames``. The first order says what every render needs; see ``remote`` for all.

The process ends by itself where stdin ends, also in the middle of a step: whoever started it is
gone. Signals are left to that one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from flowblend_cli.engine.executors.in_process import Renderer
from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.errors import StopRequested
from flowblend_cli.events import Event, Silent
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.utils.worker_process import write_frames
from flowblend_plugin.errors import FlowBlendError

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

Line = dict[str, Any]
_PR_SET_PDEATHSIG = 1


class Orders:
    """What is to be done, read by a thread, so that a stop or the end is seen in a step too.

    Args:
        source: Where the orders come from.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._waiting: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._stopped = self._present = 0
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> Line:
        """Wait for the next order."""
        order = self._waiting.get()
        self._present = order.pop("number")
        return order

    def check(self) -> None:
        """Raise if the present order isn't wanted any more.

        Raises:
            StopRequested: It isn't.
        """
        if self._stopped == self._present:
            raise StopRequested

    def _read(self) -> None:
        while (line := self._source.readline()).endswith(b"\n"):
            order = json.loads(line)
            if order["do"] == "stop":
                self._stopped = order["number"]
            else:
                self._waiting.put(order)
        os._exit(0)


class Wire(Silent):
    """A reporter that passes everything on, and answers.

    Args:
        out: Where it goes.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def say(self, what: str, frames: Frames | None = None, **told: Any) -> None:
        """Write one line, and frames after it."""
        line = {"say": what, "has_frames": frames is not None, **told}
        try:
            self._out.write(json.dumps(line).encode() + b"\n")
            if frames is not None:
                write_frames(self._out, frames)
            self._out.flush()
        except OSError:
            os._exit(0)  # nobody listens any more

    def event(self, event: Event) -> None:
        """Pass an event on."""
        self.say("event", name=event.name, values=asdict(event))

    def step(self, step: int, total: int, role: str) -> None:
        """Pass a step on."""
        self.say("step", values=[step, total, role])

    def message(self, text: str, *, error: bool = False) -> None:
        """Pass a message on."""
        self.say("message", text=text, error=error)

    def waiting(self, text: str) -> None:
        """Pass on what is waited for."""
        self.say("waiting", text=text)


def main() -> None:
    """Carry out orders until stdin ends."""
    asks = getattr(signal, "SIGUSR1", signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM, asks):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    source, out = _private_streams()
    orders, wire = Orders(source), Wire(out)
    given = orders.next()
    warm_up = None if given["warm_up"] is None else Job.from_document(given["warm_up"])
    output_dir = None if given["output_dir"] is None else Path(given["output_dir"])
    renderer = Renderer(Path(given["recipe_dir"]), wire, warm_up, output_dir)
    while True:
        order = orders.next()
        try:
            _carry_out(order, renderer, orders, wire)
        except StopRequested:
            wire.say("stopped")
        except Exception as error:  # noqa: BLE001 - whatever it is, the command decides
            is_ours = isinstance(error, FlowBlendError)
            code = getattr(error, "exit_code", 2 if is_ours else 1)
            wire.say("error", kind=type(error).__name__, text=str(error), exit_code=code)


def _carry_out(order: Line, renderer: Renderer, orders: Orders, wire: Wire) -> None:
    if order["do"] == "load":
        renderer.load(ModelSpec.from_document(order["model"]), orders.check)
        wire.say("done")
        return
    job = Job.from_document(order["job"])
    if order["do"] == "preview":
        wire.say("done", renderer.preview(job, order["after_steps"], orders.check))
        return
    keeping = None if order["keeping"] is None else Keeping.from_document(order["keeping"])
    render = renderer.render(job, order["seed"], orders.check, keeping)
    wire.say("done", render.frames, render=render.to_document())


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Our ends of the pipes; what libraries print goes to stderr, and they read nothing."""
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return source, out


def _end_with_parent() -> None:
    """Where the kernel can, be killed with whoever started this process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
