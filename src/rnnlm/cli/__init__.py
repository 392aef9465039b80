"""The command line: one file a command, each imported when it is asked for.

Modules here import click and the standard library alone at their top, so that `rnnlm --help` answers at once; numpy and
NLTK are loaded by the command that needs them.
"""

import importlib
import os
import signal
import sys
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


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rnnlm")
def commands() -> None:
    r"""Train word-level recurrent language models, and use them.

    \b
    Example:
      rnnlm train corpus.txt
      rnnlm generate
    """


def main() -> NoReturn:
    """Run the command line, and exit: 0 done, 1 a failed check or run, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: temporary files are removed, training is saved
    try:
        code = commands.main(prog_name="rnnlm", standalone_mode=False)
        sys.stdout.flush()
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
        _say(f"Error: {str(error).rstrip(chr(46))}.")
        code = FAILED
    except MemoryError:
        _say("Error: there is not enough memory for this; make --hidden, --vocab-size, --streams or --window smaller.")
        code = FAILED
    except OSError as error:
        _say(f"Error: {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}.")
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


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say(message: str) -> None:
    click.echo(message, err=True)
