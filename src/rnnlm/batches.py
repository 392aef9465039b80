"""Encoded corpora on disk, and the (T, B) windows that training and evaluation read from them.

A corpus is one array of ids on disk, sentence after sentence, each ended by 0 (`</s>`), with the places where
sentences begin. It is mapped into memory, never loaded. It is made in one pass over the text, which numbers words
in order of first appearance, and one over the numbers, which replaces them by ranks; so the text is tokenized once,
and no more is held in memory than a block of it and its different words.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import SettingsError
from rnnlm.model import IGNORED
from rnnlm.text import LEARNING_LIMIT, Paths, Progress, Source, TextSettings, Tokenizer, digests, total_bytes
from rnnlm.vocabulary import SENTENCE_END, Coverage, Vocabulary, VocabularySettings

_FORMAT = 1  # of the cache; raised whenever the same text and settings would give other ids
_BLOCK = 2**20  # ids or bytes handled at once

# Called when a stage of the work begins, with its name and size in bytes; gives what is told of the progress.
Stage = Callable[[str, int], AbstractContextManager[Progress]]


@contextlib.contextmanager
def _silent(_title: str, _size: int) -> Iterator[Progress]:
    yield lambda _done: None


# Corpora


@dataclass(frozen=True, eq=False)
class Corpus:
    """An encoded text.

    Arguments:
        ids: int32, `words + sentences` of them: w1 w2 ... 0 w1 ... 0; usually a map of a file.
        offsets: int64, where each sentence begins in `ids`, and the end.
        unknown: how many of the words are `<unk>`.
        types: how many different words the text had.
        key: tells it apart from any other text or settings; empty where it was encoded in memory.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    unknown: int
    types: int
    key: str = ""

    @property
    def sentences(self) -> int:
        """The number of sentences."""
        return len(self.offsets) - 1

    @property
    def predictions(self) -> int:
        """The number of predictions: every word, and the end of every sentence."""
        return len(self.ids)

    @property
    def words(self) -> int:
        """The number of words, ends of sentences not among them."""
        return self.predictions - self.sentences

    def coverage(self, vocabulary: Vocabulary) -> Coverage:
        """Tell how the text and the vocabulary that it was encoded with fit."""
        return Coverage(self.sentences, self.words, self.types, len(vocabulary), self.unknown)

    @classmethod
    def of_sentences(cls, sentences: Iterable[Sequence[str]], vocabulary: Vocabulary) -> "Corpus":
        """Encode a few sentences in memory."""
        listed = list(sentences)
        ids = vocabulary.encode(word for sentence in listed for word in (*sentence, SENTENCE_END))
        offsets = np.cumsum([0, *(len(sentence) + 1 for sentence in listed)], dtype=np.int64)
        types = len({word for sentence in listed for word in sentence})
        return cls(ids, offsets, int(np.count_nonzero(ids == vocabulary.unknown_id)), types)


@dataclass(frozen=True, eq=False)
class TrainingText:
    """All that training needs of its text.

    Arguments:
        tokenizer: how the text was cut into words; to be stored with the model.
        vocabulary: made from the training part alone.
        train: the training part.
        valid: the part held out; None where none was asked for.
        cached: whether all of it was found ready-made.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    train: Corpus
    valid: Corpus | None
    cached: bool


# From texts to corpora


def prepare(
    paths: Paths,
    folder: Path,
    text_settings: TextSettings,
    vocabulary_settings: VocabularySettings,
    *,
    expected: str | None = None,
    valid_fraction: float = 0.0,
    processes: int = 1,
    stage: Stage = _silent,
) -> TrainingText:
    """Tokenize a training text, hold a part out, make the vocabulary and encode; or find all of that in the cache.

    Arguments:
        paths: the files in order; standard input and pipes only by way of `spooled`.
        folder: where the result is kept, in `encoded-train`; made when missing.
        text_settings: how the text becomes words.
        vocabulary_settings: which of them get an id.
        expected: the key that the text must have, if any.
        valid_fraction: share of the sentences, from the end, that is held out before the vocabulary is made.
        processes: how many processes tokenize at the same time; the result does not depend on it.
        stage: called when a stage of the work begins.

    Raises TextError, VocabularyError or SettingsError; then nothing is kept.
    """
    if not 0.0 <= valid_fraction < 1.0:
        raise SettingsError(f"--valid-fraction is {valid_fraction:g}; it must be at least 0 and less than 1")
    listed = vocabulary_settings.checked()
    words_kept: object = listed or [vocabulary_settings.size, vocabulary_settings.min_count]
    entry = folder / "encoded-train"
    key = _key(paths, [asdict(text_settings), LEARNING_LIMIT, words_kept, valid_fraction], stage, expected)
    facts = _find(entry, key)
    if facts:
        return _training_text(entry, facts, cached=True)
    with stage("learning where sentences end", min(total_bytes(paths) or 0, LEARNING_LIMIT)) as progress:
        tokenizer = Tokenizer.learn(paths, text_settings, progress)
    with _rebuilding(entry) as partial:
        words = _number(tokenizer, paths, partial, processes, stage)
        cut, bounds = _cut(partial, valid_fraction)
        counts = _counts(partial, bounds, len(words))
        seen = {word: count for word, count in zip(words[1:], counts[0][1:].tolist(), strict=True) if count}
        vocabulary = vocabulary_settings.make(seen, cut)
        parts = _renumber(partial, vocabulary, words, counts, stage)
        _write_vocabulary(partial, vocabulary)
        facts = {"key": key, "cut": cut, "parts": parts, "tokenizer": tokenizer.to_json()}
        _finish(partial, facts)
    return _training_text(entry, facts, cached=False)


def encode(
    paths: Paths,
    folder: Path,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    *,
    name: str = "valid",
    expected: str | None = None,
    processes: int = 1,
    stage: Stage = _silent,
) -> Corpus:
    """Tokenize and encode a text with what a model has, or find the result in the cache, in `encoded-<name>`.

    The other arguments and the errors are those of `prepare`.
    """
    entry = folder / f"encoded-{name}"
    key = _key(paths, [tokenizer.to_json(), vocabulary.words], stage, expected)
    facts = _find(entry, key)
    if not facts:
        with _rebuilding(entry) as partial:
            words = _number(tokenizer, paths, partial, processes, stage)
            _, bounds = _cut(partial, 0.0)
            parts = _renumber(partial, vocabulary, words, _counts(partial, bounds, len(words)), stage)
            facts = {"key": key, "parts": parts}
            _finish(partial, facts)
    return _corpora(entry, facts)[0]


def reopen(folder: Path, train_key: str, valid_key: str) -> tuple[Corpus, Corpus] | None:
    """Find what `prepare` and `encode` made, by the corpora's keys, without the texts; None where it is gone."""
    facts = _find(folder / "encoded-train", train_key)
    if not facts:
        return None
    train, *held_out = _corpora(folder / "encoded-train", facts)
    if valid_key == train_key:
        return train, held_out[0]
    facts = _find(folder / "encoded-valid", valid_key)
    return (train, _corpora(folder / "encoded-valid", facts)[0]) if facts else None


class _Numbering(dict[str, int]):
    """Numbers of words, in order of first appearance; asking for a new word numbers it."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def _number(tokenizer: Tokenizer, paths: Paths, partial: Path, processes: int, stage: Stage) -> list[str]:
    """Write a text as numbers in order of first appearance, and its sentences' offsets; return the words."""
    numbers = _Numbering({SENTENCE_END: 0})
    length = 0
    with (
        stage("tokenizing", total_bytes(paths) or 0) as progress,
        contextlib.closing(tokenizer.blocks(paths, processes, progress)) as blocks,
        (partial / "ids").open("wb") as ids_file,
        (partial / "offsets").open("wb") as offsets_file,
    ):
        np.zeros(1, "<i8").tofile(offsets_file)
        for block in blocks:
            words = block.replace("\n", f" {SENTENCE_END} ")[:-1].split(" ")
            ids = np.fromiter(map(numbers.__getitem__, words), "<i4", len(words))
            ids.tofile(ids_file)
            (np.flatnonzero(ids == 0) + (length + 1)).astype("<i8").tofile(offsets_file)
            length += len(ids)
    return list(numbers)


def _cut(partial: Path, valid_fraction: float) -> tuple[int, list[int]]:
    """Return how many sentences are for training, and where in the ids each part begins and the last one ends."""
    offsets = np.memmap(partial / "offsets", "<i8", mode="r")
    sentences = len(offsets) - 1
    if not valid_fraction:
        return sentences, [0, int(offsets[-1])]
    if sentences < 2:
        message = "the text has a single sentence, so none can be held out"
        raise SettingsError(f"{message}; give another text with --valid")
    held_out = min(max(round(sentences * valid_fraction), 1), sentences - 1)
    cut = sentences - held_out
    return cut, [0, int(offsets[cut]), int(offsets[-1])]


def _counts(partial: Path, bounds: list[int], types: int) -> list[NDArray[np.int64]]:
    """Count every number in each part, reading the file block by block."""
    counts = []
    with (partial / "ids").open("rb") as file:
        for start, stop in itertools.pairwise(bounds):
            count = np.zeros(types, np.int64)
            for place in range(start, stop, _BLOCK):
                count += np.bincount(np.fromfile(file, "<i4", min(_BLOCK, stop - place)), minlength=types)
            counts.append(count)
    return counts


def _renumber(
    partial: Path, vocabulary: Vocabulary, words: list[str], counts: list[NDArray[np.int64]], stage: Stage
) -> list[dict[str, int]]:
    """Put ranks in place of the numbers in the file; return what is to be known of each part."""
    ranks = vocabulary.encode(words).astype("<i4")
    path = partial / "ids"
    with stage("numbering words", path.stat().st_size) as progress, path.open("r+b") as file:
        while len(numbers := np.fromfile(file, "<i4", _BLOCK)):
            file.seek(-numbers.nbytes, os.SEEK_CUR)
            ranks[numbers].tofile(file)
            progress(numbers.nbytes)
    unknown = ranks == vocabulary.unknown_id
    return [{"unknown": int(part[unknown].sum()), "types": int(np.count_nonzero(part[1:]))} for part in counts]


# The cache. An entry is a folder of arrays and a file of facts that is written last and has a checksum of everything.


def _key(paths: Paths, choices: list[Any], stage: Stage, expected: str | None) -> str:
    """Return what tells apart texts and settings with other results; raises SettingsError if another is expected."""
    with stage("checking the text", total_bytes(paths) or 0) as progress:
        content = digests(paths, progress)
    facts = [_FORMAT, importlib.metadata.version("nltk"), content, choices]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if expected not in (None, key):
        names = ", ".join(path.name if isinstance(path, Source) else str(path) for path in paths)
        message = f"{names}: this is not the text, or not cut in the same way, that the model was trained on so far"
        raise SettingsError(f"{message}; restore it to resume, or train anew with --overwrite")
    return key


def _find(entry: Path, key: str) -> dict[str, Any] | None:
    """Return an entry's facts, or None where there is none for this key or it is damaged."""
    try:
        stored = json.loads((entry / "facts.json").read_text("utf-8"))
        facts: dict[str, Any] = stored["facts"]
        sound = stored["checksum"] == _checksum_of_facts(facts) and facts["key"] == key
        sound = sound and all(_checksum(entry / name) == value for name, value in facts["checksums"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if sound else None


@contextlib.contextmanager
def _rebuilding(entry: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the entry's place if all goes well, and goes if it does not."""
    partial = entry.with_name(f"{entry.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if entry.exists():
            shutil.rmtree(entry)
        partial.rename(entry)
    except OSError as error:
        raise SettingsError(
            f"{entry.parent} cannot be written: {error.strerror or error}; make room, or name another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finish(partial: Path, facts: dict[str, Any]) -> None:
    """Add the files' checksums to the facts and write them."""
    facts["checksums"] = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
    stored = {"facts": facts, "checksum": _checksum_of_facts(facts)}
    (partial / "facts.json").write_text(json.dumps(stored), "utf-8")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _checksum_of_facts(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _write_vocabulary(partial: Path, vocabulary: Vocabulary) -> None:
    for name, array in vocabulary.to_arrays().items():
        array.tofile(partial / name)


def _training_text(entry: Path, facts: dict[str, Any], cached: bool) -> TrainingText:
    arrays = {"words": np.fromfile(entry / "words", "u1"), "counts": np.fromfile(entry / "counts", "<i8")}
    train, *valid = _corpora(entry, facts)
    tokenizer = Tokenizer.from_json(facts["tokenizer"])
    return TrainingText(tokenizer, Vocabulary.from_arrays(arrays), train, valid[0] if valid else None, cached)


def _corpora(entry: Path, facts: dict[str, Any]) -> list[Corpus]:
    """Map an entry's parts into memory."""
    ids = np.memmap(entry / "ids", "<i4", mode="r")
    offsets = np.memmap(entry / "offsets", "<i8", mode="r")
    cut = facts.get("cut", len(offsets) - 1)
    corpora = []
    for (first, last), part in zip([(0, cut), (cut, len(offsets) - 1)], facts["parts"], strict=False):
        begin, end = int(offsets[first]), int(offsets[last])
        own_offsets = offsets[first : last + 1]
        if begin:
            own_offsets = own_offsets - begin
        corpora.append(Corpus(ids[begin:end], own_offsets, part["unknown"], part["types"], facts["key"]))
    return corpora


# Windows


class Window(NamedTuple):
    """T consecutive positions of B streams.

    Arguments:
        inputs: (T, B) int32, the word before each target; 0 where a sentence begins.
        targets: (T, B) int32, the words to predict, each sentence ended by 0; IGNORED where a stream has ended.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


class Windows:
    """One epoch of a corpus as windows; any of them is made at once, so an epoch can be entered anywhere.

    The sentences are dealt in order to the streams, each stream a run of neighbors, with about equal numbers of
    words; every prediction is in exactly one window. A stream that ends before the others is filled up with IGNORED.

    Arguments:
        corpus: the encoded text.
        streams: B, how many sentences are read side by side; fewer where there are fewer sentences.
        window: T, how many words each stream has in a window, except in the last; 0 for whole sentences, one of each
            stream in a window.
        order: the order of the sentences; None for that of the corpus.
    """

    def __init__(
        self, corpus: Corpus, streams: int, window: int, order: "NDArray[np.integer[Any]] | None" = None
    ) -> None:
        self.streams = min(streams, corpus.sentences)
        self.window = window
        self._ids = np.asarray(corpus.ids)
        self._offsets = np.asarray(corpus.offsets)
        self._order = order
        # (sentences + 1,) the positions of the epoch at which the ordered sentences begin
        self._begins = self._offsets
        if order is not None:
            self._begins = np.zeros_like(self._offsets)
            np.cumsum(np.diff(self._offsets)[order], out=self._begins[1:])
        sentences = self._dealt_sentences()  # (B + 1,) at which each stream begins
        # In the unit that windows advance by, sentences or positions: where each stream begins and how long it is.
        ends = sentences if window == 0 else self._begins[sentences]
        self._starts, self._lengths = ends[:-1], np.diff(ends)  # (B,), (B,)
        self._longest = int(self._lengths.max())

    def _dealt_sentences(self) -> NDArray[np.int64]:
        """Return (B + 1,) sentences, by their order, at which streams begin, and the end of the last."""
        sentences, streams = len(self._offsets) - 1, self.streams
        shares = np.arange(streams + 1)
        if self.window == 0:
            return shares * sentences // streams
        places = shares * int(self._begins[-1]) // streams
        after = np.searchsorted(self._begins, places)
        before = np.maximum(after - 1, 0)
        nearest = np.where(places - self._begins[before] < self._begins[after] - places, before, after)
        # No stream may be empty: each begins later than the one before, and leaves a sentence to each one behind.
        nearest = np.maximum.accumulate(nearest - shares) + shares
        return np.minimum(nearest, sentences - streams + shares)

    def __len__(self) -> int:
        return -(-self._longest // (self.window or 1))

    def __iter__(self) -> Iterator[Window]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Window:
        """Return a window by its number, from 0; raises IndexError beyond the last."""
        if not 0 <= number < len(self):
            raise IndexError(f"there is no window {number} among {len(self)}")
        if self.window == 0:
            return self._sentence_window(number)
        steps = np.arange(number * self.window, min((number + 1) * self.window, self._longest))[:, None]  # (T, 1)
        return self._read(self._starts + steps, steps < self._lengths)

    def _sentence_window(self, number: int) -> Window:
        """Return the sentence of this number of every stream."""
        going = number < self._lengths  # (B,)
        sentences = np.where(going, self._starts + number, 0)
        begins = self._begins[sentences]
        sizes = np.where(going, self._begins[sentences + 1] - begins, 0)
        steps = np.arange(sizes.max())[:, None]  # (T, 1)
        return self._read(begins + steps, steps < sizes)

    def _read(self, places: NDArray[np.int64], going: NDArray[np.bool_]) -> Window:
        """Read the ids at positions of the epoch, (T, B), where the streams are still going."""
        places = np.where(going, places, 0)
        if self._order is not None:
            ranks = np.searchsorted(self._begins, places, side="right") - 1
            places += self._offsets[self._order[ranks]] - self._begins[ranks]
        # Before a sentence stands the end of another, 0; before the first, position -1 is the very last end. A stream
        # that has ended reads the beginning of a sentence again, so its input is 0 as well.
        return Window(self._ids[places - 1], np.where(going, self._ids[places], IGNORED))


def windows(
    corpus: Corpus, streams: int, window: int, rng: np.random.Generator | None = None, carry_state: bool = False
) -> Windows:
    """Return one epoch of windows, its sentences in an order drawn from `rng`.

    Without `rng` the order is that of the corpus, as evaluation wants it; so it is with `carry_state`, where the
    text must stay whole. The other arguments are those of `Windows`. Raises SettingsError when they are no sizes.
    """
    if streams < 1 or window < 0:
        raise SettingsError(f"--streams is {streams} and --window {window}; they must be at least 1 and 0")
    order = None
    if rng is not None and not carry_state:
        small = np.int32 if corpus.sentences < 2**31 else np.int64
        order = rng.permutation(np.arange(corpus.sentences, dtype=small))
    return Windows(corpus, streams, window, order)
