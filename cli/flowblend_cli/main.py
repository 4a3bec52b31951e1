"""main: the ``flowblend`` command group, which imports a command's module when it is used."""

from __future__ import annotations

import errno
import importlib
import keyword
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from flowblend_cli import __version__
from flowblend_cli.errors import OutputError, RecipeError, UsageError
from flowblend_cli.text import printable, shorten
from flowblend_cli.utils.streams import open_missing_streams
from flowblend_plugin.errors import FlowBlendError

INTERRUPTED = 128 + signal.SIGINT

# name -> one line of help; the command is `name` in flowblend_cli/commands/name.py, or `name_` in
# name_.py where Python keeps the name for itself.
COMMANDS = {
    "init": "Write a first recipe for a pair of models.",
    "render": "Render every job of a recipe that isn't finished yet.",
    "status": "Tell how far the renders into a folder are.",
    "plan": "Show each job and who runs which step, without loading a model.",
    "probe": "Measure a pair of denoisers, to choose stage boundaries by.",
    "import": "Make a recipe of a file of prompts.",
    "check": "Find every problem in recipes, without rendering.",
    "report": "Say which settings of finished clips win, and how surely.",
    "review": "Write a page on which people score clips blind.",
    "info": "Show how a finished file was rendered.",
    "recipes": "List the bundled recipes, or copy one.",
    "models": "Tell which models are here, fetch them, check their files.",
    "doctor": "Tell what on this machine could break a render, or its bits.",
    "schema": "Print the JSON Schema of recipes, for editors.",
}


class LazyGroup(click.Group):
    """A group that lists its commands without importing them, and owns signals and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command, or None if there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        attribute = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"flowblend_cli.commands.{attribute}")
        command: click.Command = getattr(module, attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table instead of from their modules."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; a command's returned integer is the exit code."""

        def run() -> Any:
            return super(LazyGroup, self).main(
                args, prog_name, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return run()
        open_missing_streams()
        with _signals_that_unwind():
            code = _exit_code_of(run)
        _leave(code)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: flowblend render quickstart",
)
@click.version_option(__version__, prog_name="flowblend")
def main() -> None:
    """Render clips with a large and a small denoiser taking turns in one trajectory."""


# What the system says of a path that can't be anybody's, whichever call it came from.
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)


def _exit_code_of(run: Any) -> int:
    """Run, say what went wrong in one clear message on stderr, and map it to an exit code."""
    try:
        result = run()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except FlowBlendError as error:
        _complain(error)
        return int(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))
    except OSError as error:
        if error.errno in _NO_PATH and error.filename is not None:
            _complain(f"{shorten(error.filename)}: {error.strerror}: give another path")
            return UsageError.exit_code
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EPIPE, errno.EDQUOT):
            raise
        _complain(error)
        return OutputError.exit_code


def _complain(error: object) -> None:
    """Print an error, line by line and unwrapped; recipe problems stand as they are."""
    prefix = "" if isinstance(error, RecipeError) else "flowblend: "
    lines = str(error).split("\n")
    try:
        for warning in error.warnings if isinstance(error, RecipeError) else ():
            click.echo(f"warning: {printable(warning)}", err=True)
        for number, line in enumerate(lines):
            click.echo((prefix if number == 0 else "") + printable(line), err=True)
    except OSError:
        pass  # stderr is gone as well: the exit code is all that is left to say


def _leave(code: int) -> NoReturn:
    """Exit after flushing stdout, so that a full disk or a closed pipe isn't lost silently."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        # Python would flush once more at shutdown, and fail with a confusing message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
            _complain(f"can't write the results to stdout: {error}")
        code = code or OutputError.exit_code
    sys.exit(code)


@contextmanager
def _signals_that_unwind() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP unwind the stack, so that every ``finally`` runs.

    A job started with ``&`` ignores SIGINT, and Python's default for the others skips ``finally``.
    SIGHUP stays ignored where it was, as under nohup. All are restored afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end}
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        wanted[hang_up] = _end
    former = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
