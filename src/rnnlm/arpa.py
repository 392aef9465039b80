"""N-gram models in ARPA files, plain or gzip, and in the binaries of KenLM.

    log p(w | h) = log p of the longest stored h'w + the back-offs of the longer histories, 0 where one is not stored

An n-gram is a key of one dict, its words between blanks; its two numbers are single-precision, and are added up, as
KenLM's are, so that sums agree to the last bit.
"""

from __future__ import annotations

import itertools
import math
import mmap
import re
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import ModelError
from rnnlm.files import open_plain, reason
from rnnlm.scoring import each_sentence
from rnnlm.sources import Progress, Source, shown
from rnnlm.vocabulary import SENTENCE_END, SENTENCE_START, UNKNOWN

MAGIC = b"mmap lm http://kheafield.com/code"
"""How a binary of KenLM begins."""

_UNSEEN = -100.0  # log10 p of <unk> where a file has none, as in KenLM
_GREATEST = 30.0  # a back-off, base 10, is smaller
_ROUNDED = 1e-3  # a log10 p that is greater is no rounding
_ORDERS = 64  # more is no model
_COUNT = re.compile(r"ngram\s+(\d{1,9})\s*=\s*(\d{1,18})")
_MARKS = (SENTENCE_START, UNKNOWN)  # never predicted, and what stands for the rest


class NGrams:
    """What n-gram models of both kinds answer."""

    words: Collection[str] = frozenset()  # what is predicted under its own name, `</s>` among it
    carries_state = False

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p, natural, of the words of each sentence and of its `</s>`; each is read by itself.

        Raises ModelError where back-offs make a probability greater than 1.
        """
        raise NotImplementedError

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return the length (n + 1) of the n-gram by which each word of a sentence, and its `</s>`, is predicted."""
        raise NotImplementedError

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each word, as KenLM counts them: `<unk>` is 0, the others from 1 in the order of the file."""
        raise NotImplementedError

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Say of each word whether it is read as `<unk>`."""
        return [word not in self.words for word in words]


class Arpa(NGrams):
    """An n-gram model as an ARPA file gives it.

    Arguments:
        order: the most words of an n-gram.
        ngrams: the number of each n-gram, its words between blanks.
        log_p, backoff: base 10, by number.
    """

    def __init__(self, order: int, ngrams: dict[str, int], log_p: array[float], backoff: array[float]) -> None:
        self.order, self._ngrams, self._log_p, self._backoff = order, ngrams, log_p, backoff

    def next_log_probs(self, words: Sequence[str]) -> dict[str, float]:
        """Return log p, natural, of each word and of `<unk>` and `</s>` after the words that begin a sentence."""
        known = [SENTENCE_START, *(word if word in self.words else UNKNOWN for word in words)]
        history = known[max(0, len(known) - self.order + 1) :]
        following = [*self.words, UNKNOWN]
        log_p = _natural(_summed([self._word(history, word) for word in following]))
        return dict(zip(following, log_p.tolist(), strict=True))

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p as `NGrams.log_probs` does."""
        terms = [own for words in sentences for _, own in self._sentence(words)]
        return each_sentence(_natural(_summed(terms)), sentences)

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return the lengths (n + 1) of n-grams as `NGrams.lengths` does."""
        return [history + 2 - len(own) for history, own in self._sentence(words)]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each word as in `NGrams.numbers`."""
        unigrams = itertools.takewhile(lambda ngram: " " not in ngram, self._ngrams)
        return {UNKNOWN: 0, **{word: at for at, word in enumerate((w for w in unigrams if w != UNKNOWN), 1)}}

    def _sentence(self, words: Sequence[str]) -> Iterator[tuple[int, list[float]]]:
        """Yield for each word of a sentence and its `</s>` how many words are before it, and what `_word` returns."""
        history = [SENTENCE_START]
        for word in (*words, SENTENCE_END):
            known = word if word in self.words else UNKNOWN
            history = history[max(0, len(history) - self.order + 1) :]
            yield len(history), self._word(history, known)
            history.append(known)

    def _word(self, history: list[str], word: str) -> list[float]:
        """Return what log10 p of a word after a history of fewer words than the order is the sum of.

        The log10 p of an n-gram is first, then a back-off for each history that is too long, the shortest first.
        """
        find, backoffs = self._ngrams.get, list[float]()
        for start in range(len(history)):
            context = " ".join(history[start:])
            found = find(f"{context} {word}")
            if found is not None:
                return [self._log_p[found], *reversed(backoffs)]
            number = find(context)
            backoffs.append(0.0 if number is None else self._backoff[number])
        found = find(word)
        return [_UNSEEN if found is None else self._log_p[found], *reversed(backoffs)]


def _summed(terms: list[list[float]]) -> NDArray[np.float32]:
    """Add up what is given for each word (N,), from the first on, in single precision."""
    columns = [np.array(column, np.float32) for column in itertools.zip_longest(*terms, fillvalue=0.0)]
    return np.array(list(itertools.accumulate(columns))[-1] if columns else [], np.float32)


def _natural(log10_p: NDArray[Any]) -> NDArray[np.float64]:
    """Return natural logarithms; raises ModelError where a probability is greater than 1, but for rounding."""
    if log10_p.max(initial=0) > _ROUNDED:
        message = "the n-gram model gives a word a probability greater than 1, so its back-offs are wrong"
        raise ModelError(f"{message}; make its file again")
    return log10_p.astype(np.float64) * math.log(10)


def read_arpa(source: Source, progress: Progress | None = None) -> Arpa:
    """Read an ARPA file, of about 4.5 microseconds and 300 bytes of memory an n-gram.

    `progress` is told of the bytes read. Raises ModelError, with the line, where the file is no model, and TextError
    where it cannot be read.
    """
    with closing(source.rows(progress=progress)) as rows:
        return _read(_Lines(source.name, rows))


def _read(lines: _Lines) -> Arpa:
    counts = _counts(lines)
    ngrams: dict[str, int] = {}
    model = Arpa(len(counts), ngrams, log_p := array("f"), backoff := array("f"))
    for order, count in enumerate(counts, 1):
        last = _section(lines, order, count, order == len(counts), ngrams, log_p, backoff)
        if order == 1:
            model.words = frozenset(word for word in ngrams if word not in _MARKS)
        wanted = f"\\{order + 1}-grams:" if order < len(counts) else "\\end\\"
        if last != wanted:
            raise lines.error(f"{_said(last)} stands where {wanted} must stand; make the file again")
    for _ in lines:
        raise lines.error("there is text after \\end\\; remove it, or make the file again")
    if SENTENCE_END not in model.words:
        raise ModelError(f"{lines.name}: has no {SENTENCE_END}, so that no sentence ends; make it of whole sentences")
    return model


class _Lines:
    """The lines of a file that are not blank, without blanks around them, and the number of the last one."""

    def __init__(self, name: str, rows: Iterator[tuple[int, str]]) -> None:
        self.name, self._rows, self._number = name, rows, 0

    def __iter__(self) -> Iterator[str]:
        for number, row in self._rows:
            self._number = number
            if line := row.strip(" \t"):
                yield line

    def error(self, message: str) -> ModelError:
        """Return what is wrong with the last line, as an error."""
        return ModelError(f"{self.name}, line {max(1, self._number)}: {message}")


def _said(line: str) -> str:
    """Return the beginning of a line as a message may hold it."""
    return shown(repr(line[:40])) if line else "the end of the file"


def _counts(lines: _Lines) -> list[int]:
    """Read up to the first n-gram; return how many there are of each order."""
    if not any(line == "\\data\\" for line in lines):
        raise lines.error("there is no line \\data\\ up to here, so this is no ARPA file; name one, or another model")
    counts: list[int] = []
    last = ""
    for last in lines:
        found = _COUNT.fullmatch(last)
        if not found:
            break
        if int(found[1]) != len(counts) + 1 or len(counts) == _ORDERS:
            raise lines.error(f"the orders must be 1, 2, 3 and so on, up to {_ORDERS}; make the file again")
        counts.append(int(found[2]))
    if last != "\\1-grams:" or not counts:
        message = f"{_said(last)} stands where the counts, as in ngram 1=100, and then \\1-grams: must stand"
        raise lines.error(f"{message}; make the file again")
    return counts


def _section(
    lines: _Lines,
    order: int,
    count: int,
    highest: bool,
    ngrams: dict[str, int],
    log_ps: array[float],
    backoffs: array[float],
) -> str:
    """Read the n-grams of an order, and return the line that follows them."""
    before, blanks, line = len(ngrams), order - 1, ""
    for line in lines:
        if line[0] == "\\":
            break
        fields = line.replace("\t", " ").split(" ")
        if "" in fields:
            fields = [field for field in fields if field]
        try:
            log_p, backoff = float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        except ValueError:
            log_p = backoff = math.nan
        key = " ".join(fields[1 : order + 1])
        sound = "_" not in fields[0] and log_p <= 0 and -_GREATEST < backoff < _GREATEST and len(fields) <= order + 2
        if not sound or not key or key.count(" ") != blanks or (highest and backoff):
            raise lines.error(_wrong(fields, order, log_p, highest))
        if "<UNK>" in key:
            key = " ".join(UNKNOWN if word == "<UNK>" else word for word in fields[1 : order + 1])
        number = len(ngrams)
        if ngrams.setdefault(key, number) != number:
            raise lines.error(f"{_said(key)} stands in the file twice; remove one")
        if number - before == count:
            raise lines.error(f"there are more {order}-grams than the {count:,} announced; make the file again")
        log_ps.append(log_p)
        backoffs.append(backoff)
    else:
        line = ""
    if len(ngrams) - before != count:
        there = f"{count:,} {order}-grams are announced, and {len(ngrams) - before:,} are there"
        raise lines.error(f"{there}; the file is cut off or changed, so make it again")
    return line


def _wrong(fields: list[str], order: int, log_p: float, highest: bool) -> str:
    """Say what is wrong with the line of an n-gram."""
    if log_p > 0:
        return f"log10 p is {fields[0][:20]}, and a probability is at most 1; make the file again, with another tool"
    back = "" if highest else ", and perhaps its back-off, a number"
    words = f"{order} word{'s' * (order > 1)}"
    return f"{_said(' '.join(fields))} stands where log10 p, {words}{back} must stand; make the file again"


# KenLM's binaries


class KenlmBinary(NGrams):
    """An n-gram model in a binary of KenLM, read by its own package.

    Raises ModelError where the package is not installed, or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import kenlm
        except ImportError:
            remedy = "install it, as with pip install 'rnnlm-numpy[kenlm]', or name the ARPA file"
            raise ModelError(
                f"{shown(str(path))}: KenLM's package, which reads its binaries, is missing; {remedy}"
            ) from None
        try:
            self._kenlm: Any = kenlm
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError, UnicodeError) as error:
            message = " ".join(str(error).split())[:200].rstrip(".")
            raise ModelError(f"{shown(str(path))}: KenLM cannot read it ({message}); make it again") from None
        self.order: int = self._model.order
        self._list = _binary_words(path)
        self.words = frozenset(word for word in self._list if word not in _MARKS)
        if SENTENCE_END not in self.words or not all(word in self._model for word in self.words):
            raise ModelError(f"{shown(str(path))}: does not list its words; make it again, or name the ARPA file")

    def next_log_probs(self, words: Sequence[str]) -> dict[str, float]:
        """Return log p, natural, of each word and of `<unk>` and `</s>` after the words that begin a sentence."""
        before, after = self._kenlm.State(), self._kenlm.State()
        self._model.BeginSentenceWrite(before)
        for word in words:
            self._model.BaseScore(before, word if word in self.words else UNKNOWN, after)
            before, after = after, before
        following = [*self.words, UNKNOWN]
        log_p = _natural(np.array([self._model.BaseScore(before, word, after) for word in following]))
        return dict(zip(following, log_p.tolist(), strict=True))

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p as `NGrams.log_probs` does."""
        found = [self._scored(words, self._model.BaseScore) for words in sentences]
        return [_natural(np.array(log10_p)) for log10_p in found]

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return the lengths (n + 1) of n-grams as `NGrams.lengths` does."""
        return [full.ngram_length for full in self._scored(words, self._model.BaseFullScore)]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each word as in `NGrams.numbers`."""
        return {word: number for number, word in enumerate(self._list)}

    def _scored(self, words: Sequence[str], score: Callable[[Any, str, Any], Any]) -> list[Any]:
        """Return what a function of the package says of the words of a sentence and of its `</s>`."""
        before, after, found = self._kenlm.State(), self._kenlm.State(), []
        self._model.BeginSentenceWrite(before)
        for word in (*words, SENTENCE_END):
            known = word if word in self.words else UNKNOWN
            found.append(score(before, known, after))
            before, after = after, before
        return found


def _binary_words(path: Path) -> list[str]:
    """Return the words that stand at the end of a binary, by id, each before a NUL; none where they do not."""
    try:
        with open_plain(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.rfind(UNKNOWN.encode() + b"\0")
            return data[start:-1].decode().split("\0") if start >= 0 else []
    except UnicodeDecodeError:
        return []
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is empty"
        raise ModelError(f"{shown(str(path))}: cannot be read ({why}); name another file") from None
