"""Encoded corpora on disk, memory-mapped, and their cache.

A corpus is one array of ids on disk, sentence after sentence, each ended by 0 (`</s>`), with the places where
sentences begin. It is mapped into memory, never loaded. It is made in one pass over the text, which numbers words
in order of first appearance, and one over the numbers, which replaces them by ranks; so the text is tokenized once,
and no more is held in memory than a block of it and its different words. What is made is kept in `entries`.
"""

import contextlib
import itertools
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnlm import entries
from rnnlm.checking import Checked, Unfit, restore
from rnnlm.entries import BLOCK, Entry, Part
from rnnlm.errors import RnnlmError, SettingsError, TextError
from rnnlm.settings import Count, Natural, TextSettings, VocabularySettings
from rnnlm.sources import Progress, Source
from rnnlm.text import LEARNING_LIMIT, Tokenizer, nltk_version
from rnnlm.vocabulary import SENTENCE_END, Vocabulary, make_vocabulary, words_to_know
from rnnlm.workers import NotStartedError

_FORMAT = 2  # of the cache; raised whenever the same text and settings would give other ids
_TRAIN, _VALID = entries.NAMES

# Called when a stage of the work begins, with its name and size in bytes; gives what is told of the progress.
Stage = Callable[[str, int], AbstractContextManager[Progress]]


@contextlib.contextmanager
def silent(_title: str, _size: int) -> Iterator[Progress]:
    """Tell nobody of the progress of a stage."""
    yield lambda _done: None


# Corpora


@dataclass(frozen=True)
class Coverage(Checked):
    """How a text and a vocabulary fit.

    Arguments:
        sentences: sentences of the text.
        words: words of the text, `</s>` not among them.
        types: different words of the text, `<unk>` among them where it occurs.
        vocabulary: size of the vocabulary, `</s>` and `<unk>` among it.
        unknown: words of the text that the vocabulary reads as `<unk>`.
        characters: of the words, all in all.
    """

    sentences: Count
    words: Count
    types: Natural
    vocabulary: Natural
    unknown: Natural
    characters: Natural = 0

    @property
    def share(self) -> float:
        """The share of the words that the vocabulary knows."""
        return 1.0 - self.unknown / self.words


@dataclass(frozen=True, eq=False)
class Corpus:
    """An encoded text.

    Arguments:
        ids: int32, `words + sentences` of them: w1 w2 ... 0 w1 ... 0; usually a map of a file.
        offsets: int64, where each sentence begins in `ids`, and the end.
        unknown: how many of the words are `<unk>`.
        types: how many different words the text had.
        characters: how many characters the words of the text had, all in all.
        key: tells it apart from any other text or settings; empty where it was encoded in memory.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    unknown: int
    types: int
    characters: int = 0
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

    def beginning(self, predictions: int) -> "Corpus":
        """Return the first sentences, of at least so many predictions, if there are; other counts stay the whole's."""
        sentences = min(int(np.searchsorted(self.offsets, predictions)), self.sentences)
        return replace(self, ids=self.ids[: self.offsets[sentences]], offsets=self.offsets[: sentences + 1])

    def coverage(self, vocabulary: Vocabulary) -> Coverage:
        """Tell how the text and the vocabulary that it was encoded with fit."""
        return Coverage(self.sentences, self.words, self.types, len(vocabulary), self.unknown, self.characters)


def same_text(one: Corpus, other: Corpus) -> bool:
    """Tell whether two texts that were encoded with the same vocabulary are the same, sentence by sentence."""
    length = len(one.ids)  # ends of sentences are among the ids
    blocks = (slice(place, place + BLOCK) for place in range(0, length, BLOCK))
    return len(other.ids) == length and all(np.array_equal(one.ids[block], other.ids[block]) for block in blocks)


@dataclass(frozen=True, eq=False)
class TrainingText:
    """All that training needs of its text.

    Arguments:
        tokenizer: how the text was cut into words; to be stored with the model.
        vocabulary: made from the training part alone.
        train: the training part.
        valid: the part held out; None where none was asked for.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    train: Corpus
    valid: Corpus | None


# From texts to corpora


def prepare(
    sources: Sequence[Source],
    folder: Path,
    text_settings: TextSettings,
    vocabulary_settings: VocabularySettings,
    *,
    known: tuple[Tokenizer, Vocabulary] | None = None,
    expected: str | None = None,
    valid_fraction: float = 0.0,
    processes: int = 1,
    stage: Stage = silent,
) -> TrainingText:
    """Tokenize a training text, hold a part out, make the vocabulary and encode; or find all of that in the cache.

    Arguments:
        sources: the files in order.
        folder: where the result is kept, in `encoded-train`; made when missing.
        text_settings: how the text becomes words.
        vocabulary_settings: which of them get an id.
        known: what the text is cut and encoded with, as a model has it; the two settings are then of no account.
        expected: the key that the text must have, if any.
        valid_fraction: share of the sentences, from the end, that is held out before the vocabulary is made.
        processes: how many processes tokenize at the same time; the result does not depend on it.
        stage: called when a stage of the work begins.

    Raises TextError, VocabularyError or SettingsError; then nothing is kept.
    """
    entries.check_places(folder)
    job = _Job(sources, folder / _TRAIN, valid_fraction, processes, stage, [source.stamp() for source in sources])
    if known:
        return _prepare_known(job, expected, *known)
    return _prepare_new(job, expected, text_settings, vocabulary_settings)


def encode(
    sources: Sequence[Source],
    folder: Path,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    *,
    expected: str | None = None,
    processes: int = 1,
    stage: Stage = silent,
) -> Corpus:
    """Tokenize and encode a text with what a model has, or find the result in the cache, in `encoded-valid`.

    The other arguments and the errors are those of `prepare`.
    """
    entries.check_places(folder)
    job = _Job(sources, folder / _VALID, 0.0, processes, stage, [source.stamp() for source in sources])
    key = _key(job, [asdict(tokenizer), vocabulary.words], expected)
    entry = entries.find(job.place, key, vocabulary) or _built(job, key, tokenizer, lambda *_: vocabulary)
    return _corpora(entry, key)[0]


def encode_once(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    *,
    processes: int = 1,
    stage: Stage = silent,
) -> Corpus:
    """Tokenize and encode a text as `encode` does, but for one use: in files that go with the corpus, not in the cache.

    Raises TextError or SettingsError as `encode` does.
    """
    import tempfile

    with (
        entries.writing("temporary files", "make room, or name another folder in the environment variable TMPDIR"),
        tempfile.TemporaryDirectory(prefix="rnnlm-", ignore_cleanup_errors=True) as name,
    ):
        job = _Job(sources, Path(name), 0.0, processes, stage, ())
        facts = _encode_into(job.place, job, tokenizer, lambda *_: vocabulary)
        return _corpora(entries.opened(job.place, *facts), "")[0]  # what is mapped outlives its name


def reopen(
    folder: Path, train_key: str, valid_key: str, vocabulary: Vocabulary | None = None
) -> tuple[Corpus, Corpus] | None:
    """Find what `prepare` and `encode` made, by the corpora's keys, without the texts; None where it is gone.

    `vocabulary` is the one that both must be encoded with; without it, a training text that `prepare` encoded as
    something `known` is not found.
    """
    train = entries.find(folder / _TRAIN, train_key, vocabulary)
    if not train:
        return None
    if valid_key != train_key:
        valid = entries.find(folder / _VALID, valid_key, train.vocabulary)
        return (_corpora(train, train_key)[0], _corpora(valid, valid_key)[0]) if valid else None
    corpora = _corpora(train, train_key)
    return (corpora[0], corpora[1]) if len(corpora) == 2 else None


# Called with the counts of a text's words, in order of first appearance, and the number of its sentences.
_Make = Callable[[dict[str, int], int], Vocabulary]


class _Job(NamedTuple):
    """A text to encode, and where and how."""

    sources: Sequence[Source]
    place: Path
    held_out: float  # share of the sentences
    processes: int
    stage: Stage
    stamps: Sequence[tuple[int, int]]  # of the sources, before they are read

    @property
    def names(self) -> str:
        """What messages call the text."""
        return ", ".join(source.name for source in self.sources)

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return sum(source.size for source in self.sources)


def _prepare_known(job: _Job, expected: str | None, tokenizer: Tokenizer, vocabulary: Vocabulary) -> TrainingText:
    key = _key(job, [asdict(tokenizer), vocabulary.words, job.held_out], expected)
    entry = _found(job, key, vocabulary) or _built(job, key, tokenizer, lambda *_: vocabulary)
    return _training_text(entry, key, tokenizer)


def _prepare_new(
    job: _Job, expected: str | None, text_settings: TextSettings, vocabulary_settings: VocabularySettings
) -> TrainingText:
    def make(counts: dict[str, int], sentences: int) -> Vocabulary:
        return make_vocabulary(vocabulary_settings, counts, sentences, job.names, text_settings.lowercase)

    listed = words_to_know(vocabulary_settings, text_settings.lowercase)
    words_kept: object = listed or [vocabulary_settings.vocab_size, vocabulary_settings.min_count]
    key = _key(job, [asdict(text_settings), LEARNING_LIMIT, words_kept, job.held_out], expected)
    entry = _found(job, key)
    tokenizer = _stored_tokenizer(entry, text_settings) if entry else None
    if not entry or not tokenizer:
        with job.stage("learning where sentences end", min(job.size, LEARNING_LIMIT)) as progress:
            tokenizer = Tokenizer.learn(job.sources, text_settings, progress)
        entry = _built(job, key, tokenizer, make, own=True)
    return _training_text(entry, key, tokenizer)


def _found(job: _Job, key: str, vocabulary: Vocabulary | None = None) -> Entry | None:
    """Find an entry whose parts are the training part and the one that is to be held out."""
    entry = entries.find(job.place, key, vocabulary)
    return entry if entry and entry.cut == _cut(job, len(entry.offsets) - 1) else None


def _stored_tokenizer(entry: Entry, settings: TextSettings) -> Tokenizer | None:
    """Return the tokenizer that an entry holds; None where it is not what these settings may have made."""
    try:
        tokenizer = restore(Tokenizer, entry.tokenizer, "tokenizer")
    except (Unfit, RnnlmError):
        return None
    return tokenizer if tokenizer.settings == settings else None


def _built(job: _Job, key: str, tokenizer: Tokenizer, make: _Make, own: bool = False) -> Entry:
    """Encode a text into the cache; if `own`, together with the tokenizer and the vocabulary that were made of it."""
    stored = asdict(tokenizer) if own else None
    with entries.rebuilding(job.place) as partial:
        cut, parts, vocabulary = _encode_into(partial, job, tokenizer, make)
        if own:
            entries.write_vocabulary(partial, vocabulary)
        for source, stamp in zip(job.sources, job.stamps, strict=True):
            if source.stamp() != stamp:  # the key, which was made before, may be of another text
                message = "has changed while it was read; begin again when it is complete"
                raise TextError(f"{source.name}: {message}")
        entries.finish(partial, key, cut, parts, stored)
    return entries.opened(job.place, cut, parts, vocabulary)


def _encode_into(folder: Path, job: _Job, tokenizer: Tokenizer, make: _Make) -> tuple[int, list[Part], Vocabulary]:
    """Write a text's ids and offsets; return the cut, what is to be known of each part, and the vocabulary."""
    words = _number(folder, job, tokenizer)
    offsets = np.memmap(folder / "offsets", "<i8", mode="r")
    cut = _cut(job, len(offsets) - 1)
    counts = _counts(folder, sorted({0, int(offsets[cut]), int(offsets[-1])}), len(words))
    seen = {word: count for word, count in zip(words[1:], counts[0][1:].tolist(), strict=True) if count}
    vocabulary = make(seen, cut)
    return cut, _renumber(folder, vocabulary, words, counts, job.stage), vocabulary


def _cut(job: _Job, sentences: int) -> int:
    """Return how many of the sentences are for training: all but those to be held out."""
    if not job.held_out:
        return sentences
    if sentences < 2:
        message = "there is a single sentence, so none can be held out; give --lines if each line is one, or --valid"
        raise SettingsError(f"{job.names}: {message}")
    return sentences - min(max(round(sentences * job.held_out), 1), sentences - 1)


class _Numbered(NamedTuple):
    """A block of a text as numbers.

    Arguments:
        process: the one that has numbered it, by its own count.
        new: the words that this process meets for the first time, in order of first appearance.
        numbers: int32, of the block's words, 0 at each end of a sentence.
    """

    process: int
    new: list[str]
    numbers: NDArray[np.int32]


class _Numbering(dict[str, int]):
    """Numbers of words, in order of first appearance; asking for a new word numbers it."""

    def __init__(self) -> None:
        super().__init__({SENTENCE_END: 0})

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number

    def __call__(self, block: str) -> _Numbered:
        """Return a block's words as numbers; the block is in its plain form."""
        known = len(self)
        words = block.replace("\n", f" {SENTENCE_END} ")[:-1].split(" ")
        numbers = np.fromiter(map(self.__getitem__, words), "<i4", len(words))
        new = list(itertools.islice(reversed(self), len(self) - known))
        return _Numbered(os.getpid(), new[::-1], numbers)


class _Merger:
    """Brings the numbers of several processes into one numbering, which is that of a process that sees all blocks."""

    def __init__(self) -> None:
        self.words = [SENTENCE_END]
        self._numbers = _Numbering()
        self._numbers_of: dict[int, array[int]] = {}  # for each process: by its own numbers, ours

    def __call__(self, block: _Numbered) -> NDArray[np.int32]:
        """Return our numbers of a block; the next one of the text must come next."""
        if block.process == os.getpid():  # there is no other process
            self.words += block.new
            return block.numbers
        ours = self._numbers_of.setdefault(block.process, array("i", [0]))
        self.words += [word for word in block.new if word not in self._numbers]
        ours.extend(map(self._numbers.__getitem__, block.new))
        return np.frombuffer(ours, np.int32)[block.numbers]


def _number(folder: Path, job: _Job, tokenizer: Tokenizer) -> list[str]:
    """Write a text as numbers in order of first appearance, and its sentences' offsets; return the words."""
    merged = _Merger()
    length = 0
    with (
        _starts_named(),
        job.stage("tokenizing", job.size) as progress,
        contextlib.closing(tokenizer.made_of_blocks(_Numbering, job.sources, job.processes, progress)) as blocks,
        (folder / "ids").open("wb") as ids_file,
        (folder / "offsets").open("wb") as offsets_file,
    ):
        entries.write(offsets_file, np.zeros(1, "<i8"))
        for block in blocks:
            ids = merged(block)
            entries.write(ids_file, ids)
            entries.write(offsets_file, (np.flatnonzero(ids == 0) + (length + 1)).astype("<i8"))
            length += len(ids)
    return merged.words


@contextlib.contextmanager
def _starts_named() -> Iterator[None]:
    """Tell the user what to do where the system has no room for processes."""
    try:
        yield
    except NotStartedError as error:
        raise SettingsError(f"the processes that tokenize cannot be started ({error}); give --threads 1") from None


def _counts(folder: Path, bounds: list[int], types: int) -> list[NDArray[np.int64]]:
    """Count every number in each part, reading the file block by block; `bounds` are where parts begin and end."""
    counts = []
    with (folder / "ids").open("rb") as file:
        for start, stop in itertools.pairwise(bounds):
            count = np.zeros(types, np.int64)
            for place in range(start, stop, BLOCK):
                block = file.read(4 * min(BLOCK, stop - place))
                count += np.bincount(np.frombuffer(block, "<i4"), minlength=types)
            counts.append(count)
    return counts


def _renumber(
    folder: Path, vocabulary: Vocabulary, words: list[str], counts: list[NDArray[np.int64]], stage: Stage
) -> list[Part]:
    """Put ranks in place of the numbers in the file; return what is to be known of each part."""
    ranks = vocabulary.encode(words).astype("<i4")
    path = folder / "ids"
    with stage("numbering words", path.stat().st_size) as progress, path.open("r+b") as file:
        while block := file.read(4 * BLOCK):
            file.seek(-len(block), os.SEEK_CUR)
            entries.write(file, ranks[np.frombuffer(block, "<i4")])
            progress(len(block))
    unknown = ranks[1:] == vocabulary.unknown_id
    lengths = np.array([len(word) for word in words[1:]])
    parts = (count[1:] for count in counts)  # </s>, the first, is no word
    return [Part(int(n[unknown].sum()), int(np.count_nonzero(n)), int(n @ lengths)) for n in parts]


def _key(job: _Job, choices: list[Any], expected: str | None) -> str:
    """Return what tells apart texts and settings with other results; raises SettingsError if another is expected."""
    import hashlib

    with job.stage("checking the text", job.size) as progress:
        content = [source.digest(progress) for source in job.sources]
    facts = [_FORMAT, nltk_version(), content, choices]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if expected not in (None, key):
        message = "this is not the text, or not cut into the same words, that the model was trained on so far"
        raise SettingsError(f"{job.names}: {message}; restore it to resume, or train anew with --overwrite")
    return key


def _training_text(entry: Entry, key: str, tokenizer: Tokenizer) -> TrainingText:
    train, *valid = _corpora(entry, key)
    return TrainingText(tokenizer, entry.vocabulary, train, valid[0] if valid else None)


def _corpora(entry: Entry, key: str) -> list[Corpus]:
    """Return an entry's parts as corpora."""
    last = len(entry.offsets) - 1
    corpora = []
    for (first, end), part in zip([(0, entry.cut), (entry.cut, last)], entry.parts, strict=False):
        start, stop = int(entry.offsets[first]), int(entry.offsets[end])
        offsets = entry.offsets[first : end + 1]
        corpora.append(Corpus(entry.ids[start:stop], offsets - start if start else offsets, *part, key))
    return corpora
