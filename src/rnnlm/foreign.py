"""Models of other programs, read as models of ours.

Mikolov's rnnlm 0.3 and 0.4: one layer of sigmoids, and words in classes. Each class is a tail here, so that the first
cutoff is 0. A word that his program does not know adds nothing to the hidden layer and is not predicted: here it is
`<unk>`, whose row of U is zero and whose probability is next to nothing, unless his words have an `<unk>`. With
`-independent` each sentence begins in a state of ones, which W turns into a constant: it is added to the row of `</s>`,
which is then read there and nowhere else. Without, a text begins in the state in which his training has ended.

The tutorial's network (U, V, W by `np.savez`, and a list of its words): tanh, no biases, one softmax. Its
SENTENCE_START is what the first word is predicted from, so its row of U becomes that of `</s>`.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from rnnlm.archive import Archive
from rnnlm.checkpoint import ModelFolder, Origin, SavedModel, save_model
from rnnlm.corpus import Coverage
from rnnlm.defaults import choose
from rnnlm.errors import ModelError, RnnlmError, SettingsError, VocabularyError, counted
from rnnlm.files import open_plain, reason
from rnnlm.model import Array, LanguageModel, ModelSettings
from rnnlm.settings import NetworkSettings, RunSettings, TextSettings, VocabularySettings
from rnnlm.sources import STANDARD_INPUT, check_encoding, shown
from rnnlm.text import Tokenizer
from rnnlm.vocabulary import SENTENCE_END, SENTENCE_START, UNKNOWN, Vocabulary, control_character, listed_words

NEVER = -100.0  # the logit of <unk> where a model knows no unknown word: e^-100 changes no sum in float32
HEADER_LINES = 100  # lines before a vocabulary, at most
HEADER_BYTES = 2**14  # of one of them, which may name a file
LINE_BYTES = 2**10  # of a line with a word or a number; his words have 99 at most
NEWEST = 10  # version of Mikolov's files
START, END, UNKNOWN_WORD = "SENTENCE_START", "SENTENCE_END", "UNKNOWN_TOKEN"  # the tutorial's marks


def import_model(
    path: Path, model: str, *, words: Path | None = None, encoding: str = "utf-8", overwrite: bool = False
) -> SavedModel:
    """Read a model of another program, and write it into a folder.

    Raises what `read_foreign` does, and ModelError where the folder holds a model and `overwrite` is not set, or
    cannot be written.
    """
    folder = ModelFolder(model)
    if folder.holds_model() and not overwrite:
        message = "holds a model already; replace it with --overwrite, or name another folder with --model"
        raise ModelError(f"{folder.name}: {message}")
    folder.check_places()
    saved = read_foreign(path, words, encoding)
    with folder.held():
        save_model(folder.best, saved)
        for other in (folder.last, folder.new, folder.history, folder.curve):  # of the model that was here
            other.unlink(missing_ok=True)
    return saved


def read_foreign(path: Path, words: Path | None = None, encoding: str = "utf-8") -> SavedModel:
    """Read a model of another program.

    Arguments:
        path: a file of Mikolov's rnnlm, or the tutorial's `.npz`.
        words: the words of the tutorial's model, one a line, by id.
        encoding: that of Mikolov's words, and of the texts that the model will be asked about.

    Raises ModelError, in a sentence with the file and what is wrong with it, VocabularyError where the list of words
    cannot be read, and SettingsError where `words` is missing or has no use.
    """
    check_encoding(encoding)
    with _opened(path) as file:
        start = file.read(8)
        file.seek(0)
        if start[:4] == b"PK\x03\x04":
            if words is None:
                message = "is an archive of arrays, which has no words; name the file of its words with --words"
                raise SettingsError(f"{path}: {message}")
            try:
                return _tutorial(path, file, words, encoding)
            except OSError as error:
                if error.errno == errno.EINVAL:  # it says that something lies before its own beginning
                    raise ValueError("its list of entries leads nowhere") from None
                raise
        if start == b"version:":
            if words is not None:
                raise SettingsError(f"{path}: has words of its own; leave --words out")
            return _mikolov(path, file, encoding)
    raise ModelError(f"{path}: is no model of Mikolov's rnnlm, nor an .npz of the tutorial; name another file")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, and say in a sentence what is wrong with it."""
    try:
        with open_plain(path) as file:
            yield file
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({reason(error)}); name another file") from None
    except RnnlmError:
        raise
    except MemoryError:
        raise ModelError(f"{path}: its weights do not fit into memory; use a machine that has more") from None
    except Exception as error:  # whatever a damaged file makes zipfile, numpy or Python's own readers raise
        details = f": {error}" if type(error) is ValueError else ""
        raise ModelError(f"{path}: is damaged or incomplete{details}; use another copy of it") from error


# Mikolov's rnnlm


class _Lines:
    """The lines of a file, counted; raises ValueError, with the number, where one is too long or missing."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.number = file, 0

    def next(self, limit: int = LINE_BYTES) -> bytes:
        """Return the next line without its end."""
        row = self.file.readline(limit + 1)
        self.number += 1
        if len(row) > limit:
            raise ValueError(f"line {self.number} has more than {limit:,} bytes")
        if not row:
            raise ValueError(f"it ends before line {self.number}")
        return row.rstrip(b"\r\n")

    def numbers(self, label: bytes, count: int) -> Array:
        """Read a label after blank lines, and so many numbers, one a line."""
        while not (row := self.next()):
            pass
        if row != label + b":":
            raise ValueError(f"line {self.number} is not {label.decode()!r}")
        try:
            return np.fromiter((float(self.next()) for _ in range(count)), np.float64, count)
        except ValueError as error:
            known = "line" in str(error)
            raise ValueError(str(error) if known else f"line {self.number} is not a number") from None


class _Header(NamedTuple):
    """What a file of Mikolov's says before its words."""

    binary: bool
    trained_on: str
    validated_on: str
    hidden: int
    words: int
    classes: int
    independent: bool


def _mikolov(path: Path, file: BinaryIO, encoding: str) -> SavedModel:
    lines = _Lines(file)
    header = _header(path, lines, encoding)
    H, V, C = header.hidden, header.words, header.classes
    sizes = {"Hidden layer activation": H, "Weights 0->1": H * (V + H), "Weights 1->2": H * (V + C)}
    left = os.fstat(file.fileno()).st_size - file.tell()
    if left < (4 if header.binary else 2) * sum(sizes.values()):
        raise ValueError(f"it is too short for {counted(V, 'word')} and {counted(H, 'hidden unit')}")
    words, counts, cutoffs = _words(path, lines, header, encoding)
    if header.binary:
        if os.fstat(file.fileno()).st_size - file.tell() != 4 * sum(sizes.values()):
            raise ValueError("its weights have not the bytes that its sizes need")
        found = [np.frombuffer(file.read(4 * size), "<f4") for size in sizes.values()]
    else:
        found = [lines.numbers(label.encode(), size) for label, size in sizes.items()]
        lines.numbers(b"Direct connections", 0)
        if file.read(LINE_BYTES).strip():
            raise ValueError(f"it goes on after line {lines.number}")
    state, inputs, outputs = (_float32(array) for array in found)
    model = _sigmoid_model(header, cutoffs, state, inputs.reshape(H, V + H), outputs.reshape(V + C, H))
    if len(words) > V:  # <unk> is ours
        model = _with_unknown(model)
    vocabulary = _vocabulary(path, words, counts)
    tokenizer = Tokenizer(TextSettings(pretokenized=True, encoding=encoding))
    return _saved(path, model, vocabulary, tokenizer, header.trained_on, header.validated_on)


def _header(path: Path, lines: _Lines, encoding: str) -> _Header:
    """Read the sizes; raises ModelError where the network has what none of ours has."""
    found: dict[str, str] = {}
    while (row := lines.next(HEADER_BYTES)) != b"Vocabulary:":
        name, _, value = row.decode("latin-1").partition(":")
        found.setdefault(name, value.strip(" \r\t"))
        if lines.number > HEADER_LINES:
            raise ValueError("it has no vocabulary")

    def number(name: str, low: int, high: int, default: str | None = None) -> int:
        text = found.get(name, default)
        if text is None:
            raise ValueError(f"it does not say its {name!r}")
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not low <= int(text) <= high:
            raise ValueError(f"its {name!r} is {shown(text)!r} and not a number from {low} to {high:,}")
        return int(text)

    number("version", 1, NEWEST)
    binary = number("file format", 0, 1) == 1
    direct, compressed = (
        number(f"{name}", 0, 10**18, "0") for name in ("direct connections", "compression layer size")
    )
    extras = {f"{direct:,} direct connections": direct, f"a compression layer of {compressed:,} units": compressed}
    if direct or compressed:
        has = " and ".join(name for name, there in extras.items() if there)
        message = f"has {has}, which no model here can have; train it again without"
        raise ModelError(
            f"{path}: {message} {' and '.join(('-direct',) * bool(direct) + ('-compression',) * bool(compressed))}"
        )
    H, V = number("hidden layer size", 1, 100_000), number("vocabulary size", 2, 2**31)
    C = number("class size", 1, 2**31)
    for name, size in (("input layer size", V + H), ("output layer size", V + C)):
        number(name, size, size)
    independent = number("independent sentences mode", 0, 1) == 1
    named = (found.get(f"{name} data file", "").encode("latin-1") for name in ("training", "validation"))
    texts = (name.decode(encoding, "replace").replace("\0", " ").strip() for name in named)
    trained_on, validated_on = ("unknown" if text in ("", STANDARD_INPUT) else text for text in texts)
    return _Header(binary, trained_on, validated_on, H, V, C, independent)


def _words(path: Path, lines: _Lines, header: _Header, encoding: str) -> tuple[list[str], list[int], tuple[int, ...]]:
    """Read the words with their counts, and where classes begin; `<unk>` is added at the end if it is not there."""
    words, counts, classes = dict[str, int](), list[int](), list[int]()
    for rank in range(header.words):
        place = f"{path}, line {lines.number + 1}"
        row = lines.next().split(b"\t")
        try:
            number, count, name, part = row
            word, entry = name.decode(encoding), (int(number), int(count), int(part))
        except UnicodeDecodeError:
            message = f"the word is not valid {shown(encoding.upper())}; name the encoding of the words with --encoding"
            raise ModelError(f"{place}: {message}") from None
        except ValueError:
            raise ValueError(f"line {lines.number} is not a number, a count, a word and a class") from None
        if strange := control_character(word):
            raise ModelError(f"{place}: {strange}; name the encoding of the words with --encoding")
        if word == SENTENCE_START:
            raise ModelError(f"{place}: {word} is never a word here; train the model again on a text without it")
        if word in words or entry[0] != rank or entry[1] < 0:
            raise ValueError(f"line {lines.number} is out of order")
        words[word] = rank
        counts.append(entry[1])
        classes.append(entry[2])
    begins = [rank for rank, (before, own) in enumerate(itertools.pairwise([-1, *classes])) if before != own]
    if [classes[rank] for rank in begins] != list(range(header.classes)):
        empty = header.classes - len(set(classes))
        message = (
            f"{empty:,} of its {header.classes:,} classes have no words" if empty > 0 else "classes are out of order"
        )
        raise ModelError(f"{path}: {message}; train it again with a smaller -class")
    if UNKNOWN not in words:
        return [*words, UNKNOWN], [*counts, 0], tuple(begins)
    return list(words), counts, tuple(begins)


def _sigmoid_model(
    header: _Header, cutoffs: tuple[int, ...], state: Array, inputs: Array, outputs: Array
) -> LanguageModel:
    """Make a model of his state (H,), weights from the input layer (H, V + H), and to the output layer (V + C, H)."""
    V, C = header.words, header.classes
    U, W = np.ascontiguousarray(inputs[:, :V].T), np.ascontiguousarray(inputs[:, V:])
    if header.independent:
        U[0] += W.sum(axis=1)  # W times a state of ones
    settings = ModelSettings(V, header.hidden, "sigmoid", carry_state=not header.independent, cutoffs=cutoffs)
    parameters = {
        "U": U,
        "W1": W,
        "b1": np.zeros(header.hidden, np.float32),
        "V": np.concatenate((outputs[V:], outputs[:V])),  # classes first
        "c": np.zeros(V + C, np.float32),
    }
    if not ((state >= 0) & (state <= 1)).all():
        raise ValueError("its hidden layer has a number that no sigmoid gives")
    return LanguageModel(settings, parameters, None if header.independent else state.reshape(1, 1, -1))


def _with_unknown(model: LanguageModel) -> LanguageModel:
    """Add a last word that says nothing where it is read, and is not expected."""
    more = {name: np.pad(model.parameters[name], ((0, 1), (0, 0))) for name in ("U", "V")}
    more["c"] = np.append(model.parameters["c"], np.float32(NEVER))
    settings = replace(model.settings, words=model.settings.words + 1)
    return replace(model, settings=settings, parameters={**model.parameters, **more})


def _float32(array: Array) -> Array:
    """Return an array as float32; raises ValueError where a number of it is none."""
    if not (np.abs(array) <= np.finfo(np.float32).max).all():  # false for NaN
        raise ValueError("it has a number that is not finite")
    return array.astype(np.float32)


# The tutorial


def _tutorial(path: Path, file: BinaryIO, words: Path, encoding: str) -> SavedModel:
    archive = Archive(file)
    if "E" in archive.names:
        message = "two layers of GRUs with hard sigmoids and another place of the reset gate, which no model here has"
        raise ModelError(f"{path}: has {message}; train one with `rnnlm train --cell gru --layers 2`")
    if not {"U", "V", "W"} <= archive.names:
        raise ModelError(f"{path}: has no arrays U, V and W, so it is no model of the tutorial; name another file")
    shape, kind = archive.described("U")
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)) or len(shape) != 2 or not all(shape):
        raise ValueError(f"its entry U is {kind} of shape {shape} and no matrix of numbers")
    H, V = shape
    shapes = {"U": (H, V), "V": (V, H), "W": (H, H)}
    given = {name: _float32(archive.array(name, kind, dims)) for name, dims in shapes.items()}
    names = list(listed_words(words, "--words"))
    for mark in (START, END, UNKNOWN_WORD):
        if mark not in names:
            raise ModelError(f"{words}: {mark} is not there; give all words of the model, one a line, in its order")
    if len(names) > V:
        raise ModelError(
            f"{words}: has {counted(len(names), 'word')}, and {path} has {V:,}; name the list of this model"
        )
    names += [f"<unused-{number}>" for number in range(len(names), V)]  # rows that the softmax counts in
    order = [names.index(END), *(number for number, name in enumerate(names) if name != END)]
    ours = {END: SENTENCE_END, UNKNOWN_WORD: UNKNOWN}
    vocabulary = _vocabulary(words, [ours.get(names[number], names[number]) for number in order], [1] * V)
    U = np.ascontiguousarray(given["U"].T[order])
    U[0] = given["U"][:, names.index(START)]
    zeros = {"b1": np.zeros(H, np.float32), "c": np.zeros(V, np.float32)}
    model = LanguageModel(ModelSettings(V, H), {"U": U, "W1": given["W"], "V": given["V"][order], **zeros})
    lowercase = not any(name != name.lower() for name in names if name not in (START, END, UNKNOWN_WORD))
    tokenizer = Tokenizer(TextSettings(lines=True, lowercase=lowercase, encoding=encoding))
    return _saved(path, model, vocabulary, tokenizer, "unknown", "unknown")


# Both


def _vocabulary(path: Path, words: list[str], counts: list[int]) -> Vocabulary:
    """Make a vocabulary; raises ModelError, with the file, where words or counts are none."""
    try:
        return Vocabulary(words, counts)
    except VocabularyError as error:
        raise ModelError(f"{path}: {error}; use another copy of it") from None


def _saved(
    path: Path, model: LanguageModel, vocabulary: Vocabulary, tokenizer: Tokenizer, trained_on: str, validated_on: str
) -> SavedModel:
    """Put a model together with what is known of where it comes from."""
    kind, counts = model.settings, vocabulary.counts
    network = NetworkSettings(kind.hidden, kind.cell, carry_state=kind.carry_state)  # type: ignore[arg-type]
    text, words = tokenizer.settings, VocabularySettings(vocab_size=None, min_count=1)
    settings = RunSettings(
        (trained_on,), (validated_on,), initial=str(path), text=text, vocabulary=words, network=network
    )
    coverage = Coverage(
        sentences=max(1, int(counts[0])),
        words=max(1, int(counts[1:].sum())),
        types=len(vocabulary) - 1,
        vocabulary=len(vocabulary),
        unknown=int(counts[vocabulary.unknown_id]),
    )
    settings = choose(settings, coverage.words + coverage.sentences, len(vocabulary))
    return SavedModel(model, vocabulary, tokenizer, Origin(secrets.token_hex(8), None, settings, ("", ""), coverage))
