"""Options that several commands share."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowblend_cli.engine.run_options import RunOptions, usual_executor
from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import Shard
from flowblend_cli.utils.devices import check_devices
from flowblend_cli.utils.folders import FOLDER
from flowblend_plugin.errors import FlowBlendError

_PART = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_WORKERS = 10_000


_OPTION = click.option("--log-file", type=click.Path(path_type=Path), metavar="FILE",
                       help="Add everything that is said, with UTC times, to FILE.")  # fmt: skip


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A length of time: ``6h``, ``90m``, ``1h30m``, ``45s``, or plain seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it as seconds."""
        text = str(value).strip().lower()
        parts = _PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        else:
            self.fail(f"{value!r} is no length of time: write 6h, 90m, 1h30m or seconds", param)
        if not seconds:
            self.fail("a run needs more than no time at all", param)
        return seconds


class DeviceList(click.ParamType):  # type: ignore[type-arg]  # likewise
    """Devices: ``all``, ``cuda:0,cuda:2``, or ``cpu*2``."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is no such list."""
        text = str(value)
        if text:
            try:
                check_devices(text)
            except ValueError as error:
                self.fail(str(error), param)
        return text


class ShardOf(click.ParamType):  # type: ignore[type-arg]  # likewise
    """A shard: ``2/8`` is the second of eight."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Shard:
        """Read it."""
        try:
            return Shard.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param)


class Workers(click.ParamType):  # type: ignore[type-arg]  # likewise
    """A number of workers, or ``auto``, which is 0."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        text = str(value).strip().lower()
        if text in ("auto", "0"):
            return 0
        if not (text.isascii() and text.isdecimal() and 0 < int(text[:6]) <= _MOST_WORKERS):
            self.fail(f"{value!r} is no number of workers: write auto, or 1 to {_MOST_WORKERS:,}")
        return int(text)


_OPTIONS = (
    click.option("--fail-fast/--keep-going", help="End with the first job that fails, or go on "
                 "without it, which is the default."),
    click.option("--max-jobs", type=click.IntRange(min=1), metavar="N",
                 help="Stop cleanly once N jobs were rendered."),
    click.option("--max-time", "max_time_s", type=Duration(), metavar="TIME",
                 help="Stop cleanly before TIME is up, such as 6h or 90m."),
    click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, metavar="N",
                 help="Store a job's state after every N steps, and go on from there."),
    click.option("--verify", is_flag=True, help="Hash every byte of every finished file."),
    click.option("--allow-download", is_flag=True, help="Fetch models that aren't here."),
    click.option("--executor", type=click.Choice(["child", "in-process", "ray"]),
                 default=usual_executor, help="Where jobs are rendered."),
    click.option("--devices", type=DeviceList(), metavar="LIST", default="",
                 help="A process on each: all, cuda:0,cuda:2, or cpu*2."),
    click.option("--address", default="", metavar="HOST:PORT",
                 help="Cluster of --executor ray; without it, one is started here."),
    click.option("--workers", type=Workers(), default="auto", metavar="N|auto",
                 help="Workers of a cluster, at most; auto: as many as it has room for."),
    click.option("--gpus-per-worker", type=click.FloatRange(min=0, max=64), metavar="N",
                 help="GPUs of each worker of a cluster; unset: 1 where it has any."),
    click.option("--job-timeout", "job_timeout_s", type=Duration(), metavar="TIME",
                 help="Take a job from a worker that tells of no step for TIME."),
    click.option("--allow-mixed-devices", is_flag=True,
                 help="Let workers render on devices that make other bits."),
    click.option("--encode", type=click.Choice(["driver", "worker"]), default="driver",
                 show_default=True, help="Who makes files of frames: for many workers, they."),
)  # fmt: skip


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets them as one ``options``, see ``RunOptions``."""

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        names = RunOptions.__dataclass_fields__
        chosen = {name: given.pop(name) for name in names if name in given}
        options = RunOptions(**chosen)
        _check_executor(options)
        return command(options=options, **given)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def _check_executor(options: RunOptions) -> None:
    """Refuse options that the chosen executor would do nothing with, all at once."""
    of_cluster = {
        "--address": options.address,
        "--workers": options.workers,
        "--gpus-per-worker": options.gpus_per_worker is not None,
        "--allow-mixed-devices": options.allow_mixed_devices,
    }
    given = [name for name, value in of_cluster.items() if value]
    problems = []
    if given and options.executor != "ray":
        verb = "is" if len(given) == 1 else "are"
        problems.append(f"{', '.join(given)} {verb} for a cluster: add --executor ray, or leave "
                        f"{'it' if len(given) == 1 else 'them'} out")  # fmt: skip
    if options.devices and options.executor == "ray":
        problems.append("--devices is for this machine alone: leave it out with --executor ray, "
                        "whose workers get --gpus-per-worker each")  # fmt: skip
    if options.job_timeout_s is not None and options.executor == "in-process":
        problems.append("--job-timeout ends a process, and --executor in-process has none of its "
                        "own: leave one of them out")  # fmt: skip
    if problems:
        raise UsageError("\n".join(problems))


def log_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--log-file``; it gets the open log as ``log``, or None without one.

    The errors that end the command stand in the log, too.
    """

    @functools.wraps(command)
    def logged(*, log_file: Path | None, **given: Any) -> Any:
        if log_file is None:
            return command(log=None, **given)
        from flowblend_cli.console.log_file import LogFile
        from flowblend_cli.console.plain import Lines

        log = LogFile(log_file, Lines(sys.stderr, "standard error"))
        try:
            return command(log=log, **given)
        except FlowBlendError as error:
            log.write(f"error: {error}")
            raise
        finally:
            log.close()

    return _OPTION(logged)


class NamedPath(click.Path):
    """A path that is no empty text, which an unset variable of a shell leaves."""

    def __init__(self, **given: Any) -> None:
        super().__init__(path_type=Path, **given)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty path."""
        if value == "":
            option = param.opts[0] if param is not None else "the path"
            raise UsageError(f"{option} is empty: name a path, or leave the option out")
        return super().convert(value, param, ctx)


class OutputFolder(click.Path):
    """``DIR``, the folder that clips were rendered into; left out, it is the present one."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take the present folder only where something was rendered into it."""
        if value == "" and not Path(FOLDER).is_dir():
            raise UsageError(
                "nothing was rendered into the present folder: name the folder that a recipe "
                "renders into, such as out/harbour; `flowblend plan RECIPE` says it in its first "
                "line"
            )
        return super().convert(value or os.curdir, param, ctx)


def output_folder(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument ``DIR``, as ``folder``; see ``OutputFolder``."""
    return click.argument("folder", metavar="[DIR]", type=OutputFolder(), default="")(command)


_GIVEN = "flowblend.command_line"


def command_line() -> list[str]:
    """The command that runs now, as words of a shell."""
    context = click.get_current_context()
    return ["flowblend", context.info_name or "", *context.meta.get(_GIVEN, ())]


class TakesManyFiles(click.Command):
    """A command whose ``--reviews`` takes every file after it, as a shell's pattern gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each file; a folder is never a rater's file."""
        ctx.meta[_GIVEN] = tuple(args)
        spread, taking = [], False
        for arg in args:
            if arg.startswith("-"):
                taking = arg == "--reviews"
                spread += [] if taking else [arg]
            elif taking and not Path(arg).is_dir():
                spread += ["--reviews", arg]
            else:
                spread.append(arg)
        if args and args[-1] == "--reviews":
            spread.append("--reviews")  # which click then says needs a file
        return super().parse_args(ctx, spread)
