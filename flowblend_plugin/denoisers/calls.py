"""PipeCalls: observes, on the modules themselves, what one pipe's calls of its denoisers ran.

A module may be shared by several pipes, in other threads or in each other's callbacks. So a call
counts only where the pipe made it: its frame is the nearest pipeline's on the stack.

The place is ``_compiled_call_impl``, at which ``nn.Module.__call__`` looks before anything else:
outside ``torch.compile``, which traces forward hooks, and outside whatever replaces ``forward``.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.callbacks import PipelineCallback
from torch import nn

from flowblend_plugin.denoisers.loading import DENOISER_NAMES
from flowblend_plugin.errors import SwitchError

_PLACE = "_compiled_call_impl"
_CALLBACKS = ("callback_on_step_end", "callback")
_WANTED = ("components", "self", *_CALLBACKS)
_SHARED = (
    "this {} is shared with a pipe in a stage that sets LoRA adapters, a cache or an attention "
    "backend on it, which every pipe would see: give this pipe a denoiser of its own, or run one "
    "after the other; where that one's last call failed, detach() its switch first"
)
_LEFT = (
    "this {} is shared with a pipe whose last call failed, or was left, in a stage that sets LoRA "
    "adapters, a cache or an attention backend on it, which every pipe would see: detach() that "
    "pipe's switch first, or call that pipe again"
)
_IN_USE = (
    "a stage sets LoRA adapters, a cache or an attention backend on this {}, which another call "
    "that runs it at this moment would see: give this pipe a denoiser of its own, or run one after "
    "the other"
)
LOCK = threading.RLock()  # of all that changes, or begins to call, denoisers that are shared
_ended = threading.Condition(LOCK)
_running: dict[object, tuple[nn.Module, int]] = {}  # calls under way: whose, in which thread
_turns = itertools.count(1)


@dataclass(frozen=True)
class Call:
    """One call of a denoiser, as the pipeline made it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class CallListener(Protocol):
    """Hears of one pipe's calls of its denoisers, and may answer them."""

    def denoiser_answer(self, call: Call) -> Any:
        """Give what the call is to give, without running it; None lets it run."""

    def denoiser_ran(self, call: Call, output: Any) -> None:
        """Hear what a call gave that ran."""


class PipeCalls:
    """The calls of some denoisers that one pipe makes, in one trajectory at a time.

    Calls that no pipeline makes count too, where they are made in the trajectory's thread and no
    pipeline runs it: a denoising loop of the user's own. Calls within a call, and those that a
    pipeline's callback makes, don't.

    Args:
        pipe: The pipe.
        scheduler: The scheduler that it has to have while it makes such calls.
        modules: Its denoisers: all that may run.
        listeners: Told of every call, one after another; the first one to answer is taken.
    """

    def __init__(
        self,
        pipe: Any,
        scheduler: Any,
        modules: Iterable[nn.Module],
        listeners: Iterable[CallListener],
    ) -> None:
        self._pipe = pipe
        self._modules = list(dict.fromkeys(modules))
        self.listeners = list(listeners)
        self._scheduler = scheduler
        self._is_busy = False
        self._turn = 0  # above 0 in a trajectory, and higher the later it began
        self._thread = 0
        self._has_begun = False
        self._is_pipes = False  # whether a pipeline has called a denoiser in this trajectory
        self._ran: list[nn.Module] = []
        self._alone: list[nn.Module] = []
        self.watch()

    def watch(self) -> None:
        """Observe the modules; again where a user compiled one in place since."""
        with LOCK:
            for module in self._modules:
                seam = vars(module).get(_PLACE)
                if not isinstance(seam, _Seam):
                    seam = _Seam(module, seam)
                seam.add(self)
                vars(module)[_PLACE] = seam  # after it: a seam goes with an observer that is freed

    def close(self) -> None:
        """Observe nothing any more; doing it twice does nothing."""
        self.end()
        with LOCK:
            for module in self._modules:
                seam = vars(module).get(_PLACE)
                if isinstance(seam, _Seam):
                    seam.remove(self)
        self._modules, self.listeners, self._pipe = [], [], None

    def begin(self, is_late: bool) -> None:
        """Begin a trajectory in this thread.

        Args:
            is_late: Whether it is the same one, of which it is known only now that it begins late.

        Raises:
            SwitchError: See ``check_free``.
        """
        for module in self._modules:
            self.check_free(module)
        self._turn, self._thread = next(_turns), threading.get_ident()
        self._has_begun = self._is_pipes = False
        if not is_late:
            self._ran = []
        self.watch()

    def end(self) -> None:
        """End the trajectory."""
        self._turn, self._ran, self._alone = 0, [], []

    def claim(self, modules: Iterable[nn.Module]) -> None:
        """Let nobody else call these modules, on which a stage is to set something, from now on.

        Raises:
            SwitchError: Another pipe has claimed one, or somebody else's call of it is under way,
                if it began since the module is observed.
        """
        self._alone, wanted = [], list(modules)
        with LOCK:  # no call begins meanwhile
            for module in wanted:
                self.check_free(module)
                seam = vars(module).get(_PLACE)
                if isinstance(seam, _Seam) and seam.is_used_beside(self):
                    raise SwitchError(_IN_USE.format(type(module).__name__))
            self._alone = wanted

    def has_claimed(self, module: nn.Module) -> bool:
        """Whether nobody else may call a module now."""
        return any(module is claimed for claimed in self._alone)

    def check_free(self, module: nn.Module) -> None:
        """Check that no stage of another pipe's has set anything on a module.

        Raises:
            SwitchError: It has.
        """
        for other in self._claimants(module):
            raise other.refusal(module)

    def is_free(self, module: nn.Module) -> bool:
        """Whether no other pipe has claimed a module."""
        return not self._claimants(module)

    def _claimants(self, module: nn.Module) -> list[PipeCalls]:
        seam = vars(module).get(_PLACE)
        others = seam.observers if isinstance(seam, _Seam) else []
        return [other for other in others if other is not self and other.has_claimed(module)]

    def refusal(self, module: nn.Module) -> SwitchError:
        """Say to others why they may not call a module that this pipe has claimed."""
        is_alive = any(thread.ident == self._thread for thread in threading.enumerate())
        is_left = not is_alive or (self.is_here and not _is_at_work(self._pipe))
        return SwitchError((_LEFT if is_left else _SHARED).format(type(module).__name__))

    @property
    def is_here(self) -> bool:
        """Whether this is the trajectory's thread."""
        return self._thread == threading.get_ident()

    def take(self) -> list[nn.Module]:
        """Give the modules that were called since this was last asked, in their order."""
        ran, self._ran = self._ran, []
        return ran

    def check_scheduler(self) -> None:
        """Check that the pipe still has the scheduler that drives its stages.

        Raises:
            SwitchError: It was replaced.
        """
        if self._pipe.scheduler is not self._scheduler:
            raise SwitchError(
                "the pipe's scheduler was replaced while the switch was attached, by a "
                f"{type(self._pipe.scheduler).__name__}, so its stages don't run: set the "
                "scheduler first, then attach the switch"
            )

    def check_watched(self) -> None:
        """Check that the modules are still observed.

        Raises:
            SwitchError: One was compiled in place since the last step began.
        """
        for module in self._modules:
            if not isinstance(vars(module).get(_PLACE), _Seam):
                raise SwitchError(
                    f"this {type(module).__name__} was compiled in place, by compile(), or had its "
                    f"{_PLACE} replaced, within a call, so what this step ran can't be observed: "
                    "compile before the call, or in the switch's on_step, which runs between steps"
                )

    def claims(self, pipe: Any, beneath: list[Any]) -> int:
        """Say how much a call belongs here, 0 for not at all.

        Args:
            pipe: The pipeline that made it, or None.
            beneath: Pipelines whose callback it was made in.
        """
        if pipe is None:
            is_ours = self._turn and self.is_here and not self._is_pipes
            return self._turn if is_ours and not any(p is self._pipe for p in beneath) else 0
        return max(1, self._turn) if pipe is self._pipe else 0

    def _begin_late(self, module: nn.Module) -> nn.Module:
        """Give the denoiser of the first step, of which a late start may be known only now."""
        pipe = self._pipe
        if self._has_begun or not hasattr(pipe, "get_timesteps"):
            return module
        self._has_begun = True
        timestep = getattr(pipe, "current_timestep", None)
        places = [name for name in DENOISER_NAMES if getattr(pipe, name, None) is module]
        if timestep is None or not places:
            return module
        self._scheduler.begin_late(timestep)
        self._has_begun = True
        present: nn.Module = getattr(pipe, places[0])
        return present

    def call(self, pipe: Any, compute: Callable[..., Any], call: Call) -> Any:
        """Make a call that belongs here, unless a listener answers it.

        Raises:
            SwitchError: See ``check_scheduler``.
        """
        if self._is_busy or (self._turn and not self.is_here):
            return compute(*call.args, **call.kwargs)
        if pipe is not None:
            self.check_scheduler()
        if not self._turn:
            return compute(*call.args, **call.kwargs)
        present = self._begin_late(call.module)
        if present is not call.module:
            return present(*call.args, **call.kwargs)
        self._is_busy, self._is_pipes = True, self._is_pipes or pipe is not None
        try:
            self._ran.append(call.module)
            for listener in self.listeners:
                answer = listener.denoiser_answer(call)
                if answer is not None:
                    return answer
            output = compute(*call.args, **call.kwargs)
            for listener in self.listeners:
                listener.denoiser_ran(call, output)
            return output
        finally:
            self._is_busy = False


class _Seam:
    """What stands in a module's ``_compiled_call_impl`` while anybody observes it."""

    def __init__(self, module: nn.Module, former: Callable[..., Any] | None) -> None:
        self._module = weakref.ref(module)
        self._former = former
        self._observers: tuple[weakref.ref[PipeCalls], ...] = ()
        self._under_way: dict[object, PipeCalls | None] = {}  # whose they are

    def __bool__(self) -> bool:
        """Whether the module is compiled, as those who ask it take this for."""
        return self._former is not None

    @property
    def observers(self) -> list[PipeCalls]:
        """Those that are living."""
        return [observer for ref in self._observers if (observer := ref()) is not None]

    def add(self, observer: PipeCalls) -> None:
        if all(known() is not observer for known in self._observers):
            gone = partial(_forget, weakref.ref(self))
            self._observers = (*self._observers, weakref.ref(observer, gone))

    def remove(self, observer: PipeCalls | None) -> None:
        """Let an observer, and all that are gone, go; and the seam with the last of them."""
        left = (ref for ref in self._observers if ref() not in (None, observer))
        self._observers = tuple(left)
        module = self._module()
        if self._observers or module is None or vars(module).get(_PLACE) is not self:
            return
        _put(module, self._former)

    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None
        compute = self._former or module._call_impl
        pipe, beneath = calling_pipe()
        token = object()
        try:
            with LOCK:
                owner = self._owner(module, pipe, beneath)
                self._under_way[token] = owner
                _running[token] = (getattr(module, "_orig_mod", module), threading.get_ident())
            if owner is None:
                return compute(*args, **kwargs)
            return owner.call(pipe, compute, Call(module, args, kwargs))
        finally:
            with LOCK:
                self._under_way.pop(token, None)
                _running.pop(token, None)
                _ended.notify_all()

    def _owner(self, module: nn.Module, pipe: Any, beneath: list[Any]) -> PipeCalls | None:
        """Find out to whom a call belongs.

        Raises:
            SwitchError: Somebody else has claimed the module. What is called in that one's own
                thread by no pipeline, such as its callback, may see what the stage has set.
        """
        owner, most = None, 0
        for observer in self.observers:
            claim = observer.claims(pipe, beneath)
            if claim > most:
                owner, most = observer, claim
        for other in self.observers:
            if other is owner or not other.has_claimed(module):
                continue
            if pipe is not None or owner is not None or not other.is_here:
                raise other.refusal(module)
        return owner

    def is_used_beside(self, observer: PipeCalls) -> bool:
        """Whether a call is under way that doesn't belong to an observer."""
        return any(owner is not observer for owner in self._under_way.values())


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Have no other thread run a module in the block: those that do end first, and none begins.

    It knows of the calls that began since some switch has the module.
    """
    here = threading.get_ident()
    with _ended:
        _ended.wait_for(lambda: all(m is not module or t == here for m, t in _running.values()))
        yield


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` wrapped a module, or compiled it in place."""
    return hasattr(module, "_orig_mod") or bool(vars(module).get(_PLACE))


def intercept(module: nn.Module, call: Callable[..., Any]) -> Callable[[], None]:
    """Have every call of a module made by a function, outside whatever is compiled.

    Args:
        module: The module.
        call: Called with what computes the call's output, and the call's arguments.

    Returns:
        What undoes it, unless somebody has put something else there since.
    """
    former = vars(module).get(_PLACE)
    ours = partial(call, former or module._call_impl)
    vars(module)[_PLACE] = ours

    def undo() -> None:
        if vars(module).get(_PLACE) is ours:
            _put(module, former)

    return undo


def _put(module: nn.Module, compute: Any) -> None:
    if compute is None:
        vars(module).pop(_PLACE, None)
    else:
        vars(module)[_PLACE] = compute


def _forget(seam: weakref.ref[_Seam], observer: Any) -> None:
    with LOCK:
        living = seam()
        if living is not None:
            living.remove(None)


def calling_pipe(switch: Any = None) -> tuple[Any, list[Any]]:
    """Find the pipeline that makes the present call: the nearest one on the stack.

    Args:
        switch: The one that asks; its own frames are nobody's callback.

    Returns:
        The pipeline, None where none does; and those in whose callback the call is made.
    """
    beneath: list[Any] = []
    is_in_callback = False
    inner: CodeType | None = None
    for frame in _frames():
        values = _arguments(frame)
        for name in ("components", "self"):
            found = values.get(name)
            if isinstance(found, PipelineCallback) and found is not switch:
                is_in_callback = True
            if not _is_pipeline(found):
                continue
            callbacks = (_code(values.get(name)) for name in _CALLBACKS)
            if not is_in_callback and (inner is None or inner not in callbacks):
                return found, beneath
            beneath.append(found)
            is_in_callback = False
        inner = frame.f_code
    return None, beneath


def is_interrupted(pipe: Any) -> bool:
    """Whether a pipe's call is under way, and somebody whom it called makes the present call.

    False for what the pipeline's own methods do, which are called by nobody else.
    """
    frames = (frame for frame in _frames() if not _is_torchs(frame))  # such as torch.no_grad's
    at_work = [_pipeline(frame) for frame in frames]
    outside = itertools.dropwhile(lambda found: found is None, at_work)
    return any(found is pipe for found in itertools.dropwhile(lambda one: one is pipe, outside))


def _is_at_work(pipe: Any) -> bool:
    """Whether a pipe's call is under way in this thread."""
    return any(_pipeline(frame) is pipe for frame in _frames())


def _frames() -> Iterator[FrameType]:
    """The frames on the stack, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_torchs(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "torch"


def _pipeline(frame: FrameType) -> Any:
    """The pipeline whose method, or block, a frame runs; None where it is none."""
    values = _arguments(frame)
    found = (values.get(name) for name in ("components", "self"))
    return next(filter(_is_pipeline, found), None)


def _is_pipeline(value: Any) -> bool:
    return isinstance(value, (DiffusionPipeline, ModularPipeline))


def _arguments(frame: FrameType) -> dict[str, Any]:
    """Read what tells a pipeline's frame from others, and keep nothing else of it alive.

    Up to Python 3.12 ``f_locals`` is a snapshot that the frame keeps until it ends, with tensors
    that the function has deleted since. So it is emptied of all that the next reader finds anew,
    unless somebody else holds it, or a debugger writes it back.
    """
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    if not names or not (names[0] == "self" or "components" in names):
        return {}
    values = frame.f_locals
    found = {name: values[name] for name in _WANTED if name in values}
    holders = 3  # the frame, ``values``, and the argument of getrefcount
    is_held = not isinstance(values, dict) or sys.getrefcount(values) > holders
    if not (is_held or sys.gettrace() or sys.getprofile()):
        for name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars):
            values.pop(name, None)
    return found


def _code(function: Any) -> CodeType | None:
    """Give the code of a function, a bound or partial one, or an object that can be called."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - it is asked for its code
    found: CodeType | None = getattr(function, "__code__", None)
    return found
