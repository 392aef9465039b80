"""Files opened with care: plain ones to read, others replaced whole or not at all; errors in a sentence."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rnnlm.errors import RnnlmError


def reason(error: OSError) -> str:
    """Return what the system says, as part of a sentence."""
    return (error.strerror or str(error)).lower()


def open_plain(path: Path, follow: bool = True) -> BinaryIO:
    """Open a plain file to read it, through links unless `follow` is not set.

    Raises OSError where it is no plain file: a pipe, say, could be waited for without end.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except ValueError:  # a NUL, which is in no path
        raise FileNotFoundError(errno.ENOENT, "there is no such path", str(path)) from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise OSError(errno.EINVAL, "is a directory" if stat.S_ISDIR(mode) else "not a plain file", str(path))
    return os.fdopen(number, "rb")


def temporary_name(path: Path) -> Path:
    """Return the one name under which a file is written before it takes the place of `path`."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, error: type[RnnlmError], remedy: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when all of it is on the disk; until then, `path` stays as it is.

    It has a temporary name of its own, under which what a kill has left is removed first, and never leads through a
    link. Raises `error`, in a sentence that ends with `remedy`, where the system fails.
    """
    temporary = temporary_name(path)  # one name: what a kill leaves, the next write removes
    try:
        temporary.unlink(missing_ok=True)
        try:  # from here on, as a signal may come when the file is there and not yet open
            with temporary.open("xb") as file:  # exclusively: whatever is put there now, a link too, is an error
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # what failed first is what the user is told
                temporary.unlink()
            raise
    except OSError as failure:
        raise error(f"{path}: cannot be written ({reason(failure)}); {remedy}") from None
