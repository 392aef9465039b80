"""Sources of text: files, gzip files, pipes and standard input, read as bytes, decoded strictly and cut into chunks.

Where chunks are cut depends on the text alone, so that nothing depends on how many processes work on them, and memory
never grows with the text. Nothing here knows what a word is.
"""

import codecs
import contextlib
import gzip
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from rnnlm.errors import SettingsError, TextError

STANDARD_INPUT = "-"  # the path that stands for standard input

CHUNK = 2**20  # characters after which a chunk ends at the next paragraph or line
CHUNK_LIMIT = 2**21  # a chunk has no more characters than this, whatever the text looks like
READ_BLOCK = 2**20  # bytes read at once

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
# Everything that is not text: control characters, but neither NUL (an error) nor line feed (it ends a line), and the
# codes that Unicode sets aside as no characters at all.
_CONTROL = re.compile("[\x01-\x09\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARAGRAPH_END = re.compile(r"\n *\n")

Progress = Callable[[int], None]  # told the number of bytes read since its last call


@dataclass(frozen=True)
class Source:
    """A file that can be read more than once, and the name by which messages call it.

    What it offers raises TextError when the file cannot be read.
    """

    name: str
    path: Path

    @classmethod
    def of(cls, path: "str | os.PathLike[str]") -> "Source":
        """Return the source of a plain or gzip file; `spooled` takes standard input and pipes as well."""
        return cls(os.fspath(path), Path(path))

    @cached_property
    def size(self) -> int:
        """The file's bytes, what `progress` will have been told in all."""
        with _reporting(self):
            return self.path.stat().st_size

    def digest(self, progress: Progress | None = None) -> str:
        """Return the SHA-256 of the file's bytes, in hexadecimal."""
        digest = hashlib.sha256()
        with _reporting(self), self.path.open("rb") as stream:
            while block := stream.read(READ_BLOCK):
                digest.update(block)
                if progress:
                    progress(len(block))
        return digest.hexdigest()

    def chunks(self, encoding: str, lines: bool = False) -> Iterator["Chunk"]:
        """Cut the text into chunks, at ends of lines if `lines`, otherwise at ends of paragraphs.

        Raises TextError, with the line, where the bytes are not text in this encoding.
        """
        buffer = ""
        line, position, read = 1, 0, 0
        for text, position in _pieces(self, encoding):
            buffer += text
            while len(buffer) > CHUNK_LIMIT:
                cut = _cut(buffer, lines)
                if not cut:
                    message = f"a word of more than {CHUNK_LIMIT:,} characters, so this is no text; name another file"
                    raise TextError(f"{self.name}, line {line}: {message}")
                yield Chunk(self, line, buffer[:cut], position - read, last=False)
                line += buffer.count("\n", 0, cut)
                read = position
                buffer = buffer[cut:]
        yield Chunk(self, line, buffer, position - read, last=True)


@dataclass(frozen=True)
class Chunk:
    """A stretch of a text: whole paragraphs or lines, unless one alone is too long."""

    source: Source
    line: int  # number of its first line
    text: str
    read: int  # bytes of the file that this chunk took
    last: bool  # nothing of its source follows


@contextlib.contextmanager
def spooled(paths: "Sequence[str | os.PathLike[str]]") -> Iterator[list[Source]]:
    """Make every path readable more than once, as learning, tokenizing and checking the cache need.

    `-` (standard input), pipes and other things that are no plain files are copied to temporary files, which are
    removed at the end.
    """
    if sum(path == STANDARD_INPUT for path in paths) > 1:
        raise TextError("standard input can be read only once; give '-' once")
    with contextlib.ExitStack() as stack:
        yield [_spool(path, stack) for path in paths]


def _spool(path: "str | os.PathLike[str]", stack: contextlib.ExitStack) -> Source:
    if path == STANDARD_INPUT:
        return _copied("standard input", sys.stdin.buffer, stack)
    source = Source.of(path)
    with _reporting(source):
        mode = source.path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return source
        with source.path.open("rb") as stream:
            return _copied(source.name, stream, stack)


def _copied(name: str, stream: BinaryIO, stack: contextlib.ExitStack) -> Source:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnlm-"))
    path = Path(folder, "text")
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
    except OSError as error:
        raise TextError(f"{name} cannot be copied to {folder}: {error.strerror or error}") from None
    return Source(name, path)


@contextlib.contextmanager
def _reporting(source: Source) -> Iterator[None]:
    """Turn what the system says about a file into a sentence that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise TextError(f"{source.name}: there is no such file") from None
    except IsADirectoryError:
        raise TextError(f"{source.name} is a directory; name the text files in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TextError(f"{source.name} is a truncated or damaged gzip file; make it again") from None
    except OSError as error:
        raise TextError(f"{source.name} cannot be read: {error.strerror or error}") from None


def check_encoding(encoding: str) -> None:
    """Raise SettingsError when there is no text encoding of that name."""
    try:
        codecs.getincrementaldecoder(encoding)
        b" ".decode(encoding)
    except UnicodeDecodeError:
        pass  # a blank need not be a whole character in it
    except (LookupError, ValueError):
        message = f"there is no text encoding {encoding!r}; --encoding takes names such as utf-8, latin-1 or utf-16"
        raise SettingsError(message) from None


def plain_characters(text: str) -> str:
    """Put a blank for each control character: CR LF then ends a line just as LF does."""
    return _CONTROL.sub(" ", text)


def _pieces(source: Source, encoding: str) -> Iterator[tuple[str, int]]:
    """Yield the decoded text of a plain or gzip file piece by piece, each with the bytes of the file read so far.

    Control characters have become blanks; a byte-order mark at the start is dropped.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = fed = 0
    start = True
    with _reporting(source), source.path.open("rb") as raw:
        compressed = raw.peek(2)[:2] == _GZIP_MAGIC
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        more = True
        while more:
            block = stream.read(READ_BLOCK)
            fed += len(block)
            more = bool(block)
            try:
                text = decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                raise _undecodable(source, encoding, error, lines, fed) from None
            except UnicodeError as error:
                message = f"{error}; name the encoding of the text with --encoding"
                raise TextError(f"{source.name} cannot be read as {encoding.upper()}: {message}") from None
            if start and text:
                text = text.removeprefix(_BYTE_ORDER_MARK)
                start = False
            surrogate = _SURROGATE.search(text)
            if surrogate:
                line = lines + 1 + text.count("\n", 0, surrogate.start())
                message = f"half of a surrogate pair, U+{ord(surrogate.group()):04X}, which is no character"
                raise TextError(f"{source.name}, line {line}: {message}; name the encoding of the text with --encoding")
            if "\0" in text:
                raise _binary(source, lines + 1 + text.count("\n", 0, text.index("\0")))
            lines += text.count("\n")
            yield plain_characters(text), raw.tell()


def _undecodable(source: Source, encoding: str, error: UnicodeDecodeError, lines: int, fed: int) -> TextError:
    """Describe bytes that are not text; `lines` ended before the block, `fed` bytes were given with it."""
    line = lines + 1 + error.object[: error.start].decode(encoding, "ignore").count("\n")
    offset = fed - len(error.object) + error.start
    other = "latin-1" if codecs.lookup(encoding).name == "utf-8" else "utf-8"
    if offset < 2 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        other = "utf-16"
    return TextError(
        f"{source.name}, line {line}: byte 0x{error.object[error.start]:02X} at offset {offset} is not valid "
        f"{encoding.upper()}; name the encoding of the text, such as --encoding {other}"
    )


def _binary(source: Source, line: int) -> TextError:
    return TextError(
        f"{source.name}, line {line}: a NUL character, so this is no text in the encoding given; name the right one, "
        "such as --encoding utf-16, or another file"
    )


def _cut(buffer: str, lines: bool) -> int:
    """Return where the first chunk of a buffer of more than CHUNK_LIMIT characters ends; 0 if it has no end."""
    if lines:
        end = buffer.find("\n", CHUNK, CHUNK_LIMIT) + 1
    else:
        paragraph = _PARAGRAPH_END.search(buffer, CHUNK, CHUNK_LIMIT)
        end = paragraph.end() if paragraph else 0
    return end or buffer.rfind("\n", 0, CHUNK_LIMIT) + 1 or buffer.rfind(" ", 0, CHUNK_LIMIT) + 1
