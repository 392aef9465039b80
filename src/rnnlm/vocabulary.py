"""Words to ids and back; ids are frequency ranks, so that groups of words of like frequency are slices."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import VocabularyError
from rnnlm.settings import VocabularySettings

UNKNOWN = "<unk>"  # the unknown word, also where a text has it literally
SENTENCE_START, SENTENCE_END = "<s>", "</s>"  # never words of a text


class Vocabulary:
    """Words, their ids and how often each occurs in the training text.

    Id 0 is `</s>`. The others are ranked by count, equal ones in order of first appearance; `<unk>` stands where its
    count puts it, after words of the same count, so last when it never occurs.

    Arguments:
        words: every word, by id; must contain `</s>`, first, and `<unk>`.
        counts: occurrences in the training text, by id; those of `</s>` are the sentences, those of `<unk>` all
            words that have no id of their own.
    """

    def __init__(self, words: Sequence[str], counts: "Sequence[int] | NDArray[np.int64]") -> None:
        self.words = list(words)
        self.counts = np.array(counts, dtype=np.int64)  # (V,)
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) < len(self.words) or self.counts.shape != (len(self.words),):
            raise VocabularyError("a vocabulary must have every word once, and one count for each")
        if self.words[:1] != [SENTENCE_END] or UNKNOWN not in self.ids:
            raise VocabularyError(f"a vocabulary must begin with {SENTENCE_END} and contain {UNKNOWN}")
        self.unknown_id = self.ids[UNKNOWN]

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.words == other.words and np.array_equal(self.counts, other.counts)

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], sentences: int, size: int | None = None, min_count: int = 1
    ) -> "Vocabulary":
        """Make the vocabulary of a training text from its words' counts.

        Arguments:
            counts: occurrences of each word, in order of first appearance; `<unk>` may be among them.
            sentences: the number of sentences.
            size: the most words to keep, `</s>` and `<unk>` included; None keeps all.
            min_count: words that occur less often are not kept.

        Raises VocabularyError when no word can be kept.
        """
        _check_size(size)
        words = [word for word in counts if word != UNKNOWN]
        ranked = _ranked(words, counts)
        kept = [word for word in ranked if counts[word] >= min_count][: None if size is None else size - 2]
        if not kept:
            if not words:
                raise VocabularyError(f"the text has no word but {UNKNOWN}; give one with words")
            raise VocabularyError(f"no word occurs {min_count} times or more; give a smaller --min-count")
        return cls._of(kept, counts, sentences)

    @classmethod
    def from_file(cls, path: "str | os.PathLike[str]", counts: Mapping[str, int], sentences: int) -> "Vocabulary":
        """Make a vocabulary of the words in a file, ranked by their counts in the training text.

        The file is UTF-8 and has one word a line; after a blank or tab there may be a count, which is ignored.
        `</s>` and `<unk>` need not be in it. Words that the training text lacks come last, as the file orders them.

        Raises VocabularyError, with the line, when the file cannot be read or names a word twice or `<s>`.
        """
        listed = _listed(Path(path))
        seen = [word for word in counts if word in listed]
        unseen = [word for word in listed if word not in counts]
        kept = [word for word in _ranked(seen, counts) + unseen if word not in (SENTENCE_END, UNKNOWN)]
        if not kept:
            raise VocabularyError(f"{path} has no words; put one on each line")
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
        find, unknown = self.ids.get, self.unknown_id
        return np.array([find(word, unknown) for word in words], dtype=np.int32)

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
        try:
            words = np.asarray(arrays["words"], dtype=np.uint8).tobytes().decode().split("\n")
            return cls(words, arrays["counts"])
        except (KeyError, TypeError, ValueError):
            raise VocabularyError("the stored vocabulary is damaged; make its file again") from None


def words_to_know(settings: VocabularySettings) -> list[str]:
    """Return the words of the settings' file, none without one; raises VocabularyError before any work is done."""
    return Vocabulary.from_file(settings.vocab, {}, 0).words if settings.vocab else []


def make_vocabulary(settings: VocabularySettings, counts: Mapping[str, int], sentences: int) -> Vocabulary:
    """Make the vocabulary of a training text; the arguments are those of `Vocabulary.from_counts`."""
    if settings.vocab:
        return Vocabulary.from_file(settings.vocab, counts, sentences)
    min_count = settings.min_count or (1 if UNKNOWN in counts else 2)
    return Vocabulary.from_counts(counts, sentences, settings.vocab_size, min_count)


def _check_size(size: int | None) -> None:
    if size is not None and size < 3:
        message = f"a vocabulary of {size} has no room for a word beside {SENTENCE_END} and {UNKNOWN}"
        raise VocabularyError(f"{message}; --vocab-size must be at least 3")


def _ranked(words: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Sort by falling count; equal ones keep their order."""
    return sorted(words, key=counts.__getitem__, reverse=True)


def _listed(path: Path) -> dict[str, int]:
    """Return the words of a vocabulary file, each with its line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise VocabularyError(f"{path}, line {line}: the line is not valid UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise VocabularyError(f"{path} cannot be read: {error.strerror or error}") from None
    listed: dict[str, int] = {}
    for line, fields in enumerate((row.replace("\r", "").replace("\t", " ").split(" ") for row in text.split("\n")), 1):
        word, *rest = [entry for entry in fields if entry] or [""]
        if not word:
            continue
        if len(rest) > 1 or not all(map(_is_number, rest)):
            raise VocabularyError(f"{path}, line {line}: put one word on each line, and at most a count after it")
        if word == SENTENCE_START:
            raise VocabularyError(f"{path}, line {line}: {word} is never predicted and has no id; remove the line")
        if word in listed:
            raise VocabularyError(f"{path}, line {line}: {word!r} is on line {listed[word]} too; remove one")
        listed[word] = line
    return listed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
