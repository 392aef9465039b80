"""The command line: one file a command, each imported when it is asked for.

Modules here import click and the standard library alone at their top, so that `rnnlm --help` answers at once; numpy and
NLTK are loaded by the command that needs them.
"""

import importlib
import io
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from rnnlm import __version__
from rnnlm.errors import RnnlmError

COMMANDS = ("train", "generate", "evaluate", "gradcheck", "info")
FAILED, INTERRUPTED = 1, 130  # exit codes; click's own for wrong usage is 2


class LazyGroup(click.Group):
    """A group whose commands live in modules of their names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which a newcomer wants them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"rnnlm.cli.{cmd_name}"), cmd_name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
    Example:
      rnnlm train corpus.txt
      rnnlm generate
    """,
)
@click.version_option(__version__, prog_name="rnnlm")
def commands() -> None:
    """Train word-level recurrent language models, and use them."""


def main() -> NoReturn:
    """Run the command line, and exit: 0 done, 1 a failed check or run, 2 wrong usage, 130 interrupted."""
    _prepare_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: temporary files are removed, training is saved
    sys.unraisablehook = _raise_again
    try:  # commands.main() would turn a closed pipe into a failure
        with commands.make_context("rnnlm", sys.argv[1:]) as context:
            code = commands.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("Interrupted.")
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough; python must not complain at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except RnnlmError as error:
        _say(f"Error: {error}.")
        code = FAILED
    except MemoryError:
        _say("Error: there is not enough memory for this; make --hidden, --vocab-size, --streams or --window smaller.")
        code = FAILED
    except OSError as error:
        _say(f"Error: {error.filename or 'standard output'}: {(error.strerror or str(error)).lower()}.")
        code = FAILED
    except Exception as error:
        if os.environ.get("RNNLM_TRACEBACK"):
            raise
        _say(
            f"Error: this is a defect of rnnlm ({type(error).__name__}: {error}); "
            "please report it with what RNNLM_TRACEBACK=1 prints."
        )
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_streams() -> None:
    """Open what the caller has closed, and let no character stop us that a terminal cannot show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 -- open for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send an interrupt again that came in the middle of a destructor, where Python would drop it."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say(message: str) -> None:
    click.echo(message, err=True)
