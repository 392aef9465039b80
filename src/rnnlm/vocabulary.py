"""Words to ids and back; ids are frequency ranks, so that groups of words of like frequency are slices."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import VocabularyError
from rnnlm.files import open_plain, reason
from rnnlm.settings import VocabularySettings

UNKNOWN = "<unk>"  # the unknown word, also where a text has it literally
SENTENCE_START, SENTENCE_END = "<s>", "</s>"  # never words of a text

_FILE_LIMIT = 2**30  # bytes of a vocabulary file
_LINE_LIMIT = 2**23  # bytes of one of its lines: a text has no word of more than two million characters
# What no text has in a word: blanks, control characters, halves of surrogate pairs and what is no character at all.
_FOREIGN = re.compile("[\0- \x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Vocabulary:
    """Words, their ids and how often each occurs in the training text.

    Id 0 is `</s>`. The others are ranked by count, equal ones in order of first appearance; `<unk>` stands where its
    count puts it, after words of the same count, so last when it never occurs.

    Arguments:
        words: (V,) every word, by id; must contain `</s>`, first, and `<unk>`.
        counts: (V,) int64, occurrences in the training text, by id; those of `</s>` are the sentences, those of
            `<unk>` all words that have no id of their own. Behind `</s>` they never rise.

    Raises VocabularyError when they are something else; nothing is converted.
    """

    def __init__(self, words: Sequence[str], counts: "Sequence[int] | NDArray[np.int64]") -> None:
        self.words = list(words)
        if not all(isinstance(word, str) and word for word in self.words) or _FOREIGN.search("".join(self.words)):
            raise VocabularyError("a vocabulary must have words without blanks and control characters")
        self.ids = {word: number for number, word in enumerate(self.words)}
        self.counts = _whole_numbers(counts)  # (V,)
        if len(self.ids) < len(self.words) or len(self.counts) != len(self.words):
            raise VocabularyError("a vocabulary must have every word once, and one count for each")
        if self.words[:1] != [SENTENCE_END] or UNKNOWN not in self.ids or SENTENCE_START in self.ids:
            message = f"begin with {SENTENCE_END}, contain {UNKNOWN} and not contain {SENTENCE_START}"
            raise VocabularyError(f"a vocabulary must {message}")
        if self.counts.min() < 0 or np.any(self.counts[2:] > self.counts[1:-1]) or sum(self.counts.tolist()) >= 2**63:
            raise VocabularyError("a vocabulary must have counts that fall from word to word, and no negative ones")
        self.unknown_id = self.ids[UNKNOWN]

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.words == other.words and np.array_equal(self.counts, other.counts)

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        sentences: int,
        size: int | None = None,
        min_count: int = 1,
        text: str = "the text",
    ) -> "Vocabulary":
        """Make the vocabulary of a training text from its words' counts.

        Arguments:
            counts: occurrences of each word, in order of first appearance; `<unk>` may be among them.
            sentences: the number of sentences.
            size: the most words to keep, `</s>` and `<unk>` included; None keeps all.
            min_count: words that occur less often are not kept.
            text: what messages call the text.

        Raises VocabularyError when no word can be kept.
        """
        words = [word for word in counts if word != UNKNOWN]
        ranked = _ranked(words, counts)
        kept = [word for word in ranked if counts[word] >= min_count][: None if size is None else size - 2]
        if not kept:
            if not words:
                raise VocabularyError(f"{text}: there is no word but {UNKNOWN}; give a text with words")
            message = f"no word occurs {min_count} times or more; give --min-count 1 or a longer text"
            raise VocabularyError(f"{text}: {message}")
        return cls._of(kept, counts, sentences)

    @classmethod
    def from_file(
        cls, path: "str | os.PathLike[str]", counts: Mapping[str, int], sentences: int, lowercase: bool = False
    ) -> "Vocabulary":
        """Make a vocabulary of the words in a file, ranked by their counts in the training text.

        The file is UTF-8 and has one word a line; after a blank or tab there may be a count, which is ignored.
        `</s>` and `<unk>` need not be in it. Words that the training text lacks come last, as the file orders them.
        With `lowercase` words are folded to lower case, as the text's are; words that then are equal are one.

        Raises VocabularyError, with the line, when the file cannot be read, names a word twice or `<s>`, or has
        control characters.
        """
        listed = listed_words(Path(path), lowercase=lowercase)
        seen = [word for word in counts if word in listed]
        unseen = [word for word in listed if word not in counts]
        kept = [word for word in _ranked(seen, counts) + unseen if word not in (SENTENCE_END, UNKNOWN)]
        if not kept:
            raise VocabularyError(f"{path}: there are no words in it; put one on each line")
        return cls._of(kept, counts, sentences)

    @classmethod
    def _of(cls, kept: list[str], counts: Mapping[str, int], sentences: int) -> "Vocabulary":
        """Put `</s>` before and `<unk>` among words that are ranked already."""
        kept_counts = np.array([counts.get(word, 0) for word in kept], dtype=np.int64)
        unknown = sum(counts.values()) - int(kept_counts.sum())
        # Counts fall, so their negatives rise; to the right is behind equal ones.
        place = int(np.searchsorted(-kept_counts, -unknown, side="right"))
        words = [SENTENCE_END, *kept[:place], UNKNOWN, *kept[place:]]
        return cls(words, np.concatenate(([sentences], kept_counts[:place], [unknown], kept_counts[place:])))

    def encode(self, words: Iterable[str]) -> NDArray[np.int32]:
        """Return the id of each word, that of `<unk>` for words without one."""
        return np.fromiter(map(self.ids.get, words, itertools.repeat(self.unknown_id)), np.int32)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the word of each id."""
        words = self.words
        return [words[number] for number in ids]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the vocabulary as arrays: `words`, all words in UTF-8 with line feeds between them, and `counts`."""
        return {"words": np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8), "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Vocabulary":
        """Restore a vocabulary from what `to_arrays` gave; raises VocabularyError when it is something else."""
        with contextlib.suppress(KeyError, UnicodeDecodeError, VocabularyError):
            words = arrays["words"]
            if words.dtype == np.uint8 and words.ndim == 1:
                return cls(words.tobytes().decode().split("\n"), arrays["counts"])
        raise VocabularyError("the stored vocabulary is damaged; make its file again")


def words_to_know(settings: VocabularySettings, lowercase: bool = False) -> list[str]:
    """Return the words of the settings' file, none without one; raises VocabularyError before any work is done."""
    return Vocabulary.from_file(settings.vocab, {}, 0, lowercase).words if settings.vocab else []


def make_vocabulary(
    settings: VocabularySettings,
    counts: Mapping[str, int],
    sentences: int,
    text: str = "the text",
    lowercase: bool = False,
) -> Vocabulary:
    """Make the vocabulary of a training text.

    The other arguments and the errors are those of `Vocabulary.from_counts` and `Vocabulary.from_file`. Words that
    occur once teach the model what to expect of `<unk>`, unless the text teaches that by an `<unk>` of its own.
    """
    if settings.vocab:
        return Vocabulary.from_file(settings.vocab, counts, sentences, lowercase)
    min_count = settings.min_count or (1 if UNKNOWN in counts else 2)
    return Vocabulary.from_counts(counts, sentences, settings.vocab_size, min_count, text)


def control_character(text: str) -> str | None:
    """Name the first character that no word has, in the first part of a sentence; None where there is none."""
    found = _FOREIGN.search(text)
    return f"U+{ord(found.group()):04X} is a control character" if found else None


def _whole_numbers(counts: "Sequence[int] | NDArray[np.int64]") -> NDArray[np.int64]:
    """Return counts as an array of their own, refusing what NumPy would convert."""
    whole = isinstance(counts, np.ndarray) or all(type(count) is int and abs(count) < 2**63 for count in counts)
    numbers: NDArray[Any] = np.array(counts) if whole else np.empty(0)
    if numbers.dtype != np.int64 or numbers.ndim != 1:
        raise VocabularyError("a vocabulary must have a row of whole numbers as its counts")
    return numbers


def _ranked(words: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Sort by falling count; equal ones keep their order."""
    return sorted(words, key=counts.__getitem__, reverse=True)


def listed_words(path: Path, option: str = "--vocab", lowercase: bool = False) -> dict[str, int]:
    """Return the words of a file in its order, folded if `lowercase`, each with its line.

    `option` is the one that names the file. Raises VocabularyError as `Vocabulary.from_file` does.
    """
    found: dict[str, int] = {}  # as they stand in the file
    listed: dict[str, int] = {}
    with _opened(path, option) as file:
        for line, entry in enumerate(_entries(path, file), 1):
            if not entry:
                continue
            word, *rest = entry
            if len(rest) > 1 or not all(map(_is_number, rest)):
                raise VocabularyError(f"{path}, line {line}: put one word on each line, and at most a count after it")
            if word in found:
                raise VocabularyError(f"{path}, line {line}: {word[:50]!r} is on line {found[word]} too; remove one")
            found[word] = line
            word = word.lower() if lowercase else word
            if word == SENTENCE_START:
                raise VocabularyError(f"{path}, line {line}: {word} is never predicted and has no id; remove the line")
            listed.setdefault(word, line)
    return listed


@contextlib.contextmanager
def _opened(path: Path, option: str) -> Iterator[BinaryIO]:
    """Open a vocabulary file, and turn what the system says of it into a sentence that names it."""
    remedy = f"name another file with {option}"
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _FILE_LIMIT:
                raise VocabularyError(f"{path}: a file of {size:,} bytes is no list of words; {remedy}")
            yield file
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None


def _entries(path: Path, file: BinaryIO) -> Iterator[list[str]]:
    """Yield what blanks separate on each line."""
    line = 0
    while row := file.readline(_LINE_LIMIT + 1):
        line += 1
        if len(row) > _LINE_LIMIT:
            message = f"the line has more than {_LINE_LIMIT:,} bytes; put one word on each line"
            raise VocabularyError(f"{path}, line {line}: {message}")
        try:
            text = row.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError:
            raise VocabularyError(f"{path}, line {line}: the line is not valid UTF-8; save the file as UTF-8") from None
        entry = text.rstrip("\r\n").replace("\t", " ").split(" ")
        if foreign := control_character("".join(entry)):
            raise VocabularyError(f"{path}, line {line}: {foreign}, and no text has it in a word; remove it")
        yield [part for part in entry if part]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text, re.ASCII) is not None
