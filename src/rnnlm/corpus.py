"""Encoded corpora on disk, memory-mapped, and their cache.

A corpus is one array of ids on disk, sentence after sentence, each ended by 0 (`</s>`), with the places where
sentences begin. It is mapped into memory, never loaded. It is made in one pass over the text, which numbers words
in order of first appearance, and one over the numbers, which replaces them by ranks; so the text is tokenized once,
and no more is held in memory than a block of it and its different words.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import SettingsError
from rnnlm.settings import TextSettings, VocabularySettings
from rnnlm.sources import Progress, Source
from rnnlm.text import LEARNING_LIMIT, Tokenizer, nltk_version
from rnnlm.vocabulary import SENTENCE_END, Vocabulary, make_vocabulary, words_to_know

_FORMAT = 1  # of the cache; raised whenever the same text and settings would give other ids
_BLOCK = 2**20  # ids or bytes handled at once

# Called when a stage of the work begins, with its name and size in bytes; gives what is told of the progress.
Stage = Callable[[str, int], AbstractContextManager[Progress]]


@contextlib.contextmanager
def silent(_title: str, _size: int) -> Iterator[Progress]:
    """Tell nobody of the progress of a stage."""
    yield lambda _done: None


# Corpora


@dataclass(frozen=True)
class Coverage:
    """How a text and a vocabulary fit.

    Arguments:
        sentences: sentences of the text.
        words: words of the text, `</s>` not among them.
        types: different words of the text, `<unk>` among them where it occurs.
        vocabulary: size of the vocabulary, `</s>` and `<unk>` among it.
        unknown: words of the text that the vocabulary reads as `<unk>`.
    """

    sentences: int
    words: int
    types: int
    vocabulary: int
    unknown: int
    characters: int = 0

    @property
    def share(self) -> float:
        """The share of the words that the vocabulary knows."""
        return 1.0 - self.unknown / self.words

    @property
    def unknown_never_occurs(self) -> bool:
        """Whether the text teaches nothing about `<unk>`, so that a model's probability for it is made up."""
        return self.unknown == 0


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
        expected: the key that the text must have, if any.
        valid_fraction: share of the sentences, from the end, that is held out before the vocabulary is made.
        processes: how many processes tokenize at the same time; the result does not depend on it.
        stage: called when a stage of the work begins.

    Raises TextError, VocabularyError or SettingsError; then nothing is kept.
    """
    if not 0.0 <= valid_fraction < 1.0:
        raise SettingsError(f"--valid-fraction is {valid_fraction:g}; it must be at least 0 and less than 1")
    listed = words_to_know(vocabulary_settings)
    words_kept: object = listed or [vocabulary_settings.vocab_size, vocabulary_settings.min_count]
    entry = folder / "encoded-train"
    key = _key(sources, [asdict(text_settings), LEARNING_LIMIT, words_kept, valid_fraction], stage, expected)
    facts = _find(entry, key)
    if facts:
        return _training_text(entry, facts, cached=True)
    with stage("learning where sentences end", min(_size(sources), LEARNING_LIMIT)) as progress:
        tokenizer = Tokenizer.learn(sources, text_settings, progress)
    with _rebuilding(entry) as partial:
        words = _number(tokenizer, sources, partial, processes, stage)
        cut, bounds = _cut(partial, valid_fraction)
        counts = _counts(partial, bounds, len(words))
        seen = {word: count for word, count in zip(words[1:], counts[0][1:].tolist(), strict=True) if count}
        vocabulary = make_vocabulary(vocabulary_settings, seen, cut)
        parts = _renumber(partial, vocabulary, words, counts, stage)
        _write_vocabulary(partial, vocabulary)
        facts = {"key": key, "cut": cut, "parts": parts, "tokenizer": tokenizer.to_json()}
        _finish(partial, facts)
    return _training_text(entry, facts, cached=False)


def encode(
    sources: Sequence[Source],
    folder: Path,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    *,
    name: str = "valid",
    expected: str | None = None,
    processes: int = 1,
    stage: Stage = silent,
) -> Corpus:
    """Tokenize and encode a text with what a model has, or find the result in the cache, in `encoded-<name>`.

    The other arguments and the errors are those of `prepare`.
    """
    entry = folder / f"encoded-{name}"
    key = _key(sources, [tokenizer.to_json(), vocabulary.words], stage, expected)
    facts = _find(entry, key)
    if not facts:
        with _rebuilding(entry) as partial:
            facts = {"key": key, "parts": _encode_into(partial, sources, tokenizer, vocabulary, processes, stage)}
            _finish(partial, facts)
    return _corpora(entry, facts)[0]


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
    with tempfile.TemporaryDirectory(prefix="rnnlm-") as folder, _writing(Path(folder)):
        parts = _encode_into(Path(folder), sources, tokenizer, vocabulary, processes, stage)
        return _corpora(Path(folder), {"key": "", "parts": parts})[0]  # what is mapped outlives its name


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


def _encode_into(
    folder: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    processes: int,
    stage: Stage,
) -> list[dict[str, int]]:
    """Write a text's ids and offsets; return what is to be known of its one part."""
    words = _number(tokenizer, sources, folder, processes, stage)
    _, bounds = _cut(folder, 0.0)
    return _renumber(folder, vocabulary, words, _counts(folder, bounds, len(words)), stage)


def _size(sources: Sequence[Source]) -> int:
    return sum(source.size for source in sources)


class _Numbering(dict[str, int]):
    """Numbers of words, in order of first appearance; asking for a new word numbers it."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def _number(tokenizer: Tokenizer, sources: Sequence[Source], partial: Path, processes: int, stage: Stage) -> list[str]:
    """Write a text as numbers in order of first appearance, and its sentences' offsets; return the words."""
    numbers = _Numbering({SENTENCE_END: 0})
    length = 0
    with (
        stage("tokenizing", _size(sources)) as progress,
        contextlib.closing(tokenizer.blocks(sources, processes, progress)) as blocks,
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


def _key(sources: Sequence[Source], choices: list[Any], stage: Stage, expected: str | None) -> str:
    """Return what tells apart texts and settings with other results; raises SettingsError if another is expected."""
    with stage("checking the text", _size(sources)) as progress:
        content = [source.digest(progress) for source in sources]
    facts = [_FORMAT, nltk_version(), content, choices]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if expected not in (None, key):
        names = ", ".join(source.name for source in sources)
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
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the system says of a folder into a sentence that names it."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be written: {error.strerror or error}; make room, or name another folder"
        ) from None


@contextlib.contextmanager
def _rebuilding(entry: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the entry's place if all goes well, and goes if it does not."""
    partial = entry.with_name(f"{entry.name}.partial")
    try:
        with _writing(entry.parent):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            if entry.exists():
                shutil.rmtree(entry)
            partial.rename(entry)
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


def same_text(a, b):
    return False
