"""Jobs rendered by a process of our own, which may die without taking the batch with it.

Orders are JSON lines: ``begin`` (recipe_dir, warm_up, output_dir) comes first, then ``load``
(model), ``render`` (job, seed, keeping) and ``preview`` (job, after_steps), each with a number;
``stop`` (number) ends an order after its present step. Jobs travel as their documents. The answer
is ``done``, ``stopped``, or ``error`` with the name of its class; ``event``, ``step``, ``message``
and ``waiting`` come before it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from flowblend_cli import errors
from flowblend_cli.engine.executors.base import Render
from flowblend_cli.engine.runtime.checkpoint_file import Keeping
from flowblend_cli.errors import (
    DeviceFailedError,
    DeviceLostError,
    RecipeError,
    RemoteError,
    StopRequested,
    WorkerDiedError,
)
from flowblend_cli.events import Event, Reporter
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.text import shorten
from flowblend_cli.utils.worker_process import read_frames, worker_environment
from flowblend_plugin.errors import FlowBlendError

if TYPE_CHECKING:
    from flowblend_cli.utils.frames import Frames

MODULE = "flowblend_cli.engine.executors.worker"
_POLL_S = 0.1
_LAST_LINES = 20
_LAST_WORDS_S = 2.0
_EVENTS = {event.name: event for event in get_args(Event)}
_T = TypeVar("_T")


class WorkerRenderer:
    """Renders as ``rendering.Renderer`` does, in a process that is started where there is none.

    What a process dies of, or loses its device in, is begun again once, in a new one.

    Args:
        recipe_dir: Folder that model folders are relative to.
        reporter: Who is told what happens.
        warm_up: See ``engine.BatchRun``.
        output_dir: See ``rendering.Renderer``.
    """

    def __init__(
        self,
        recipe_dir: Path,
        reporter: Reporter,
        warm_up: Job | None = None,
        output_dir: Path | None = None,
    ) -> None:
        self._begin = {
            "do": "begin",
            "recipe_dir": str(recipe_dir),
            "warm_up": None if warm_up is None else warm_up.to_document(),
            "output_dir": None if output_dir is None else str(output_dir),
        }
        self._reporter = reporter
        self._process: _Process | None = None
        self._model: ModelSpec | None = None

    @property
    def model(self) -> ModelSpec | None:
        """The models that are in memory."""
        return self._model

    def load(self, model: ModelSpec, check: Callable[[], None]) -> None:
        """See ``Renders``; where loading is to stop, the process is ended at once."""
        try:
            self._twice("loading", lambda: self._load(model, check))
        except WorkerDiedError as error:
            raise DeviceLostError(
                f"model {model.pipeline!r} can't be loaded: {error}, twice; free memory, or run "
                "flowblend doctor"
            ) from error

    def render(
        self, job: Job, seed: int, check: Callable[[], None], keeping: Keeping | None = None
    ) -> Render:
        """See ``Renders``."""
        order = {"do": "render", "job": job.to_document(), "seed": seed}
        order["keeping"] = None if keeping is None else keeping.to_document()
        answer = self._carry_out(order, job, check)
        return Render.from_document(answer["render"], answer["frames"])

    def preview(self, job: Job, after_steps: int, check: Callable[[], None]) -> Frames:
        """See ``Renders``."""
        order = {"do": "preview", "job": job.to_document(), "after_steps": after_steps}
        frames: Frames = self._carry_out(order, job, check)["frames"]
        return frames

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process, self._model = self._process, None, None
        if process is not None:
            process.end()

    def _carry_out(
        self, order: dict[str, Any], job: Job, check: Callable[[], None]
    ) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            self._load(job.model, check)
            return self._ask(order, check)

        try:
            return self._twice(job.id, attempt)
        except WorkerDiedError as error:
            raise WorkerDiedError(
                f"{error}, twice, while it worked at this job, which is given up: fewer frames or "
                "a smaller size need less memory, flowblend doctor looks at the machine"
            ) from error

    def _twice(self, what: str, attempt: Callable[[], _T]) -> _T:
        """Try once more, in a new process, what a process died of or lost its device in."""
        try:
            return attempt()
        except (WorkerDiedError, DeviceFailedError) as error:
            self.close()
            told = f"{error}: {what} begins again in a new process"
            self._reporter.message(told, error=True)
        try:
            return attempt()
        except (WorkerDiedError, DeviceFailedError):
            self.close()
            raise

    def _load(self, model: ModelSpec, check: Callable[[], None]) -> None:
        if self._process is not None and not self._process.is_alive:
            self.close()
        if self._process is None:
            self._process = _Process(self._begin)
        if self._model != model:
            self._model = None
            try:
                self._ask({"do": "load", "model": model.to_document()}, check, steps=False)
            except StopRequested:
                self.close()
                raise
            self._model = model

    def _ask(
        self, order: dict[str, Any], check: Callable[[], None], *, steps: bool = True
    ) -> dict[str, Any]:
        """Give an order and pass on what is told, until it is carried out."""
        process = self._process
        assert process is not None
        process.order(order)
        stopping: StopRequested | None = None
        while True:
            try:
                line = process.line(_POLL_S)
            except WorkerDiedError:
                if stopping is not None:
                    raise stopping from None
                check()  # a signal to all of a service's processes ended this one first
                raise
            if line is not None and not self._pass_on(line):
                return _answer(line, stopping)
            if stopping is None:
                try:
                    check()
                except StopRequested as request:
                    if not steps:
                        raise
                    stopping = request
                    process.stop()

    def _pass_on(self, line: dict[str, Any]) -> bool:
        """Tell the reporter; False for the line that ends an order."""
        match line["say"]:
            case "event":
                self._reporter.event(_EVENTS[line["name"]](**line["values"]))
            case "step":
                self._reporter.step(*line["values"])
            case "message":
                self._reporter.message(line["text"], error=line["error"])
            case "waiting":
                self._reporter.waiting(line["text"])
            case _:
                return False
        return True


def _answer(line: dict[str, Any], stopping: StopRequested | None) -> dict[str, Any]:
    """What an order gave.

    Raises:
        StopRequested: It was stopped.
        FlowBlendError: It went wrong.
    """
    if line["say"] == "stopped":
        raise stopping or StopRequested
    if line["say"] == "error":
        kind = getattr(errors, line["kind"], None)
        if isinstance(kind, type) and issubclass(kind, FlowBlendError) and kind is not RecipeError:
            raise kind(line["text"])
        raise RemoteError(line["kind"], line["text"], line["exit_code"])
    return line


class _Process:
    """A worker, and two threads that read what it writes.

    It has a session of its own, so that Ctrl-C on a terminal reaches the command alone.

    Args:
        begin: The first order.
    """

    def __init__(self, begin: dict[str, Any]) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=worker_environment(),
            )
        except OSError as error:
            raise WorkerDiedError(f"the render process can't be started ({error})") from error
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._number = 0
        self._readers = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._listen)
        ]
        for reader in self._readers:
            reader.start()
        self.order(begin)

    @property
    def is_alive(self) -> bool:
        """Whether it can take orders."""
        return self._process.poll() is None

    def order(self, order: dict[str, Any]) -> None:
        """Have it do something next."""
        self._number += 1
        self._write(order)

    def stop(self) -> None:
        """Have it end the present order after its present step."""
        self._write({"do": "stop"})

    def line(self, timeout_s: float) -> dict[str, Any] | None:
        """The next thing that it says; None where it says nothing within the time.

        Raises:
            WorkerDiedError: It is gone.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if line is None:
            raise WorkerDiedError(self._end_told())
        return line

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(_LAST_WORDS_S)
        with contextlib.suppress(OSError):  # what was never read can't be flushed
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _write(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: whoever waits for its answer is told
            self._process.stdin.write(json.dumps({**order, "number": self._number}).encode())
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            # Cut off anywhere, in the middle of frames too: whoever waits is told that it is gone.
            with contextlib.suppress(OSError, ValueError, EOFError), self._process.stdout as source:
                while line := source.readline():
                    said = json.loads(line)
                    if said.pop("has_frames"):
                        said["frames"] = read_frames(source)
                    self._lines.put(said)
        finally:
            self._lines.put(None)

    def _listen(self) -> None:
        """Keep the last of what libraries print: what a process dies of stands there."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError), self._process.stderr as source:
            while line := source.readline(4096):
                self._said.append(line.decode(errors="replace").strip())

    def _end_told(self) -> str:
        self.end()
        code = self._process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the render process died of {signal.Signals(-code).name}"
        said = next((line for line in reversed(self._said) if line), "it said nothing")
        return f"the render process ended with code {code} ({shorten(said, 160)})"
