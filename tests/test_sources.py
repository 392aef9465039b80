"""Sources of text: the rows of docs/formats.md about files and their bytes, and what chunks are."""

import contextlib
import encodings.aliases
import errno
import gzip
import io
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import PROSE
from rnnlm import sources
from rnnlm.errors import SettingsError, TextError
from rnnlm.sources import CONTROL_CHARACTERS, Source, plain_characters, printable, shown, spooled
from rnnlm.text import TextSettings, Tokenizer

PLAIN = Tokenizer(TextSettings(pretokenized=True))


def sentences(tokenizer, *texts):
    """Return all sentences of some sources."""
    return list(tokenizer.sentences(texts))


# Rows of docs/formats.md


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_byte_order_mark(write, encoding, monkeypatch):
    """A byte-order mark at the start of a file is dropped."""
    monkeypatch.setattr(sources, "READ_BLOCK", 2)
    tokenizer = Tokenizer(TextSettings(pretokenized=True, encoding=encoding))
    first = write("\ufeffone\n".encode(encoding), "first.txt")
    second = write("\ufefftwo \ufeffthree\n".encode(encoding), "second.txt")
    assert sentences(tokenizer, first, second) == [["one"], ["two", "\ufeffthree"]]


def test_invalid_utf8(write, raw):
    """A byte that is not valid in the encoding is an error that names file, line, byte and offset, and `--encoding`."""
    path = write("naïve\ncafé\n".encode("latin-1"))
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=r"corpus\.txt, line 1: byte 0xEF at offset 2 .*UTF-8.*--encoding latin-1"):
            sentences(tokenizer, path)
    latin = Tokenizer(TextSettings(pretokenized=True, encoding="latin-1"))
    assert sentences(latin, path) == [["naïve"], ["café"]]
    with pytest.raises(TextError, match=r"line 2: byte 0xC3 at offset 7 .*--encoding latin-1"):
        sentences(PLAIN, write(b"first\nx\xc3"))


def test_invalid_utf8_far_into_a_file(write, monkeypatch):
    """The line and offset are right wherever blocks are cut, also within a character."""
    good = "äöü ß\n" * 100
    content = good.encode() + b"ok \xff\n"
    for block in (1, 2, 3, 7, 64, 10_000):
        monkeypatch.setattr(sources, "READ_BLOCK", block)
        with pytest.raises(TextError, match=f"line 101: byte 0xFF at offset {len(content) - 2} "):
            sentences(PLAIN, write(content))


def test_nul(write, raw):
    """A NUL character is an error that names file and line: the file is no text in this encoding."""
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=r"corpus\.txt, line 2: a NUL .*--encoding utf-16"):
            sentences(tokenizer, write("one\ntwo\0\n"))
        with pytest.raises(TextError, match="NUL"):
            sentences(tokenizer, write("one\n".encode("utf-16-le")))


def test_gzip(write, raw):
    """A gzip file is read as what it holds; a truncated or damaged one is an error that names it."""
    packed = gzip.compress(PROSE.encode())
    plain = write(PROSE, "plain.gz")  # the name does not matter
    for tokenizer in (PLAIN, raw):
        assert sentences(tokenizer, write(packed)) == sentences(tokenizer, plain)
        assert sentences(tokenizer, write(packed + packed)) == sentences(tokenizer, write(PROSE + PROSE))
    header, body = packed[:10], packed[10:]
    for damaged in (
        packed[:-1],
        packed[:-9],
        packed[:5],
        header + b"\xff" + body[1:],
        packed[:-6] + b"\0" + packed[-5:],
    ):
        with pytest.raises(TextError, match=r"corpus\.txt is a truncated or damaged gzip file"):
            sentences(PLAIN, write(damaged))


def test_standard_input(monkeypatch, write, raw):
    """`-` is standard input, copied to a temporary file so that it can be read more than once."""
    for content in (PROSE.encode(), gzip.compress(PROSE.encode())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        with spooled([write(PROSE).path, "-"]) as paths:
            assert Tokenizer.learn(paths[1:], TextSettings()) == Tokenizer.learn(paths[:1], TextSettings())
            assert sentences(raw, paths[1]) == sentences(raw, paths[0])
            kept = paths[1].path
        assert not kept.exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n<s>\n")))
    with spooled(["-"]) as paths, pytest.raises(TextError, match="standard input, line 2"):
        sentences(PLAIN, *paths)
    with pytest.raises(TextError, match="only once"), spooled(["-", "-"]):
        pass


def test_unreadable_files(tmp_path, write, monkeypatch):
    """A file that is missing, a directory or not to be read is an error that names it."""
    for read in (lambda source: sentences(PLAIN, source), Source.digest):
        with pytest.raises(TextError, match=r"none\.txt: there is no such file"):
            read(Source.of(tmp_path / "none.txt"))
        with pytest.raises(TextError, match="is a directory"):
            read(Source.of(tmp_path))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = write("one\n")
    monkeypatch.setattr(Path, "open", refuse)  # removing permissions would not stop the superuser
    with pytest.raises(TextError, match=r"corpus\.txt cannot be read \(permission denied\); allow yourself to read it"):
        sentences(PLAIN, path)
    with pytest.raises(TextError, match="there is no such file"), spooled([tmp_path / "none.txt"]):
        pass


NO_ENCODINGS = [
    *("no-such-thing", "", " ", "a\0b", "\udcff", "../utf-8", "x" * 100_000, None, 5, b"utf-8"),
    *("idna", "punycode", "rot13", "hex", "base64", "zlib", "undefined", "raw_unicode_escape", "unicode_escape"),
]


@pytest.mark.parametrize("encoding", NO_ENCODINGS)
def test_unknown_encoding(write, encoding):
    """An encoding that does not exist, or is none of text, is an error that names it and some that do."""
    message = "there is no text encoding .*latin-1" if isinstance(encoding, str) and "\0" not in encoding else "text"
    with pytest.raises(SettingsError, match=message) as caught:
        Tokenizer.learn([write("one")], TextSettings(pretokenized=True, encoding=encoding))
    assert len(str(caught.value)) < 700
    with pytest.raises(SettingsError, match=message):
        sentences(Tokenizer(TextSettings(pretokenized=True, encoding=encoding)), write("one"))


ODD_BYTES = [
    b"hello \xff\xfe\0\n",
    "\ufeffh\u00e9 \U0001f600".encode("utf-16"),
    b"\x1b$B\x0e \xff ~{ab~} +2AA- \\d \\ud800 xn--a-.com",
    bytes(range(1, 256)),
    b"\0\0\xd8\0",
]


@pytest.mark.parametrize("content", ODD_BYTES)
def test_every_encoding(write, content):
    """Whatever encoding Python knows, a text is read or refused in one sentence."""
    names = {module.name for module in pkgutil.iter_modules(encodings.__path__)} | set(encodings.aliases.aliases)
    source = write(content)
    for name in names:
        with contextlib.suppress(SettingsError, TextError):
            sentences(Tokenizer(TextSettings(pretokenized=True, encoding=name)), source)


@pytest.mark.parametrize("name", ["utf-8", "latin-1", "cp1252", "ascii", "utf_8_sig", "big5", "koi8-r", "utf-7", "hz"])
def test_plain_text_is_the_same_in_many_encodings(write, name):
    """What ASCII has is read alike wherever an encoding keeps it."""
    tokenizer = Tokenizer(TextSettings(pretokenized=True, encoding=name))
    assert sentences(tokenizer, write(b"the cat\nsat\n")) == [["the", "cat"], ["sat"]]


def test_utf16_without_mark(write):
    """Text that an encoding cannot even begin to read is an error too."""
    tokenizer = Tokenizer(TextSettings(pretokenized=True, encoding="utf-16"))
    with pytest.raises(TextError, match=r"corpus\.txt.*UTF-16.*--encoding"):
        sentences(tokenizer, write("one two\n"))


def test_control_characters(write, raw):
    """Control characters count as blanks, those of U+0080 to U+009F included."""
    content = "one\x01two\x1fthree\x7ffour\x9ffive\x1b six\n"
    for tokenizer in (PLAIN, raw):
        assert sentences(tokenizer, write(content)) == [["one", "two", "three", "four", "five", "six"]]


def test_gigantic_word(write, monkeypatch, raw):
    """A word of more than two million characters is an error that names file and line: the file is no text."""
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=r"corpus\.txt, line 2: a word of more than 2,097,152 characters"):
            sentences(tokenizer, write("one\n" + "x" * (sources.CHUNK_LIMIT + 1)))


# Chunks, names and characters


def test_progress_adds_up(write, monkeypatch, raw):
    """What progress is told adds up to the total, also for gzip, whose bytes are counted as they lie on disk."""
    monkeypatch.setattr(sources, "CHUNK", 1000)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 2000)
    monkeypatch.setattr(sources, "READ_BLOCK", 512)
    paths = [write(PROSE * 20), write(gzip.compress((PROSE * 20).encode()), "packed")]
    for work in (
        lambda told: list(raw.blocks(paths, progress=told)),
        lambda told: [path.digest(told) for path in paths],
    ):
        told = []
        work(told.append)
        assert sum(told) == sum(path.size for path in paths) == sum(path.path.stat().st_size for path in paths)
        assert len(told) > 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_spooled(tmp_path):
    """A pipe, such as a shell's process substitution, is kept like standard input."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"echo one two > '{pipe}'"]), spooled([pipe]) as paths:
        assert paths[0].name == str(pipe)
        for _ in range(2):
            assert [chunk.text for chunk in paths[0].chunks("utf-8")] == ["one two\n"]


def test_sources_compare_by_value(tmp_path):
    """A source is a name and a path."""
    assert Source("a", tmp_path) == Source("a", tmp_path)


def test_a_source_is_measured_once(tmp_path, monkeypatch):
    """The size of a source is asked of the system once, however often it is wanted."""
    path = tmp_path / "text"
    path.write_text("one two")
    source = Source.of(path)
    assert source.size == 7
    path.write_text("one two three")
    assert source.size == 7


@pytest.mark.parametrize(("lines", "expected"), [(True, "a b\n" * 3), (False, "a b\n" * 4 + "\n")])
def test_chunks_end_with_lines_or_paragraphs(tmp_path, monkeypatch, lines, expected):
    """A chunk ends at the first end of a line, or of a paragraph, after so many characters."""
    monkeypatch.setattr(sources, "CHUNK", 9)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 20)
    path = tmp_path / "text"
    path.write_text(("a b\n" * 4 + "\n") * 3)
    chunks = list(Source.of(path).chunks("utf-8", lines))
    assert chunks[0].text == expected
    assert "".join(chunk.text for chunk in chunks) == path.read_text()
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum(chunk.read for chunk in chunks) == path.stat().st_size


def test_plain_characters():
    """Control characters become blanks; line feeds stay."""
    assert plain_characters("a\r\nb\tc\x85d\ufdd0") == "a \nb c d "
    assert plain_characters("\0\U0001ffff") == "\0 "


def test_impossible_paths(write, tmp_path):
    """A path that no file can have, or that leads to none, is one sentence with a remedy."""
    file = write("one\n").path
    (tmp_path / "loop").symlink_to("loop")
    for path, message in [
        ("", "an empty path: no file can have this path; check it"),
        ("a\0b", r"a\\x00b: no file can have this path; check it"),
        ("\ud800", r"\\ud800: no file can have this path; check it"),
        (file / "below", "its path leads through another file; check its path"),
        (tmp_path / ("x" * 300), r"file name too long\); give the file a shorter path"),
        (tmp_path / "loop", "name the file that its links should lead to"),
        (tmp_path, "is a directory; name the text files in it"),
        (tmp_path / "none", "there is no such file; check its path"),
    ]:
        with pytest.raises(TextError, match=message), spooled([path]):
            pass
        with pytest.raises(TextError, match=message):
            Source.of(path).digest()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs the devices of Unix")
def test_devices_and_sockets(tmp_path, monkeypatch):
    """What is neither a file nor a pipe is refused, and not read without end."""
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket")
        for path, kind in (("/dev/zero", "a device"), ("socket", "a socket")):
            message = f"{path} is {kind}, not a text; name a file"
            with pytest.raises(TextError, match=message), spooled([path]):
                pass
            with pytest.raises(TextError, match=message):
                sentences(PLAIN, Source.of(path))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_read_errors():
    """An error while a file is read is one sentence with what the system says and a remedy."""
    for read in (lambda source: sentences(PLAIN, source), Source.digest):
        with pytest.raises(TextError, match=r"/proc/self/mem cannot be read \(input/output error\); copy the file"):
            read(Source.of("/proc/self/mem"))


class Broken(io.RawIOBase):
    """A stream that gives some bytes, and then what `end` does."""

    def __init__(self, end):
        self.answers = iter([lambda size: b"one", end])

    def read(self, size=-1):
        """Answer in turn."""
        return next(self.answers)(size)


def stop(size):
    """Fail like a disk."""
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (stop, r"standard input cannot be read \(input/output error\)"),
        (lambda size: None, "unavailable.*; save the text"),
    ],
)
def test_broken_standard_input(monkeypatch, end, message):
    """Standard input that fails, or that does not wait for its text, is not taken to be at its end."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Broken(end)))
    with pytest.raises(TextError, match=message), spooled(["-"]):
        pass


def test_closed_standard_input(monkeypatch):
    """A process that was started without standard input says so."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(TextError, match="standard input is closed; name a file"), spooled(["-"]):
        pass


def test_no_room_for_a_copy(monkeypatch, tmp_path):
    """A temporary folder that is missing or full is one sentence that names TMPDIR."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one")))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        message = r"standard input cannot be copied to a temporary file \(no space left on device\); make room.*TMPDIR"
        with pytest.raises(TextError, match=message), spooled(["-"]):
            pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(TextError, match=r"\(no such file or directory\).*TMPDIR"), spooled(["-"]):
        pass


def test_hostile_names(tmp_path):
    """A name cannot act on the terminal through a message, nor fill it."""
    hostile = tmp_path / "a\x1b[2J\nb\u202ec\udcff.txt"
    with pytest.raises(TextError) as caught:
        Source.of(hostile).digest()
    assert r"a\x1b[2J\nb\u202ec\udcff.txt: there is no such file" in str(caught.value)
    assert shown("naïve 文 \\.txt") == "naïve 文 \\.txt"
    assert len(shown("x" * 100_000)) < 510
    path = tmp_path / "text"
    path.write_bytes(b"\xff\xff\xff")
    for encoding in ("utf\x1b8", "utf\n16"):  # Python takes either for an encoding's name
        with pytest.raises(TextError, match=r"UTF(\\x1b8|\\n16)") as caught:
            sentences(Tokenizer(TextSettings(pretokenized=True, encoding=encoding)), Source.of(path))
        assert printable(str(caught.value)) == str(caught.value)


def test_hidden_characters():
    """Controls, noncharacters, surrogates and controls of writing direction are found, and other characters are not."""
    controls = [*map(chr, range(32)), "\x7f", "\x80", "\x9f", "\ufdd0", "\ufdef", "\uffff", "\U0001fffe", "\U0010ffff"]
    directions = ["\u061c", "\u200e", "\u200f", "\u202a", "\u202e", "\u2066", "\u2069"]
    assert all(CONTROL_CHARACTERS.fullmatch(character) for character in controls)
    assert not any(CONTROL_CHARACTERS.search(character) for character in directions)
    assert printable("".join([*controls, *directions, "\udcff"])) == "\ufffd" * (len(controls) + len(directions) + 1)
    harmless = " aé文\u00a0\u00ad\u200d\ufeff\U0001f600"
    assert printable(harmless) == harmless
