"""N-best lists in the forms that other programs write: what is read, and how a score is put into them.

A list holds the hypotheses of one sentence or utterance. A hypothesis keeps its line, so that what a format does not
change is written as it stands.

    moses    ID ||| words ||| features ||| total ...    natural logarithms; ` RNNLM= v` is added to the features
    srilm    acoustic lm nwords words                   base 10, a file for each list; lm is replaced
    kaldi    KEY words                                  KEY<tab>-ln p; keys UTT-1, UTT-2 are one list
    mikolov  ID words                                   log10 p alone; lines with the same ID are one list
    tsv      columns id, text and perhaps score         the column rnnlm is added, log10 p
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from rnnlm.errors import TextError
from rnnlm.sources import Source, plain_characters
from rnnlm.text import split_at_blanks

LIST_LIMIT = 2**24  # characters of one list, which is held in memory
KEPT = 2**22  # characters of a file that is read twice and parsed once
PAUSE = "-pau-"  # SRILM's mark of silence, which is no word: neither counted nor scored
NAME = "RNNLM="  # what we call our score among Moses' features

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GREATEST = 1e30  # the sum of some such numbers, weighted, still is a number
_MARK = re.compile("<(?<![^ ]<)/?[sS]>(?![^ ])")  # "<" stands first, as the search for a plain character is fast
_KEY, _BLANK = re.compile(r"[^ \t]+"), re.compile(r"[ \t]")
_ENDS = re.compile(r"((?:[^ \t]+[ \t]+){3})<s>[ \t]+(.*?)[ \t]*</s>[ \t]*")  # as SRILM's lattice-tool writes them
_OF_LIST = re.compile(r"(?<=.)-\d+$", re.ASCII)  # the number of a hypothesis, behind the list's own name
_FORMATS = "--format moses, srilm, kaldi, mikolov or tsv"


LEAST = -1e30  # the score with which a hypothesis of probability 0 is compared: 0 times -inf would be no number


class Weights(NamedTuple):
    """What a hypothesis' total is the sum of, beside the score that nothing changes (SRILM's acoustic one)."""

    model: float = 1.0  # times our score
    old: float = 0.0  # times the score that stands in the list
    penalty: float = 0.0  # times the number of words


class Hypothesis(NamedTuple):
    """A line of an n-best list."""

    key: str  # which list it belongs to
    words: list[str]  # what the model scores; none: `</s>` alone
    line: str  # as it stands in the file, without its end
    text: str  # the words as they stand in the line
    old: float = 0.0  # the list's own score, in the format's unit
    fixed: float = 0.0  # SRILM's acoustic score
    size: int = 0  # words, as the word penalty counts them

    def total(self, score: float, weights: Weights) -> float:
        """Return what is compared, from our score in the format's unit."""
        return self.fixed + weights.old * self.old + weights.model * max(score, LEAST) + weights.penalty * self.size


class _Refused(Exception):  # noqa: N818 -- it says what is wrong with the line
    """What is wrong with a line, and the remedy."""


class Format:
    """One way to write n-best lists, as it is read from a file's first line.

    Arguments:
        name: of the list's file, as messages and SRILM's lists use it.
        first: the first line.
    """

    name: ClassVar[str]
    unit: ClassVar[float] = math.log(10)  # nats in one unit of its scores
    old_weight: float | None = None  # of the score that a list has, where nothing else is asked for; None: it has none
    has_keys: ClassVar[bool] = False  # whether a line is an ID and words, so that a word may be taken for an ID
    header: str | None = None  # what stands before the lists, with the column that is added

    def __init__(self, name: str, first: str) -> None:
        self.list = name

    def parse(self, line: str) -> Hypothesis:
        """Read a line."""
        raise NotImplementedError

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Return the line with a score, which is in the format's unit."""
        raise NotImplementedError

    def best(self, hypothesis: Hypothesis) -> str:
        """Return what is written of the best hypothesis of a list."""
        return f"{hypothesis.key} {hypothesis.text}".rstrip(" ")


class Moses(Format):
    """Lines of Moses' decoder."""

    name, unit = "moses", 1.0
    old_weight = 1.0

    def parse(self, line: str) -> Hypothesis:
        """Read `ID ||| words ||| features ||| total`, and perhaps more fields."""
        fields = [field.strip(" \t") for field in line.split("|||")]
        if len(fields) < 4 or not re.fullmatch(r"\d{1,18}", fields[0], re.ASCII):
            raise _Refused("there is no ID ||| words ||| features ||| total; write it as Moses does, or name a format")
        if NAME in fields[2].split():
            raise _Refused(f"the features have {NAME} already; remove it, or call it otherwise")
        words = _words(fields[1])
        return Hypothesis(str(int(fields[0])), words, line, fields[1], _number(fields[3], "total"), 0.0, len(words))

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Add the score to the features; total and order stay, until Moses' own tools sum up anew."""
        fields = hypothesis.line.split("|||")
        fields[2] = f"{fields[2].rstrip(' ')} {NAME} {score:.6f} "
        return "|||".join(fields)

    def best(self, hypothesis: Hypothesis) -> str:
        """Write the words alone, as Moses' topbest.py does: IDs count the sentences."""
        return hypothesis.text


class Srilm(Format):
    """One of SRILM's files, whose name is the list's."""

    name = "srilm"
    old_weight = 0.0

    def __init__(self, name: str, first: str) -> None:
        super().__init__(name, first)
        self.list = name.rpartition("/")[2].removesuffix(".gz").removesuffix(".score").replace(" ", "_")
        if first.startswith("NBestList"):
            message = "its scores are not told apart; write the list as acoustic lm nwords words"
            raise _Refused(f"this is a list in the format {first.split(' ')[0]}, and {message}")

    def parse(self, line: str) -> Hypothesis:
        """Read `acoustic lm nwords words`, where `<s>` and `</s>` may stand around the words."""
        ends = _ENDS.fullmatch(line)
        fields = _words(ends[1] + ends[2] if ends else line)
        if len(fields) < 3:
            raise _Refused("there is no acoustic score, lm score and number of words; put all three before the words")
        acoustic, old = _number(fields[0], "acoustic score"), _number(fields[1], "lm score")
        if not re.fullmatch(r"\d{1,9}", fields[2], re.ASCII):
            raise _Refused(f"{fields[2][:40]!r} is no number of words; put the number before the words")
        words = [word for word in fields[3:] if word != PAUSE]
        return Hypothesis(self.list, words, line, " ".join(fields[3:]), old, acoustic, int(fields[2]))

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Put a score in the place of that of the old model, to which `weights.old` adds that."""
        lm = (weights.model and weights.model * score) + weights.old * hypothesis.old  # 0 times -inf is no number
        text = hypothesis.text
        if _ENDS.fullmatch(hypothesis.line):
            text = " ".join(filter(None, ("<s>", text, "</s>")))
        return f"{hypothesis.fixed:.16g} {lm:.16g} {hypothesis.size} {text}".rstrip(" ")


class Mikolov(Format):
    """Lines of Mikolov's `rnnlm -nbest`, whose `-debug 0` prints scores alone."""

    name, has_keys = "mikolov", True

    def parse(self, line: str) -> Hypothesis:
        """Read `ID words`; the ID ends at the first blank."""
        key = _KEY.match(line)
        if key is None:
            raise _Refused("the line has no ID; begin every line with an ID and a blank")
        words = _words(line[key.end() :])
        return Hypothesis(self.key(key.group()), words, line, " ".join(words), size=len(words))

    def key(self, own: str) -> str:
        """Return the list's name, from the ID of a line."""
        return own

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Write log10 p."""
        return f"{score:.6f}"


class Kaldi(Mikolov):
    """Lines of Kaldi's `text`, with keys UTT-1, UTT-2; scored they are the output of its rnnlm_compute_scores.sh."""

    name, unit = "kaldi", 1.0

    def key(self, own: str) -> str:
        """Take the number of the hypothesis off."""
        return _OF_LIST.sub("", own)

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Write the key of the line and the cost, -ln p."""
        own, *_ = _BLANK.split(hypothesis.line, maxsplit=1)
        return f"{own}\t{0 - score:.6g}"


class Tsv(Format):
    """A table with a header that names the columns id and text, and perhaps score."""

    name, column = "tsv", "rnnlm"
    old_weight: float | None = 1.0

    def __init__(self, name: str, first: str) -> None:
        super().__init__(name, first)
        self.columns = first.split("\t")
        for column, count in (("id", 1), ("text", 1), ("score", self.columns.count("score") and 1), (self.column, 0)):
            if self.columns.count(column) != count:
                wanted = "once the columns id and text, at most once score, and not rnnlm"
                raise _Refused(f"the header must name, between tabs, {wanted}; the others are free")
        self.header = f"{first}\t{self.column}"
        if "score" not in self.columns:
            self.old_weight = None

    def parse(self, line: str) -> Hypothesis:
        """Read a row."""
        row = line.split("\t")
        if len(row) != len(self.columns):
            raise _Refused(f"the row has {len(row)} columns and the header {len(self.columns)}; give it as many")
        named = dict(zip(self.columns, row, strict=True))
        if not named["id"].strip(" "):
            raise _Refused("the column id is empty; name the list that the hypothesis belongs to")
        words = _words(named["text"])
        old = _number(named["score"].strip(" "), "score") if "score" in named else 0.0
        return Hypothesis(named["id"], words, line, named["text"], old, 0.0, len(words))

    def write(self, hypothesis: Hypothesis, score: float, weights: Weights) -> str:
        """Add the column log10 p."""
        return f"{hypothesis.line}\t{score:.6f}"

    def best(self, hypothesis: Hypothesis) -> str:
        """Write the columns id and text: an ID may have blanks here."""
        return f"{hypothesis.key}\t{hypothesis.text}"


FORMATS: dict[str, type[Format]] = {one.name: one for one in (Moses, Srilm, Kaldi, Mikolov, Tsv)}


@dataclass(frozen=True)
class NBestFile:
    """A file of n-best lists, whose format is known; what it offers raises TextError, with the line."""

    source: Source
    format: Format
    _kept: list[list[Hypothesis]] = field(default_factory=list, repr=False, compare=False)  # all lists of a small file

    @classmethod
    def of(cls, source: Source, format: str | None = None) -> NBestFile:
        """Look at a file's first line, and find its format unless that is given.

        Raises TextError where there is no line, or the format is not told by it.
        """
        first = next((line for _, line in source.rows()), None)
        if first is None:
            raise _nothing(source)
        detected = _detected(first)
        kind = detected if format is None else FORMATS[format]
        if detected in (Moses, Tsv) and detected is not kind:
            message = f"this begins as a list of the format {detected.name}; leave --format out"
            raise TextError(f"{source.name}, line 1: {message}")
        if kind is None:
            what = "lists of several formats have lines like this"
            raise TextError(f"{source.name}, line 1: {what}; say which this is with {_FORMATS}")
        try:
            return cls(source, kind(source.name, first))
        except _Refused as refused:
            raise TextError(f"{source.name}, line 1: {refused}") from None

    def lists(self) -> Iterator[list[Hypothesis]]:
        """Yield the lists, in order: neighboring lines of the same list."""
        if self._kept:
            yield from self._kept
            return
        some, size = list[list[Hypothesis]](), 0
        for group in self._read():
            size += sum(len(hypothesis.line) for hypothesis in group)
            some.append(group)
            if size > KEPT:
                some.clear()
            yield group
        self._kept[:] = some

    def _read(self) -> Iterator[list[Hypothesis]]:
        group: list[Hypothesis] = []
        size = found = 0
        for number, hypothesis in self._hypotheses():
            if group and hypothesis.key != group[0].key:
                yield group
                group, size = [], 0
            group.append(hypothesis)
            size += len(hypothesis.line) + 1
            found += 1
            if size > LIST_LIMIT:
                message = f"a list of more than {LIST_LIMIT:,} characters; give a list fewer hypotheses"
                raise TextError(f"{self.source.name}, line {number}: {message}")
        if not found:
            raise _nothing(self.source)
        yield group

    def _hypotheses(self) -> Iterator[tuple[int, Hypothesis]]:
        blank_counts = not isinstance(self.format, Srilm)  # SRILM's own reader passes over blank lines
        for number, line in itertools.islice(self.source.rows(), self.format.header is not None, None):
            if not (blank_counts or line.strip(" \t")):
                continue
            try:
                yield number, self.format.parse(line)
            except _Refused as refused:
                raise TextError(f"{self.source.name}, line {number}: {refused}") from None


def _nothing(source: Source) -> TextError:
    return TextError(f"{source.name}: there is no hypothesis in it; name another file")


def ids_and_words(source: Source) -> Iterator[tuple[int, str, list[str]]]:
    """Yield of each line of a file `ID words`, such as references, its number, the ID and the words."""
    for number, line in source.rows():
        try:
            found = Mikolov(source.name, line).parse(line)
        except _Refused as refused:
            raise TextError(f"{source.name}, line {number}: {refused}") from None
        yield number, found.key, found.words


def lines_of_words(source: Source) -> Iterator[list[str]]:
    """Yield the words of each line of a file, blank ones included."""
    for number, line in source.rows():
        try:
            yield _words(line)
        except _Refused as refused:
            raise TextError(f"{source.name}, line {number}: {refused}") from None


def _words(text: str) -> list[str]:
    """Split at blanks; raises _Refused where a word is a mark of the model's own."""
    plain = text if text.isprintable() else plain_characters(text)
    mark = _MARK.search(plain)
    if mark:
        raise _Refused(f"{mark.group()!r} is the model's own mark and cannot be a word; remove it from the list")
    return split_at_blanks(plain)


def _number(text: str, what: str) -> float:
    """Read a score; raises _Refused where it is none."""
    if len(text) > 400 or not _NUMBER.fullmatch(text) or abs(float(text)) > _GREATEST:
        hint = "; for the logarithm of zero, write -99" if "inf" in text.lower() else "; put a number there"
        raise _Refused(f"{text[:40]!r} is no number that can be the {what}{hint}")
    return float(text)


def _detected(first: str) -> type[Format] | None:
    """Say which format alone begins with this line; None where several may."""
    if re.match(r"\s*\d+\s*\|\|\|", first, re.ASCII) and first.count("|||") >= 3:
        return Moses
    if {"id", "text"} <= set(first.split("\t")):
        return Tsv
    if re.match(r"NBestList[12]\.0", first):
        return Srilm
    ends = _ENDS.fullmatch(first)
    fields = plain_characters(ends[1] + ends[2] if ends else first).split()
    # an ID is not followed by a negative number, and then by the number of the words that are left
    scores = len(fields) >= 3 and all(map(_NUMBER.fullmatch, fields[:2])) and fields[1].startswith("-")
    if scores and fields[2] == str(len(fields) - 3 - fields[3:].count(PAUSE)):
        return Srilm
    return None
