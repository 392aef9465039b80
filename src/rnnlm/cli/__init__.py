"""The command line: one file a command, each imported when it is asked for.

Modules here import click and the standard library alone at their top, so that `rnnlm --help` answers at once; numpy and
NLTK are loaded by the command that needs them.
"""

import importlib
import io
import keyword
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from rnnlm import __version__
from rnnlm.errors import RnnlmError
from rnnlm.settings import launched

COMMANDS = (  # as the help lists them
    "train",
    "generate",
    "next",
    "evaluate",
    "score",
    "rescore",
    "mix",
    "pairs",
    "import",
    "export",
    "gradcheck",
    "trace",
    "gradflow",
    "curve",
    "report",
    "info",
)
FAILED, INTERRUPTED = 1, 130  # exit codes; click's own for wrong usage is 2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LazyGroup(click.Group):
    """A group whose commands live in modules of their names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which a newcomer wants them."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that a line names, or name one that is like it."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {name[:40]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(importlib.import_module(f"rnnlm.cli.{name}"), name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="""\b
    Example:
      rnnlm train corpus.txt
      rnnlm generate
    """,
)
@click.version_option(__version__, "-V", "--version", prog_name="rnnlm")
def commands() -> None:
    """Train word-level recurrent language models, and use them."""


def main() -> NoReturn:
    """Run the command line, and exit: 0 done, 1 a failed check or run, 2 wrong usage, 130 interrupted."""
    sys.unraisablehook = _raise_again
    try:
        handle_signals(_interrupt)
        _prepare_streams()
        code = _run()
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            if speaks() or _fails_alone():
                _say("Interrupted.")
        code = INTERRUPTED
    handle_signals(leave)
    if is_rank():
        _part(code)
    sys.exit(code)


def is_rank() -> bool:
    """Say whether this is one of several processes that train one model; other commands know nothing of each other."""
    return sys.argv[1:2] == ["train"] and launched()[1] > 1


def speaks() -> bool:
    """Say whether this process is to say what all of them would."""
    return not is_rank() or launched()[0] == 0


def _part(code: int) -> None:
    """Part from the other ranks, which end too; where they cannot be joined, each ends by itself."""
    from rnnlm.ranks import leave as part

    with suppress(RnnlmError):
        part(code)


def _fails_alone() -> bool:
    """Say whether this rank fails, and the first, which would say so, does not."""
    from rnnlm.ranks import fails_alone

    with suppress(RnnlmError):
        return fails_alone()
    return False


def _run() -> int:
    if instruction := os.environ.get("_RNNLM_COMPLETE"):  # a shell asks what may come next
        with suppress(KeyError, ValueError):  # it says nothing of what was typed
            return shell_complete(commands, {}, "rnnlm", "_RNNLM_COMPLETE", instruction)
        return FAILED
    try:  # commands.main() would turn a closed pipe into a failure
        with commands.make_context("rnnlm", sys.argv[1:] or ["--help"]) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        return _failure(error)
    return 0


def _failure(error: Exception) -> int:
    """Say what is wrong, in a sentence, and return the exit code."""
    if not speaks() and not _fails_alone():
        return error.exit_code if isinstance(error, click.ClickException) else FAILED
    match error:
        case click.ClickException():
            return _show(error)
        case BrokenPipeError():  # whoever read our output has seen enough; Python must not complain at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        case RnnlmError():
            _say(f"Error: {error}.")
        case MemoryError():
            sizes = "--threads, --hidden, --layers, --embedding, --batch-size or --vocab-size"
            _say(f"Error: there is not enough memory; make {sizes} smaller.")
        case ImportError():
            name = error.name or "a package"
            _say(f"Error: {name} cannot be loaded; see to memory, or install again: pip install rnnlm-numpy.")
        case RuntimeError() if "can't start new thread" in str(error):
            _say("Error: the system gives us no further thread; give a smaller --threads.")
        case OSError():
            from rnnlm.files import reason

            remedy = "make room on the disk, or see to its permissions"
            _say(f"Error: {error.filename or 'standard output'}: {reason(error)}; {remedy}.")
        case _ if isinstance(error.__context__, KeyboardInterrupt):  # what was cut short could not be tidied up
            raise KeyboardInterrupt from None
        case _ if os.environ.get("RNNLM_TRACEBACK"):
            raise error
        case _:
            what = f"{type(error).__name__}: {error}"
            _say(f"Error: this is a defect of rnnlm ({what}); please report it with what RNNLM_TRACEBACK=1 prints.")
    return FAILED


def _show(error: click.ClickException) -> int:
    """Say what is wrong with a command line, and how to learn more; return the exit code."""
    from rnnlm.cli.options import usage_sentence

    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} -h' for help.\n", err=True)
    _say(f"Error: {usage_sentence(error)}")
    return error.exit_code


def _prepare_streams() -> None:
    """Open what the caller has closed, and let no character stop us that a terminal cannot show; files are UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 -- open for as long as we run
            if name == "stdout":  # what is printed must not seem to have come to anybody
                os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _raise_again(unraisable: "sys.UnraisableHookArgs", interrupted: bool = False) -> None:
    """Send an interrupt again that came in the middle of a destructor, where Python would drop it.

    Once interrupted, a destructor may find what it shall tidy up half done: that is no error to be shown.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif not interrupted:
        sys.__unraisablehook__(unraisable)


def handle_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Have all signals to stop call this."""
    for number in STOP_SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup has us ignore SIGHUP
            signal.signal(number, handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Do as Ctrl-C does, whatever the signal: temporary files are removed. A second one ends us at once."""
    handle_signals(leave)
    sys.unraisablehook = partial(_raise_again, interrupted=True)
    raise KeyboardInterrupt


def leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End the process at once."""
    os._exit(INTERRUPTED)


def _say(message: str) -> None:
    """Write a message on standard error; a name of a file may hold what would move a terminal's cursor."""
    from rnnlm.sources import printable

    message = printable(message)
    if sys.stderr.isatty():
        from rnnlm.cli.progress import wrapped

        message = wrapped(message)
    click.echo(message, err=True)
