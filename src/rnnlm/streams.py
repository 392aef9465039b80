r"""Probability streams: what another program gives to each word of a text and to the end of each sentence, in order.

Three formats are told from each other by how they begin:

    Mikolov, -lm-prob   a line each, a probability first; the rest of the line is ignored, and 0 is an unknown word
    SRILM, -debug 2     \tp( WORD | CONTEXT ...) \t= [2gram] PROBABILITY [ LOG10 ]; other lines are ignored
    KenLM, query        WORD=ID LENGTH LOG10\t for each word of a line; 0 is the id of unknown words

Memory does not grow with a stream.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import NamedTuple

from rnnlm.errors import TextError
from rnnlm.sources import Source, shown
from rnnlm.vocabulary import UNKNOWN

_HEAD = 100  # lines by which a format is known
_ROUNDED = 1e-4  # what log10 p may exceed 0 by: others write few digits
_SRILM = re.compile(r"\tp\( (\S+) \| .*\) \t?= ((?:\[[^\]\s]*\])+) (\S+) \[ (\S+) \]")
_KENLM = re.compile(r"([^\t]+)=(\d+) \d+ (\S+)")
_SUMMARY = re.compile(r"(Perplexity (in|ex)cluding OOVs|OOVs|Tokens|Name|VmPeak|VmRSS|RSSMax|user|sys|CPU|real):")


class Prediction(NamedTuple):
    """What a stream gives to a word."""

    line: int
    word: str | None  # None where the format has none
    log_p: float  # natural; -inf: no probability
    unknown: bool


Rows = Iterator[tuple[int, str]]  # lines with their numbers
Reader = Callable[[str, Rows], Iterator[Prediction]]


def read_stream(source: Source) -> Generator[Prediction]:
    """Yield the predictions of a stream.

    Raises TextError, with the line, where it cannot be read or is in none of the three formats.
    """
    reader = _format(source)
    with closing(source.rows()) as rows:
        yield from reader(source.name, rows)


def _format(source: Source) -> Reader:
    """Return what reads a stream's format; the first lines decide."""
    with closing(source.rows()) as rows:
        head = [row for _, row in itertools.islice(rows, _HEAD) if row.strip()]
    if any(_SRILM.match(row) for row in head):
        return _srilm
    if head and _KENLM.match(head[0].lstrip("\t").split("\t")[0]):
        return _kenlm
    if head and all(_probability(row.split()[0]) is not None for row in head[:2]):
        return _mikolov
    wanted = "Mikolov's -lm-prob, SRILM's -debug 2 or KenLM's query"
    raise TextError(f"{source.name}, line 1: this is no stream of probabilities as {wanted} print it; name one that is")


def _mikolov(name: str, rows: Rows) -> Iterator[Prediction]:
    for number, row in rows:
        p = _probability(row.split()[0]) if row.strip() else None
        if p is None:
            raise _wrong(name, number, row, "a probability, from 0 to 1, must stand first")
        yield Prediction(number, None, math.log(min(p, 1)) if p else -math.inf, not p)


def _srilm(name: str, rows: Rows) -> Iterator[Prediction]:
    for number, row in rows:
        if not row.startswith("\tp( "):
            continue
        found = _SRILM.match(row)
        log_p = None if found is None else -math.inf if found[4] in ("-inf", "-1.#INF") else _logarithm(found[4])
        if found is None or log_p is None:
            raise _wrong(name, number, row, "p( WORD | CONTEXT ) = [TAG] P [ LOG10 ] must stand")
        yield Prediction(number, found[1], log_p, not found[2].replace("[OOV]", ""))


def _kenlm(name: str, rows: Rows) -> Iterator[Prediction]:
    for number, row in rows:
        for entry in row.split("\t"):
            found = _KENLM.fullmatch(entry)
            log_p = None if found is None else _logarithm(found[3])
            if found is not None and log_p is not None:
                yield Prediction(number, found[1], log_p, not int(found[2][:20]))
            elif _SUMMARY.match(entry):
                break
            elif entry and not entry.startswith("Total: "):
                raise _wrong(name, number, entry, "WORD=ID LENGTH LOG10 must stand")


def _number(text: str) -> float:
    try:
        return float(text) if len(text) < 50 else math.nan
    except ValueError:
        return math.nan


def _probability(text: str) -> float | None:
    p = _number(text)
    return p if 0 <= p <= 1 + _ROUNDED else None


def _logarithm(text: str) -> float | None:
    """Return a natural logarithm for one of base 10, None where it is none."""
    log10_p = _number(text)
    return min(log10_p, 0.0) * math.log(10) if log10_p <= _ROUNDED else None


def _wrong(name: str, number: int, row: str, wanted: str) -> TextError:
    there = shown(repr(row.strip()[:40])) if row.strip() else "a blank line"
    return TextError(f"{name}, line {number}: {there} is there, where {wanted}; make the file again")


class Aligned:
    """A stream that is read beside the text that it was made of.

    Raises TextError, with the stream's line, where it cannot be of that text.
    """

    def __init__(self, source: Source, lowercase: bool = False) -> None:
        """Take a stream; with `lowercase` its words are folded, as those of the text are."""
        self._source, self._predictions, self._line, self._lowercase = source, read_stream(source), 0, lowercase

    def close(self) -> None:
        """Close the file."""
        self._predictions.close()

    def take(self, words: list[str]) -> list[Prediction]:
        """Return the predictions of the next words of the text, ends of sentences among them."""
        found = []
        for word in words:
            prediction = next(self._predictions, None)
            if prediction is None:
                raise self._other("the stream ends here, and the text goes on")
            self._line = prediction.line
            there = prediction.word if prediction.word is None or not self._lowercase else prediction.word.lower()
            if there not in (None, UNKNOWN, word) and word != UNKNOWN:
                raise self._other(
                    f"{shown(repr(there[:40]))} is predicted, where the text has {shown(repr(word[:40]))}"
                )
            found.append(prediction)
        return found

    def end(self) -> None:
        """Make sure that the stream ends where the text does."""
        prediction = next(self._predictions, None)
        if prediction is not None:
            self._line = prediction.line
            raise self._other("the stream goes on here, and the text has ended")

    def _other(self, message: str) -> TextError:
        remedy = "give the text that it was made of, a sentence a line, without blank lines"
        return TextError(f"{self._source.name}, line {max(1, self._line)}: {message}; {remedy}")
