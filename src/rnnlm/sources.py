"""Sources of text: files, gzip files, pipes and standard input, read as bytes, decoded strictly and cut into chunks.

Where chunks are cut depends on the text alone, so that nothing depends on how many processes work on them, and memory
never grows with the text. Nothing here knows what a word is.
"""

import codecs
import contextlib
import errno
import gzip
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rnnlm.errors import SettingsError, TextError

STANDARD_INPUT = "-"  # the path that stands for standard input

CHUNK = 2**20  # characters after which a chunk ends at the next paragraph or line
CHUNK_LIMIT = 2**21  # a chunk has no more characters than this, whatever the text looks like
READ_BLOCK = 2**20  # bytes read at once
LINE_LIMIT = 2**20  # bytes of a line of what is read by lines
LINES_AT_ONCE = 10_000  # of them, at most
LINES_BLOCK = 2**18  # bytes read at once, where lines are answered as they come

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
_NAME_LIMIT = 500  # characters of a name that a message has room for

# The codes that Unicode sets aside as no characters at all: 32 in the first plane, and the last two of each of the 17.
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the order in which others are seen
SURROGATE = re.compile("[\ud800-\udfff]")
"""Finds halves of surrogate pairs, which no text has."""

# Control characters, but neither NUL (an error) nor line feed (it ends a line), and noncharacters: those of the first
# plane, and those of the others, of which few texts have a character. One class of all planes takes ten times as long.
_BLANKED = re.compile("[\x01-\x09\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_BLANKED_BEYOND = re.compile(f"[{_NONCHARACTERS}]")
_BEYOND = re.compile("[\U00010000-\U0010ffff]")

CONTROL_CHARACTERS = re.compile(f"[\0-\x1f\x7f-\x9f{_NONCHARACTERS}]")
"""Finds what no word has: control characters, the line feed among them, and noncharacters."""

HIDDEN_CHARACTERS = re.compile(f"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_DIRECTIONS}{_NONCHARACTERS}]")
"""Finds what must not reach a terminal: the same, halves of surrogate pairs, ends of lines, and
controls of writing direction."""

_NO_ENCODINGS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}  # Python's notations
_REMEDIES = {
    errno.ENAMETOOLONG: "give the file a shorter path",
    errno.ELOOP: "name the file that its links should lead to",
    errno.EMFILE: "allow more open files, as with ulimit -n",
    errno.EAGAIN: "save the text to a file, and name the file",
}

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
        """Return the source of a plain or gzip file; `spooled` takes standard input and pipes as well.

        Raises TextError when no file can have this path.
        """
        name = os.fspath(path)
        try:
            possible = bool(name) and "\0" not in name and bool(os.fsencode(name))
        except UnicodeEncodeError:
            possible = False
        if not possible:
            raise TextError(f"{shown(name) or 'an empty path'}: no file can have this path; check it")
        return cls(shown(name), Path(name))

    @cached_property
    def size(self) -> int:
        """The file's bytes, what `progress` will have been told in all."""
        with _reporting(self.name):
            return self.path.stat().st_size

    def stamp(self) -> tuple[int, int]:
        """Return the file's bytes and when it was changed, in nanoseconds."""
        with _reporting(self.name):
            found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def digest(self, progress: Progress | None = None) -> str:
        """Return the SHA-256 of the file's bytes, in hexadecimal."""
        import hashlib  # which brings along OpenSSL

        digest = hashlib.sha256()
        with _reporting(self.name), _opened(self) as stream:
            while block := stream.read(READ_BLOCK):
                digest.update(block)
                if progress:
                    progress(len(block))
        return digest.hexdigest()

    def rows(self, encoding: str | None = None, progress: Progress | None = None) -> Generator[tuple[int, str]]:
        """Yield the lines of a plain or gzip file, each with its number, from 1, and without what ends it.

        None is UTF-8, where nobody can say another encoding. Raises TextError, with the line, where the bytes are not
        text in this encoding, or a line has more than LINE_LIMIT characters.
        """
        with _reporting(self.name), _opened(self) as raw:
            number, rest, told = 1, "", 0
            for text in _decoded(self.name, raw, encoding):
                if progress:
                    progress(raw.tell() - told)
                    told = raw.tell()
                *lines, rest = (rest + text).split("\n")
                too_long = [at for at, line in enumerate((*lines, rest), number) if len(line) > LINE_LIMIT]
                if too_long:
                    message = f"the line has more than {LINE_LIMIT:,} characters; name a file of shorter lines"
                    raise TextError(f"{self.name}, line {too_long[0]}: {message}")
                for line in lines:
                    yield number, line.rstrip("\r")
                    number += 1
            if rest:
                yield number, rest.rstrip("\r")

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
        return _copied("standard input", _standard_input(), stack)
    source = Source.of(path)
    with _reporting(source.name), _opened(source) as stream:
        return source if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else _copied(source.name, stream, stack)


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise TextError("standard input is closed; name a file, or give the text through a pipe")
    return sys.stdin.buffer


class Lines(NamedTuple):
    """Whole lines of a text, as many as could be read at once; control characters have become blanks."""

    name: str  # of the text
    first: int  # number of the first line
    lines: list[str]  # without their line feeds


def arriving(path: "str | os.PathLike[str]", encoding: str) -> Iterator[Lines]:
    """Yield the lines of a plain or gzip file, a pipe or standard input (`-`) as soon as they can be read.

    So who writes a line to a pipe and waits is answered. The last line counts without its line feed, too. Raises
    TextError where the text cannot be read, or a line has more than CHUNK_LIMIT characters.
    """
    check_encoding(encoding)
    with contextlib.ExitStack() as stack:
        if path == STANDARD_INPUT:
            name, stream = "standard input", _standard_input()
        else:
            source = Source.of(path)
            name = source.name
            stack.enter_context(_reporting(name))
            stream = stack.enter_context(_opened(source))
        stack.enter_context(_reporting(name))
        number, rest = 1, ""
        for text in _decoded(name, stream, encoding, waiting=not _is_whole(stream)):
            *lines, rest = (rest + plain_characters(text)).split("\n")
            too_long = [at for at, line in enumerate((*lines, rest), number) if len(line) > CHUNK_LIMIT]
            if too_long:
                message = f"a line of more than {CHUNK_LIMIT:,} characters; put one sentence on each line"
                raise TextError(f"{name}, line {too_long[0]}: {message}")
            for start in range(0, len(lines), LINES_AT_ONCE):
                some = lines[start : start + LINES_AT_ONCE]
                yield Lines(name, number, some)
                number += len(some)
        if rest:
            yield Lines(name, number, [rest])


def _opened(source: Source) -> BufferedReader:
    """Open a file or pipe to read its bytes; anything else is refused before it is opened, which it might notice."""
    mode = source.path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise TextError(f"{source.name} is {kind}, not a text; name a file, or give the text through a pipe")
    return source.path.open("rb")


def _copied(name: str, stream: BinaryIO, stack: contextlib.ExitStack) -> Source:
    """Copy what can be read only once to a temporary file that lives as long as `stack`."""
    import tempfile

    try:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnlm-", ignore_cleanup_errors=True))
        path = Path(folder, "text")
        with path.open("wb") as copy:
            for block in _blocks(name, stream):
                copy.write(block)
    except OSError as error:
        remedy = "make room there, or name another folder in the environment variable TMPDIR"
        raise TextError(f"{name} cannot be copied to a temporary file ({_reason(error)}); {remedy}") from None
    return Source(name, path)


def _blocks(name: str, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of a stream until it ends."""
    while True:
        with _reporting(name):
            block = stream.read(READ_BLOCK)
            if block is None:  # nothing yet, from a stream that does not wait: this is not its end
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not block:
            return
        yield block


@contextlib.contextmanager
def _reporting(name: str) -> Iterator[None]:
    """Turn what the system says about a file into a sentence with the file and a remedy."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TextError(f"{name} is a truncated or damaged gzip file; make it again") from None
    except IsADirectoryError:
        raise TextError(f"{name} is a directory; name the text files in it") from None
    except FileNotFoundError:
        raise TextError(f"{name}: there is no such file; check its path") from None
    except NotADirectoryError:
        message = "there is no such file, since its path leads through another file; check its path"
        raise TextError(f"{name}: {message}") from None
    except PermissionError as error:
        message = f"cannot be read ({_reason(error)}); allow yourself to read it, as with chmod, or copy it"
        raise TextError(f"{name} {message}") from None
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "copy the file to another disk, and name the copy")
        raise TextError(f"{name} cannot be read ({_reason(error)}); {remedy}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def shown(name: str) -> str:
    """Return a name as a message may hold it: what would act on a terminal is escaped, a very long one cut short."""
    if len(name) > _NAME_LIMIT:
        name = f"{name[: _NAME_LIMIT // 2]}...{name[-_NAME_LIMIT // 2 :]}"
    return HIDDEN_CHARACTERS.sub(lambda found: repr(found.group())[1:-1], name)


def printable(text: str) -> str:
    """Return a text with U+FFFD for each character that `HIDDEN_CHARACTERS` finds, so that a terminal shows it all."""
    return HIDDEN_CHARACTERS.sub("\ufffd", text)


def check_encoding(encoding: str) -> None:
    """Raise SettingsError when there is no text encoding of that name that can be read piece by piece."""
    try:
        codecs.getincrementaldecoder(encoding)
        b" ".decode(encoding)
        known = codecs.lookup(encoding).name not in _NO_ENCODINGS
    except UnicodeDecodeError:
        known = True  # a blank need not be a whole character in it
    except (LookupError, TypeError, ValueError, OSError):
        known = False
    if not known:
        message = f"there is no text encoding {shown(repr(encoding))}; --encoding takes names such as utf-8, latin-1"
        raise SettingsError(f"{message} or utf-16")


def plain_characters(text: str) -> str:
    """Put a blank for each control character: CR LF then ends a line just as LF does."""
    if text.isascii() and text.replace("\n", "").isprintable():  # a tenth of the time
        return text
    text = _BLANKED.sub(" ", text)
    return _BLANKED_BEYOND.sub(" ", text) if _BEYOND.search(text) else text


def plain_lines(lines: Sequence[str]) -> Lines:
    """Return lines that a program gives, as if they had been read; raises TextError for what is no character."""
    plain = []
    for number, line in enumerate(lines, 1):
        text = plain_characters(line.removesuffix("\n")).replace("\n", " ")
        _refuse_what_is_no_text("the text", "utf-8", text, number - 1)
        plain.append(text)
    return Lines("the text", 1, plain)


def half_pair(surrogate: re.Match[str]) -> str:
    """Return what `SURROGATE` has found as part of a sentence."""
    return f"half of a surrogate pair, U+{ord(surrogate.group()):04X}, which is no character"


def _pieces(source: Source, encoding: str) -> Iterator[tuple[str, int]]:
    """Yield the decoded text of a plain or gzip file piece by piece, each with the bytes of the file read so far."""
    with _reporting(source.name), _opened(source) as raw:
        for text in _decoded(source.name, raw, encoding):
            yield plain_characters(text), raw.tell()


def _decoded(name: str, raw: Any, encoding: str | None, waiting: bool = False) -> Iterator[str]:
    """Yield the text of a stream piece by piece: its bytes, or what they hold if they are a gzip file.

    A byte-order mark at the start is dropped. None is UTF-8, where no other encoding can be named. `waiting` is for who
    waits for an answer to each line: a piece is what there is, and no more is waited for.
    """
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
    lines = fed = 0
    start = more = True
    stream = _unpacked(raw)
    while more:
        block = stream.read1(LINES_BLOCK) if waiting else stream.read(READ_BLOCK)
        if block is None:  # nothing yet, from a stream that does not wait: this is not its end
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        fed += len(block)
        more = bool(block)
        try:
            text = decoder.decode(block, final=not more)
        except UnicodeDecodeError as error:
            raise _undecodable(name, encoding, error, lines, fed) from None
        except UnicodeError as error:
            message = f"{error}; name the encoding of the text with --encoding"
            raise TextError(f"{name} cannot be read as {shown(str(encoding).upper())}: {message}") from None
        if start and text:
            text = text.removeprefix(_BYTE_ORDER_MARK)
            start = False
        _refuse_what_is_no_text(name, encoding, text, lines)
        lines += text.count("\n")
        yield text


def _is_whole(stream: Any) -> bool:
    """Say whether a stream is a plain file, of which nothing is still to come."""
    with contextlib.suppress(OSError, AttributeError):
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    return False


def _unpacked(raw: Any) -> Any:
    """Return a stream, or what it holds if it is a gzip file."""
    if not hasattr(raw, "peek"):  # a program's own standard input
        return raw
    mark = raw.peek(2)[:2]
    if mark == _GZIP_MAGIC[:1]:  # a pipe has brought one byte so far, and no text begins with that
        raw = BufferedReader(_Rejoined(raw.read(1), raw))
        mark = raw.peek(2)[:2]
    return gzip.GzipFile(fileobj=raw) if mark == _GZIP_MAGIC else raw


class _Rejoined(RawIOBase):
    """A stream with its first bytes, which have been read, before it."""

    def __init__(self, first: bytes, rest: BufferedReader) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the first bytes and one more, or then with what there is."""
        block = self._first + self._rest.read(1) if self._first else self._rest.read1(len(buffer))
        self._first = b""
        buffer[: len(block)] = block
        return len(block)


def _refuse_what_is_no_text(name: str, encoding: str | None, text: str, lines: int) -> None:
    """Raise TextError for halves of surrogate pairs and NUL; `lines` ended before this piece."""
    surrogate = None if text.isascii() else SURROGATE.search(text)
    if surrogate:
        line = lines + 1 + text.count("\n", 0, surrogate.start())
        message = f"{half_pair(surrogate)}; name the encoding of the text with --encoding"
        raise TextError(f"{name}, line {line}: {message}")
    if "\0" in text:
        raise _binary(name, encoding, lines + 1 + text.count("\n", 0, text.index("\0")))


def _undecodable(name: str, encoding: str | None, error: UnicodeDecodeError, lines: int, fed: int) -> TextError:
    """Describe bytes that are not text; `lines` ended before the block, `fed` bytes were given with it."""
    code = encoding or "utf-8"
    line = lines + 1 + error.object[: error.start].decode(code, "ignore").count("\n")
    offset = fed - len(error.object) + error.start
    what = f"byte 0x{error.object[error.start]:02X} at offset {offset} is not valid {shown(code.upper())}"
    other = "latin-1" if codecs.lookup(code).name == "utf-8" else "utf-8"
    if offset < 2 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        other = "utf-16"
    remedy = f"name the encoding of the text, such as --encoding {other}"
    if encoding is None:
        remedy = "convert the file, as with iconv -t utf-8"
    return TextError(f"{name}, line {line}: {what}; {remedy}")


def _binary(name: str, encoding: str | None, line: int) -> TextError:
    what = f"{name}, line {line}: a NUL character, so this is no text"
    if encoding is None:
        return TextError(f"{what}; name another file")
    other = "utf-8" if codecs.lookup(encoding).name.startswith("utf-16") else "utf-16"
    return TextError(f"{what} in the encoding given; name the right one, such as --encoding {other}, or another file")


def _cut(buffer: str, lines: bool) -> int:
    """Return where the first chunk of a buffer of more than CHUNK_LIMIT characters ends; 0 if it has no end."""
    if lines:
        end = buffer.find("\n", CHUNK, CHUNK_LIMIT) + 1
    else:
        paragraph = _PARAGRAPH_END.search(buffer, CHUNK, CHUNK_LIMIT)
        end = paragraph.end() if paragraph else 0
    return end or buffer.rfind("\n", 0, CHUNK_LIMIT) + 1 or buffer.rfind(" ", 0, CHUNK_LIMIT) + 1
