"""What a command says of its work, on standard error: lines and progress bars, and the lines in a file if asked.

A terminal or a reader that goes away ends no command: what would be said is dropped.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import stat
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from rnnlm.errors import SettingsError

ERASE = "\x1b[K"  # to the end of the line, where Ctrl-C has left its mark
LOG = b"$ rnnlm "  # how a log begins
BAR = "{desc} {percentage:3.0f}% {bar} {rate_noinv_fmt}{postfix}, {remaining} left"


class Screen(io.TextIOBase):
    """Standard error, until it goes away."""

    quiet = False  # whether only warnings are wanted
    silent = False  # whether another process says it all
    log: io.TextIOWrapper | None = None  # a file that has every line too

    def write(self, text: str) -> int:
        """Write to standard error, if it is still there."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # a pipe without a reader, a terminal that is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return len(text)

    def isatty(self) -> bool:
        """Say whether somebody looks on."""
        return sys.stderr.isatty()

    def fileno(self) -> int:
        """Return the number of the file, by which its width is found."""
        return sys.stderr.fileno()


screen = Screen()


LARGE = 1e9  # a perplexity that is no longer written out
WIDTH = 80  # columns of a line, at most
NAMED = 10  # words that a message names, at most


class Bar:
    """What moves as work is done. This one nobody sees; tqdm's, which takes long to load, are for a terminal."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Move it by so much."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Say something behind it."""

    def close(self) -> None:
        """Remove it."""


def bar(description: str, total: int | None = None, unit: str = "", delay: float = 1, **keywords: Any) -> Bar:
    """Return a bar, shown after `delay` seconds on a terminal; `update(n)` moves it."""
    if screen.quiet or not screen.isatty():
        return Bar()
    from tqdm import tqdm

    shown = tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        file=screen,
        delay=delay,
        ascii=not _has_blocks(),
        ncols=shutil.get_terminal_size().columns - len("^C"),  # so that what Ctrl-C writes stays on the bar's line
        leave=False,
        bar_format=BAR if total else None,
        **keywords,
    )
    return cast(Bar, shown)


def _has_blocks() -> bool:
    """Say whether standard error can show what bars are made of."""
    try:
        "█".encode(sys.stderr.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


@contextmanager
def stage_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for a stage of reading a text, `total` bytes long; yields what moves it."""
    with bar(description, total or None, "B") as progress:

        def move(done: int) -> None:
            progress.update(done)

        yield move


def say(message: str) -> None:
    """Write a line on standard error, above a bar if there is one."""
    if not screen.quiet:
        _write(message)
    _log(message)


def typed(command: str, model: str) -> str:
    """Return a command as it is to be typed from here, for a model."""
    name = Path(sys.argv[0])
    found = shutil.which(name.name)
    program = name.name if found and Path(found).resolve() == name.resolve() else shlex.quote(str(name))
    if name.name == "__main__.py":
        program = "python -m rnnlm"
    return f"{program} {command}" + ("" if model == "model" else f" --model {shlex.quote(model)}")


def warn(message: str) -> None:
    """Write a warning, whether or not others are wanted."""
    _write(f"Warning: {message}")
    _log(f"Warning: {message}")


def _write(message: str) -> None:
    if screen.silent:
        return
    if screen.isatty():
        from tqdm import tqdm

        tqdm.write(f"{ERASE}{wrapped(message)}", file=screen)
    else:
        screen.write(f"{wrapped(message)}\n")


def wrapped(message: str) -> str:
    """Break lines between words, so that they have the width of the terminal, or WIDTH where that is less."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    lines = (textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in message.split("\n"))
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Count the columns of a terminal that a text takes: two for a wide letter, none for a mark on the one before."""
    marks = ("Mn", "Me", "Cf")
    return sum((unicodedata.east_asian_width(c) in "WF") + 1 for c in text if unicodedata.category(c) not in marks)


def fitted(text: str, width: int, right: bool = False) -> str:
    """Return a text that takes so many columns: cut where it has more, with blanks where it has less."""
    if display_width(text) > width:
        ends = (end for end in range(min(len(text), width), -1, -1) if display_width(text[:end]) < width)
        text = f"{text[: next(ends)]}~"
    blanks = " " * (width - display_width(text))
    return f"{blanks}{text}" if right else f"{text}{blanks}"


@contextmanager
def said_to(quiet: bool, log: str | None, silent: bool = False) -> Iterator[None]:
    """Say warnings only, and add every line to a log too; raises SettingsError where that cannot be.

    If `silent`, say nothing.
    """
    if silent:
        quiet, log = True, None
    made = log is not None and not Path(log).exists()
    screen.quiet, screen.silent, screen.log = quiet, silent, _log_file(log) if log is not None else None
    try:
        yield
    finally:
        file, screen.quiet, screen.silent, screen.log = screen.log, False, False, None
        with suppress(OSError):
            if file is not None:
                nothing_done = made and file.tell() == len(_title().encode(errors="replace"))
                file.close()
                if nothing_done:
                    Path(str(log)).resolve().unlink()


def _log_file(path: str) -> io.TextIOWrapper:
    """Open a log to add lines to it, the first with the command; raises SettingsError where it is no log or cannot."""
    from rnnlm.files import reason

    try:  # a pipe that nobody reads is an error, and not waited for
        number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        place = os.fstat(number)
        if not stat.S_ISREG(place.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        if any(os.path.samestat(place, os.fstat(stream)) for stream in (1, 2)):
            raise OSError(errno.EINVAL, "what is printed goes there already")
        before = os.pread(number, len(LOG), 0)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "there is no such path"
        raise SettingsError(f"{path}: cannot be written ({why}); name another file with --log") from None
    file = os.fdopen(number, "a", buffering=1, encoding="utf-8", errors="replace")
    if before and before != LOG:
        file.close()
        raise SettingsError(f"{path}: is not a log, which begins with {LOG.decode()!r}; name another file with --log")
    try:
        file.write(_title())
    except OSError as error:
        with suppress(OSError):
            file.close()
        raise SettingsError(f"{path}: cannot be written ({reason(error)}); name another file with --log") from None
    return file


def _title() -> str:
    return f"$ {shlex.join(['rnnlm', *sys.argv[1:]])}\n"


def _log(message: str) -> None:
    try:
        if screen.log is not None:
            screen.log.write(f"{message}\n")
    except OSError as error:
        log, screen.log = screen.log, None
        _write(f"Warning: {log.name if log else ''}: cannot be written ({error.strerror}); the log ends here.")


def say_unknown(words: Iterable[str], place: str = "") -> None:
    """Name words of a sentence that the model does not know; `place` is that of a file's line."""
    from rnnlm.checking import brief
    from rnnlm.sources import printable

    names = [brief(printable(word)) for word in dict.fromkeys(words)]
    if names:
        more = f", and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        what = "he model does not know these words, and reads each as <unk>"
        say(f"{f'{place}t' if place else 'T'}{what}: {', '.join(names[:NAMED])}{more}.")


def warn_of_unknown(unknown: int, words: int, are_they: str) -> bool:
    """Warn where most words are unknown, and say whether they are; `are_they` is "is the text", say."""
    if unknown > words / 2:
        what = f"{unknown / words:.0%} of the words are unknown to the model; {are_they} in its language"
        warn(f"{what}, and cut into words as its training text was (see rnnlm info)?")
    return unknown > words / 2


def figure(perplexity: float) -> str:
    """Write a perplexity for a table."""
    return f"{perplexity:,.2f}" if perplexity < LARGE else f"{perplexity:.6g}"
