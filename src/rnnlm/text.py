"""Texts to sentences of words, and words back to readable text; the only file that knows NLTK.

A text is read as bytes, decoded strictly, and cut into chunks by a rule that looks at the text alone. Each
chunk is tokenized by itself, here or in another process, into its *plain form*: one sentence a line, words
separated by single blanks. So the words never depend on the number of processes, and memory never grows with
the corpus. Sentence ends are found by Punkt, whose parameters are learned on the training corpus and stored
with the model; words by NLTK's word tokenizer. A pretokenized text needs neither, and then NLTK is not loaded.
"""

import codecs
import contextlib
import gzip
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

from rnnlm.errors import ModelError, SettingsError, TextError

STANDARD_INPUT = "-"  # the path that stands for standard input
UNKNOWN = "<unk>"  # the unknown word, also where a text has it literally

CHUNK = 2**20  # characters after which a chunk ends at the next paragraph (raw) or line (pretokenized)
CHUNK_LIMIT = 2**21  # a chunk has no more characters than this, whatever the text looks like
SENTENCE_LIMIT = 2**16  # a sentence of more characters is cut at blanks: no sentence is that long
LEARNING_LIMIT = 2**22  # Punkt learns from about the first 4 million characters: 8 seconds, and plenty
PROCESSES_PAY = 2_000_000  # bytes of text below which starting processes costs more than it saves
READ_BLOCK = 2**20  # bytes read at once

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
# Everything that is not text: control characters, but neither NUL (an error) nor line feed (it ends a line), and
# the codes that Unicode sets aside as no characters at all, one of which stands in for <unk> below.
_CONTROL = re.compile("[\x01-\x09\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STAND_IN = "\ufdd0"  # <unk> while NLTK, which would cut it into three, looks at the sentence
_PARAGRAPH_END = re.compile(r"\n *\n")
_BLANK_LINES = re.compile(r"\n\s*\n")

Progress = Callable[[int], None]  # told the number of bytes read since its last call


@dataclass(frozen=True)
class TextSettings:
    """How a text becomes words.

    Arguments:
        pretokenized: one sentence a line, words separated by blanks; nothing is left to find.
        lowercase: fold every word to lower case.
        encoding: the text's encoding, by its Python name.
    """

    pretokenized: bool = False
    lowercase: bool = False
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Source:
    """A file that can be read more than once, and the name by which messages call it."""

    name: str
    path: Path


Paths = Sequence["str | os.PathLike[str] | Source"]


@dataclass(frozen=True)
class _Chunk:
    """A stretch of a text: whole paragraphs or lines, unless one alone is too long."""

    source: Source
    line: int  # number of its first line
    text: str
    read: int  # bytes of the file that this chunk took
    last: bool  # nothing of its source follows


# Reading


@contextlib.contextmanager
def spooled(paths: Paths) -> Iterator[list[Source]]:
    """Make every path readable more than once, as learning, tokenizing and checking the cache need.

    `-` (standard input), pipes and other things that are no plain files are copied to temporary files, which are
    removed at the end.
    """
    if sum(path == STANDARD_INPUT for path in paths) > 1:
        raise TextError("standard input can be read only once; give '-' once")
    with contextlib.ExitStack() as stack:
        yield [_spool(path, stack) for path in paths]


def _spool(path: "str | os.PathLike[str] | Source", stack: contextlib.ExitStack) -> Source:
    if path == STANDARD_INPUT:
        return _copied("standard input", sys.stdin.buffer, stack)
    source = _source(path)
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


def _source(path: "str | os.PathLike[str] | Source") -> Source:
    if isinstance(path, Source):
        return path
    if path == STANDARD_INPUT:
        raise ValueError("standard input can be read only once: pass the paths through spooled() first")
    return Source(os.fspath(path), Path(path))


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


def total_bytes(paths: Paths) -> int | None:
    """Return the size of all files together, what `progress` will have been told in all; None with standard input."""
    if any(path == STANDARD_INPUT for path in paths):
        return None
    total = 0
    for source in map(_source, paths):
        with _reporting(source):
            total += source.path.stat().st_size
    return total


def digests(paths: Paths, progress: Progress | None = None) -> list[str]:
    """Return the SHA-256 of each file's bytes, in hexadecimal; raises TextError when one cannot be read."""
    found = []
    for source in map(_source, paths):
        digest = hashlib.sha256()
        with _reporting(source), source.path.open("rb") as stream:
            while block := stream.read(READ_BLOCK):
                digest.update(block)
                if progress:
                    progress(len(block))
        found.append(digest.hexdigest())
    return found


def _check_encoding(encoding: str) -> None:
    try:
        codecs.getincrementaldecoder(encoding)
        b" ".decode(encoding)
    except UnicodeDecodeError:
        pass  # a blank need not be a whole character in it
    except (LookupError, ValueError):
        message = f"there is no text encoding {encoding!r}; --encoding takes names such as utf-8, latin-1 or utf-16"
        raise SettingsError(message) from None


def _pieces(source: Source, encoding: str) -> Iterator[tuple[str, int]]:
    """Yield the decoded text of a plain or gzip file piece by piece, each with the bytes of the file read so far.

    Control characters have become blanks, so CR LF ends a line just as LF does; a byte-order mark at the start is
    dropped.
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
            yield _CONTROL.sub(" ", text), raw.tell()


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


def _chunks(source: Source, settings: TextSettings) -> Iterator[_Chunk]:
    """Cut a text into chunks; where the cuts fall depends on the text alone."""
    buffer = ""
    line, position, read = 1, 0, 0
    for text, position in _pieces(source, settings.encoding):
        buffer += text
        while len(buffer) > CHUNK_LIMIT:
            cut = _cut(buffer, settings.pretokenized)
            if not cut:
                message = f"a word of more than {CHUNK_LIMIT:,} characters, so this is no text; name another file"
                raise TextError(f"{source.name}, line {line}: {message}")
            yield _Chunk(source, line, buffer[:cut], position - read, last=False)
            line += buffer.count("\n", 0, cut)
            read = position
            buffer = buffer[cut:]
    yield _Chunk(source, line, buffer, position - read, last=True)


def _cut(buffer: str, pretokenized: bool) -> int:
    """Return where the first chunk of a buffer of more than CHUNK_LIMIT characters ends; 0 if it has no end."""
    if pretokenized:
        end = buffer.find("\n", CHUNK, CHUNK_LIMIT) + 1
    else:
        paragraph = _PARAGRAPH_END.search(buffer, CHUNK, CHUNK_LIMIT)
        end = paragraph.end() if paragraph else 0
    return end or buffer.rfind("\n", 0, CHUNK_LIMIT) + 1 or buffer.rfind(" ", 0, CHUNK_LIMIT) + 1


def _short(sentence: str) -> Iterator[str]:
    """Yield the sentence, or its parts where it has more than SENTENCE_LIMIT characters, cut at blanks."""
    while len(sentence) > SENTENCE_LIMIT:
        cut = sentence.rfind(" ", 0, SENTENCE_LIMIT) + 1 or sentence.find(" ", SENTENCE_LIMIT) + 1
        if not cut:
            break
        yield sentence[:cut]
        sentence = sentence[cut:]
    yield sentence


# Tokenizing


@dataclass(frozen=True)
class PunktParameters:
    """What Punkt has learned of a corpus, in plain values.

    Arguments:
        abbreviations: words that end in a period without ending a sentence.
        collocations: pairs of words that a period between them does not part.
        sentence_starters: words that often begin a sentence.
        orthography: for each word a sum of flags: where it was seen capitalized, and where not.
    """

    abbreviations: tuple[str, ...]
    collocations: tuple[tuple[str, str], ...]
    sentence_starters: tuple[str, ...]
    orthography: dict[str, int]


@dataclass(frozen=True)
class Tokenizer:
    """Text settings, and the sentence parameters learned under them (None for pretokenized text).

    Equal tokenizers cut any text alike; `to_json` and `from_json` carry that over files and machines.
    """

    settings: TextSettings = field(default_factory=lambda: TextSettings(pretokenized=True))
    punkt: PunktParameters | None = None

    @classmethod
    def learn(cls, paths: Paths, settings: TextSettings, progress: Progress | None = None) -> "Tokenizer":
        """Learn where sentences end from the first LEARNING_LIMIT characters or so of a corpus.

        Pretokenized text teaches nothing and is not read. `progress` is told of the bytes read. Raises TextError
        when the text cannot be read, SettingsError when its encoding does not exist.
        """
        _check_encoding(settings.encoding)
        if settings.pretokenized:
            return cls(settings)
        return cls(settings, _learn_punkt(_leading_chunks([_source(path) for path in paths], settings, progress)))

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer as a value that JSON can hold."""
        punkt = None
        if self.punkt:
            punkt = {
                "abbreviations": list(self.punkt.abbreviations),
                "collocations": [list(pair) for pair in self.punkt.collocations],
                "sentence_starters": list(self.punkt.sentence_starters),
                "orthography": self.punkt.orthography,
            }
        return {"settings": asdict(self.settings), "punkt": punkt}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Tokenizer":
        """Restore a tokenizer from what `to_json` gave; raises ModelError when the value is something else."""
        try:
            settings, punkt = TextSettings(**value["settings"]), value["punkt"]
            if settings.pretokenized:
                return cls(settings)
            collocations = tuple((first, second) for first, second in punkt["collocations"])
            abbreviations, starters = tuple(punkt["abbreviations"]), tuple(punkt["sentence_starters"])
            return cls(settings, PunktParameters(abbreviations, collocations, starters, dict(punkt["orthography"])))
        except (KeyError, TypeError, ValueError):
            message = "the model does not say how its text was tokenized; its file is damaged, train it again"
            raise ModelError(message) from None

    def blocks(self, paths: Paths, processes: int = 1, progress: Progress | None = None) -> Generator[str]:
        r"""Yield a corpus in its plain form, about a million characters at a time.

        Each block holds whole sentences, each a line that ends in "\n", its words separated by single blanks. The
        blocks are the same for any number of processes; a small or pretokenized corpus starts none.

        Arguments:
            paths: files in order; standard input and pipes only by way of `spooled`.
            processes: how many processes tokenize at the same time.
            progress: told how many bytes of the files were read since its last call.

        Raises TextError when a file cannot be read or has no words, or when a reserved word stands in it.
        """
        _check_encoding(self.settings.encoding)
        sources = [_source(path) for path in paths]
        chunks = _checked((chunk for source in sources for chunk in _chunks(source, self.settings)), self.settings)
        alone = processes < 2 or self.settings.pretokenized or (total_bytes(sources) or 0) < PROCESSES_PAY
        finished = _tokenised_here(self, chunks) if alone else _tokenised_elsewhere(self, chunks, processes)
        wordless = True
        with contextlib.closing(finished):
            for chunk, plain in finished:
                wordless = wordless and not plain
                if chunk.last and wordless:
                    raise TextError(f"{chunk.source.name} has no words; leave it out or name another file")
                wordless = wordless or chunk.last
                if progress:
                    progress(chunk.read)
                if plain:
                    yield plain

    def sentences(self, paths: Paths, processes: int = 1, progress: Progress | None = None) -> Iterator[list[str]]:
        """Yield the sentences of a corpus in order, each a list of words; the arguments are those of `blocks`."""
        for block in self.blocks(paths, processes, progress):
            for sentence in block[:-1].split("\n"):
                yield sentence.split(" ")

    def words(self, sentence: str) -> list[str]:
        """Return the words of one sentence, or of the beginning of one, such as a prompt.

        Raises TextError when a reserved word stands in it.
        """
        sentence = _CONTROL.sub(" ", sentence).replace("\0", " ").replace("\n", " ")
        reserved = _reserved(self.settings).search(sentence)
        if reserved:
            raise TextError(f"{reserved.group()!r} is the model's own mark and cannot be given as a word; leave it out")
        if self.settings.pretokenized:
            return _folded(_split(sentence), self.settings)
        return _folded(_word_splitter(self.settings)(sentence), self.settings)


def _checked(chunks: Iterable[_Chunk], settings: TextSettings) -> Iterator[_Chunk]:
    """Pass chunks on, stopping at a word that the model keeps for itself."""
    pattern = _reserved(settings)
    for chunk in chunks:
        found = pattern.search(chunk.text)
        if found:
            line = chunk.line + chunk.text.count("\n", 0, found.start())
            message = f"{found.group()!r} is the model's own mark and cannot be a word; remove it from the text"
            raise TextError(f"{chunk.source.name}, line {line}: {message}")
        yield chunk


def _reserved(settings: TextSettings) -> re.Pattern[str]:
    """Return what finds <s> and </s>: as words in pretokenized text, anywhere in raw text."""
    mark = "</?[sS]>" if settings.lowercase else "</?s>"
    return re.compile(rf"(?<![^ \n]){mark}(?![^ \n])" if settings.pretokenized else mark)


def _plain_form(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return the function that brings a chunk's text into its plain form."""
    settings = tokenizer.settings
    split_words = _split if settings.pretokenized else _word_splitter(settings)
    split_sentences = _lines if tokenizer.punkt is None else _sentence_splitter(tokenizer.punkt)

    def plain(text: str) -> str:
        parts = (part for sentence in split_sentences(text) for part in _short(sentence))
        sentences = (" ".join(_folded(split_words(part), settings)) for part in parts)
        return "".join(f"{sentence}\n" for sentence in sentences if sentence)

    return plain


def _lines(text: str) -> list[str]:
    return text.split("\n")


def _split(sentence: str) -> list[str]:
    """Split at blanks; the blanks of other alphabets, such as the no-break space, belong to their words."""
    return sentence.split() if sentence.isascii() else [word for word in sentence.split(" ") if word]


def _folded(words: list[str], settings: TextSettings) -> list[str]:
    return [word.lower() for word in words] if settings.lowercase else words


def _sentence_splitter(parameters: PunktParameters) -> Callable[[str], Iterator[str]]:
    """Return the function that cuts raw text into sentences, none of which crosses a blank line."""
    from nltk.tokenize import punkt

    learned = punkt.PunktParameters()
    learned.abbrev_types = set(parameters.abbreviations)
    learned.collocations = set(parameters.collocations)
    learned.sent_starters = set(parameters.sentence_starters)
    learned.ortho_context.update(parameters.orthography)
    splitter = punkt.PunktSentenceTokenizer(learned)

    def split(text: str) -> Iterator[str]:
        for paragraph in _BLANK_LINES.split(text):
            for sentence in splitter.tokenize(paragraph):
                yield " ".join(sentence.split())  # NLTK's rules for quotation marks know no line ends

    return split


def _word_splitter(settings: TextSettings) -> Callable[[str], list[str]]:
    """Return the function that cuts a raw sentence into words, `<unk>` remaining one."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenize: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    unknown = re.compile("<[uU][nN][kK]>" if settings.lowercase else UNKNOWN)

    def split(sentence: str) -> list[str]:
        if not unknown.search(sentence):
            return tokenize(sentence)
        words = tokenize(unknown.sub(_STAND_IN, sentence))
        parts = (part for word in words for part in re.split(f"({_STAND_IN})", word) if part)
        return [UNKNOWN if part == _STAND_IN else part for part in parts]

    return split


# Learning sentence ends


def _leading_chunks(sources: Sequence[Source], settings: TextSettings, progress: Progress | None) -> Iterator[_Chunk]:
    """Yield chunks from the start of a corpus until they have LEARNING_LIMIT characters."""
    characters = 0
    for source in sources:
        for chunk in _chunks(source, settings):
            yield chunk
            if progress:
                progress(chunk.read)
            characters += len(chunk.text)
            if characters >= LEARNING_LIMIT:
                return


def _learn_punkt(chunks: Iterable[_Chunk]) -> PunktParameters:
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    for chunk in chunks:
        lines = (part for line in _lines(chunk.text) for part in _short(line))
        with _patience(chunk):
            trainer.train("\n".join(lines), finalize=False)
    learned = trainer.get_params()
    # Sorted, since sets have no order of their own: equal corpora give equal files.
    return PunktParameters(
        tuple(sorted(learned.abbrev_types)),
        tuple(sorted(learned.collocations)),
        tuple(sorted(learned.sent_starters)),
        {word: learned.ortho_context[word] for word in sorted(learned.ortho_context)},
    )


@contextlib.contextmanager
def _patience(chunk: _Chunk) -> Iterator[None]:
    """NLTK gives each of its regular expressions a few seconds; name the text on which one ran out of them."""
    try:
        yield
    except TimeoutError:
        place = f"{chunk.source.name}, after line {chunk.line}"
        message = "NLTK took too long over this text; break it into paragraphs, or tokenize it and say --pretokenized"
        raise TextError(f"{place}: {message}") from None


# Processes


def _tokenised_here(tokenizer: Tokenizer, chunks: Iterable[_Chunk]) -> Generator[tuple[_Chunk, str]]:
    plain = _plain_form(tokenizer)
    for chunk in chunks:
        with _patience(chunk):
            text = plain(chunk.text)
        yield chunk, text


def _tokenised_elsewhere(
    tokenizer: Tokenizer, chunks: Iterable[_Chunk], processes: int
) -> Generator[tuple[_Chunk, str]]:
    """Tokenize in other processes, results in order; each process has one chunk at a time, so memory is bounded."""
    with _workers(tokenizer, processes) as workers:
        idle, waiting = deque(workers), deque[tuple[_Chunk, Connection]]()
        for chunk in chunks:
            done = None
            if not idle:
                done, worker = waiting.popleft()
                text = _received(done, worker)
                idle.append(worker)
            worker = idle.popleft()
            with _alive(chunk):
                worker.send(chunk)
            waiting.append((chunk, worker))
            if done:
                yield done, text
        for done, worker in waiting:
            yield done, _received(done, worker)


def _received(chunk: _Chunk, worker: Connection) -> str:
    with _alive(chunk):
        result = worker.recv()
    if isinstance(result, Exception):
        raise result
    return str(result)


@contextlib.contextmanager
def _alive(chunk: _Chunk) -> Iterator[None]:
    """Name the text during which a worker was found dead."""
    try:
        yield
    except (EOFError, OSError):
        message = "a process that tokenized it was killed, perhaps for want of memory; give a smaller --threads"
        raise TextError(f"{chunk.source.name}, after line {chunk.line}: {message}") from None


@contextlib.contextmanager
def _workers(tokenizer: Tokenizer, processes: int) -> Iterator[list[Connection]]:
    """Start processes that tokenize, and end them whatever happens; yields the connection to each."""
    context = multiprocessing.get_context("spawn")  # forking is unsafe where threads of BLAS are running
    workers = []
    connections = []
    try:
        with _interrupts_held():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                worker = context.Process(target=_serve, args=(theirs, tokenizer), daemon=True)
                worker.start()
                theirs.close()  # or we should never see that the worker's own end has closed
                workers.append(worker)
                connections.append(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for worker in workers:
            worker.kill()  # it holds nothing that needs tidying, and cannot have blocked this
            worker.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and leave it to their parent to end them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # or the first process would start it, and it lets interrupts through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _serve(connection: Connection, tokenizer: Tokenizer) -> None:
    """Tokenize chunks until the parent closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems on which it cannot be held back
    threading.Thread(target=_end_with_parent, daemon=True).start()
    plain = _plain_form(tokenizer)
    with contextlib.suppress(EOFError, OSError):
        while True:
            chunk: _Chunk = connection.recv()
            try:
                with _patience(chunk):
                    result: str | Exception = plain(chunk.text)
            except Exception as error:  # whatever it is, the parent must raise it
                result = error
            connection.send(result)


def _end_with_parent() -> None:
    """Wait for the parent to die, and do not outlive it even in the middle of a chunk."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


# Readable text

_SHOWN = {
    "``": '"',
    "''": '"',
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
}
_OPENING = set("([{`“‘„«$#")  # no blank after these
_CLOSING = set(")]},.;:!?%”’»")  # no blank before these
_SUFFIXES = {"'s", "'m", "'d", "'ll", "'re", "'ve", "n't"}
_CURLY_SUFFIXES = {"s", "m", "d", "ll", "re", "ve", "t"}
_SHORTENED = {"em", "tis", "twas", "twere", "twill", "twould", "twixt", "gainst", "til", "cause", "bout"}
_PAIRS = {
    ("can", "not"),
    ("d", "'ye"),
    ("gim", "me"),
    ("gon", "na"),
    ("got", "ta"),
    ("lem", "me"),
    ("more", "'n"),
    ("wan", "na"),
    ("'t", "is"),
    ("'t", "was"),
}


def detokenize(tokens: Sequence[str]) -> str:
    """Return words as readable text.

    Contractions and punctuation are joined to their words, quotation marks are straight, the Penn Treebank's
    brackets are brackets; nothing is capitalized. Cutting the text again gives the same words, with rare
    exceptions where a quotation mark's side cannot be told.
    """
    text = ""
    quoted: set[str] = set()  # the straight quotation marks now open
    joined = True  # nothing stands between the text so far and the next word
    for index, token in enumerate(tokens):
        left, right = _joins(tokens, index, quoted)
        shown = _shown(token)
        text += shown if joined or left else f" {shown}"
        joined = right
    return text


def _shown(token: str) -> str:
    return _SHOWN.get(token.upper()) or token.replace("\\/", "/").replace("\\*", "*")


def _joins(tokens: Sequence[str], index: int, quoted: set[str]) -> tuple[bool, bool]:
    """Tell whether a word joins what precedes it without a blank, and whether it so joins what follows."""
    token = tokens[index]
    before = tokens[index - 1] if index else ""
    after = tokens[index + 1] if index + 1 < len(tokens) else ""
    if token in ("``", "''"):
        return token == "''", token == "``"
    if token in ('"', "'"):
        return _straight_quote_joins(tokens, index, quoted)
    if token in ("—", "―"):
        return True, after not in ("``", '"')
    if token in ("–", "‒"):
        between_numbers = before[-1:].isdigit() and after[:1].isdigit()
        return between_numbers, between_numbers
    if token == "’":
        return True, after.lower() in _CURLY_SUFFIXES
    if token.lower() in _SUFFIXES:
        return before[-1:].isalnum() or before[-1:] in (".", ">"), False
    if (before.lower(), token.lower()) in _PAIRS:
        return True, False
    shown = _shown(token)
    return shown in _CLOSING or not shown.strip("."), shown in _OPENING


def _straight_quote_joins(tokens: Sequence[str], index: int, quoted: set[str]) -> tuple[bool, bool]:
    """Do the same for a mark that may open or close; `quoted` holds the marks that are open and is brought up to date.

    A single one may also be an apostrophe: of a plural (the dogs' bones) or of a word cut short ('twas, o' the).
    """
    token, before, rest = tokens[index], tokens[index - 1] if index else "", tokens[index + 1 :]
    if token in quoted:
        quoted.discard(token)
        return before != "'", False  # two single marks side by side would be read as a double one
    if token == "'":
        if rest and rest[0].lower() in _SHORTENED:
            return False, True
        after_word = before[-1:].isalnum()
        if after_word and (before.endswith("s") or token not in rest):
            return True, False
    quoted.add(token)
    return False, not rest or rest[0] != token
