"""Minimal pairs: how often a model finds the good one of two sentences likelier than the bad one.

Targeted syntactic evaluation (Linzen et al. 2016; Marvin and Linzen 2018; Warstadt et al. 2020, BLiMP). A file has a
pair a line, in one of three forms, which its first line tells:

- good sentence, bad sentence, then any columns, separated by tabs; a header with `good` and `bad` may name them;
- BLiMP's JSON, an object a line, with `sentence_good` and `sentence_bad`, and fields such as `UID`;
- a sentence with a gap, `***mask***`, the good and the bad word for it, and any columns, separated by tabs (Linzen's
  sentences, as Goldberg 2019 gives them).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rnnlm import workers
from rnnlm.checkpoint import SavedModel
from rnnlm.errors import SettingsError, TextError, no_numbers
from rnnlm.model import LanguageModel, Workspace
from rnnlm.scoring import offsets_of, sentence_losses
from rnnlm.sources import SURROGATE, Source, check_encoding, shown
from rnnlm.text import Tokenizer
from rnnlm.vocabulary import SENTENCE_END, Vocabulary

BLOCK_PAIRS = 8192  # that are scored together
BLOCK_CHARACTERS = 2**22  # or fewer, where lines are long
BATCH_CHARACTERS = 2**15  # that a process cuts into words at once
PROCESSES_PAY = 1_000_000  # bytes of pairs below which starting processes costs more than it saves
GAP = "***mask***"
GOOD, BAD = ("good", "sentence_good"), ("bad", "sentence_bad")
MOST_GROUPS = 1000  # of a column: one with more is not grouped by, as it only names pairs
USUAL = ("UID", "linguistics_term")  # fields by which BLiMP's pairs are grouped


@dataclass(frozen=True)
class Pair:
    """Two sentences of which one is good, and the groups that they belong to."""

    file: str
    line: int
    good: list[str]  # words
    bad: list[str]
    groups: tuple[tuple[str, str], ...]  # (name of a column, what stands there)


@dataclass(frozen=True)
class Judgement:
    """What a model makes of a pair; log-probabilities are natural, the end of the sentence included."""

    pair: Pair
    good: float
    bad: float
    unknown: bool  # whether either has a word that the model does not know

    @property
    def correct(self) -> float:
        """1 where the good sentence is likelier, 0 where the bad one is, 0.5 where both are alike."""
        return 0.5 * (1 + (self.good > self.bad) - (self.good < self.bad))

    def to_json(self) -> dict[str, Any]:
        """Return what `rnnlm pairs --scores --json` prints for a pair."""
        own = {"file": self.pair.file, "line": self.pair.line, "log_prob_good": self.good, "log_prob_bad": self.bad}
        return {**own, "correct": self.correct, "unknown": self.unknown, "groups": dict(self.pair.groups)}


@dataclass
class Tally:
    """Pairs counted."""

    pairs: int = 0
    ties: int = 0
    correct: float = 0.0  # a tie is half

    def add(self, correct: float) -> None:
        """Count one more."""
        self.pairs += 1
        self.ties += correct == 0.5
        self.correct += correct

    @property
    def accuracy(self) -> float:
        """The share of pairs whose good sentence is likelier; NaN of none."""
        return self.correct / self.pairs if self.pairs else math.nan

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy, from the variance of 0, 0.5 and 1 over the pairs."""
        squares = self.correct - 0.25 * self.ties  # of these numbers: 1 for each 1, 0.25 for each tie
        return math.sqrt(max(0.0, squares / self.pairs - self.accuracy**2) / self.pairs) if self.pairs else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the figures; None for those of no pairs."""
        found = {"accuracy": self.accuracy, "standard_error": self.standard_error}
        figures = {name: None if math.isnan(figure) else figure for name, figure in found.items()}
        return {"pairs": self.pairs, "ties": self.ties, **figures}


@dataclass
class Result:
    """The accuracy on pairs, in all and by group."""

    all: Tally = field(default_factory=Tally)
    known: Tally = field(default_factory=Tally)  # pairs without unknown words
    unknown: Tally = field(default_factory=Tally)  # the others
    groups: dict[str, dict[str, Tally]] = field(default_factory=dict)  # by column, then by what stands there
    ungrouped: set[str] = field(default_factory=set)  # columns with too many values

    def add(self, judgement: Judgement) -> None:
        """Count a pair where it belongs."""
        own = [self.all, self.unknown if judgement.unknown else self.known]
        for name, value in judgement.pair.groups:
            values = self.groups.setdefault(name, {})
            if name not in self.ungrouped:
                own.append(values.setdefault(value, Tally()))
            if len(values) > MOST_GROUPS:
                self.ungrouped.add(name)
                values.clear()
        for tally in own:
            tally.add(judgement.correct)

    def to_json(self) -> dict[str, Any]:
        """Return what `rnnlm pairs --json` prints."""
        groups = {name: {value: own.to_json() for value, own in values.items()} for name, values in self.groups.items()}
        told_apart = {"known": self.known.to_json(), "unknown": self.unknown.to_json()}
        return {**self.all.to_json(), **told_apart, "groups": groups}


# Reading


def read_pairs(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    by: Sequence[str] = (),
    pretokenized: bool = False,
    encoding: str = "utf-8",
    processes: int = 1,
) -> Iterator[Pair]:
    """Read the pairs of files.

    Arguments:
        sources: the files, in order.
        tokenizer: how the model's text was cut into words; each sentence here is one, whatever stops it has.
        by: columns to group by: names, or numbers of columns from 1; none: UID and linguistics_term, or the first
            column beside the sentences.
        pretokenized: words are separated by blanks, whatever the training text was.
        encoding: of the files.
        processes: how many cut sentences into words at the same time; a small file needs none but this one.

    Raises TextError, with the line, where a file is not such pairs, and SettingsError where a column is not there or
    the encoding does not exist.
    """
    check_encoding(encoding)
    own = replace(tokenizer.settings, pretokenized=pretokenized or tokenizer.settings.pretokenized, lines=False)
    own = replace(own, lines=not own.pretokenized)
    cut = replace(tokenizer, settings=own, punkt=None)
    alone = own.pretokenized or sum(source.size for source in sources) < PROCESSES_PAY
    rows = (row for source in sources for row in _rows(source, by, encoding))
    try:
        with closing(workers.ordered(partial(_cutter, cut), _batches(rows), 1 if alone else processes)) as finished:
            for _, pairs in finished:
                yield from pairs
    except workers.WorkerDiedError as error:
        (first, *_), message = error.args[0], "a process that tokenized was killed, perhaps for want of memory"
        raise TextError(f"{first.place}: {message}; give a smaller --threads") from None
    except workers.NotStartedError as error:
        raise TextError(f"processes that tokenize cannot be started ({error}); give --threads 1") from None


class _Row(NamedTuple):
    """A pair as it stands in a file."""

    file: str
    line: int
    good: str
    bad: str
    groups: tuple[tuple[str, str], ...]

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


def _rows(source: Source, by: Sequence[str], encoding: str) -> Iterator[_Row]:
    """Read a file's pairs."""
    form, found = None, False
    for number, line in source.rows(encoding):
        if not line.strip():
            continue
        place = f"{source.name}, line {number}"
        if form is None:
            form = _Form.of(line, by, place)
            if form.header:
                continue
        found = True
        yield _Row(source.name, number, *form.read(line, place))
    if not found:
        raise TextError(f"{source.name} has no pairs; give one a line")


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Gather rows, so that it pays to hand them to a process."""
    batch: list[_Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.good) + len(row.bad)
        if characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cutter(tokenizer: Tokenizer) -> Callable[[list[_Row]], list[Pair]]:
    """Return the function that cuts the sentences of rows into words."""

    def pair(row: _Row) -> Pair:
        good, bad = (_words(tokenizer, sentence, row.place) for sentence in (row.good, row.bad))
        return Pair(row.file, row.line, good, bad, row.groups)

    def cut(rows: list[_Row]) -> list[Pair]:
        return [pair(row) for row in rows]

    return cut


def _words(tokenizer: Tokenizer, sentence: str, place: str) -> list[str]:
    """Cut a sentence into words; raises TextError where it has none, or a mark of the model's own."""
    surrogate = SURROGATE.search(sentence)
    if surrogate:
        raise TextError(f"{place}: half of a surrogate pair, which is no character; remove it")
    try:
        words = [word for part in tokenizer.prompt(sentence.replace("\n", " ")) for word in part]
    except TextError as error:
        raise TextError(f"{place}: {error}") from None
    if not words:
        raise TextError(f"{place}: a sentence has no words; give a good and a bad one")
    return words


@dataclass(frozen=True)
class _Form:
    """Where a line has its sentences: columns by number, or, if there are none, fields of a JSON object."""

    columns: int  # in a line, at least; 0: lines are JSON
    good: int
    bad: int
    gap: int | None  # the column of the sentence, where good and bad are words
    by: tuple[tuple[str, Any], ...]  # names of groups, each with its column or its field
    header: bool = False  # whether the line that tells the form is not a pair

    @classmethod
    def of(cls, line: str, by: Sequence[str], place: str) -> _Form:
        """Tell the form from a file's first line; raises as `read_pairs` does."""
        if line.lstrip().startswith("{"):
            fields = _json(line, place)
            wanted = by or [name for name in USUAL if name in fields]
            for name in wanted:
                if name not in fields:
                    raise SettingsError(f"{place}: there is no field {shown(name)!r}; --by takes {_listed(fields)}")
            return cls(0, 0, 0, None, tuple((name, name) for name in dict.fromkeys(wanted)))
        cells = line.split("\t")
        names = [cell.strip().lower() for cell in cells]
        header = any(name in names for name in GOOD) and any(name in names for name in BAD)
        gap = next((at for at, cell in enumerate(cells) if GAP in cell), None)
        if header:
            good, bad = (next(at for at, name in enumerate(names) if name in either) for either in (GOOD, BAD))
            gap = names.index("sentence") if "sentence" in names else None
        else:
            good, bad = (0, 1) if gap is None else (gap + 1, gap + 2)
        if max(good, bad) >= len(cells):
            message = "put a good and a bad sentence on each line, with a tab between; or BLiMP's JSON"
            raise TextError(f"{place}: there is no pair; {message}")
        titles = [cell.strip() if header else f"column {at + 1}" for at, cell in enumerate(cells)]
        others = [at for at in range(len(cells)) if at not in (good, bad, gap)]
        chosen = dict.fromkeys([_column(name, titles, header, place) for name in by] or others[:1])  # each once
        return cls(max(good, bad, gap or 0) + 1, good, bad, gap, tuple((titles[at], at) for at in chosen), header)

    def read(self, line: str, place: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """Return the sentences of a line, and its groups."""
        if not self.columns:
            fields = _json(line, place)
            return fields[GOOD[1]], fields[BAD[1]], tuple((name, _text(fields.get(name))) for name, _ in self.by)
        cells = line.split("\t")
        if len(cells) < self.columns:
            message = f"there are {len(cells)} columns and not {self.columns}; put a tab between them"
            raise TextError(f"{place}: {message}")
        good, bad = cells[self.good], cells[self.bad]
        if self.gap is not None:
            before, gap, after = cells[self.gap].partition(GAP)
            if not gap:
                raise TextError(f"{place}: the sentence has no {GAP}; write one where the words go")
            good, bad = f"{before}{good.strip()}{after}", f"{before}{bad.strip()}{after}"
        return good, bad, tuple((name, cells[at].strip() if at < len(cells) else "") for name, at in self.by)


def _json(line: str, place: str) -> dict[str, Any]:
    """Read an object with two sentences."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise TextError(f"{place}: is not a JSON object; put one on each line") from None
    for name in (GOOD[1], BAD[1]):
        if not isinstance(fields, dict) or not isinstance(fields.get(name), str):
            raise TextError(f"{place}: there is no text {name!r}; give each object {GOOD[1]!r} and {BAD[1]!r}")
    own: dict[str, Any] = fields
    return own


def _text(value: object) -> str:
    """Return what stands in a field as the name of a group."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _column(name: str, titles: Sequence[str], header: bool, place: str) -> int:
    if name in titles:
        return titles.index(name)
    if name.isascii() and name.isdigit() and len(name) < 10 and 1 <= int(name) <= len(titles):
        return int(name) - 1
    names = f"{_listed(titles)}, or " if header else ""
    raise SettingsError(f"{place}: there is no column {shown(name)!r}; --by takes {names}a number up to {len(titles)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join([shown(name) for name in names][:20])


# Judging


def judged(pairs: Iterable[Pair], saved: SavedModel, work: Workspace) -> Iterator[Judgement]:
    """Yield what a model makes of each pair, in order; sentences are read each by itself, some thousands at a time.

    Raises ModelError where a probability is no number.
    """
    block: list[Pair] = []
    characters = 0
    for pair in pairs:
        block.append(pair)
        characters += sum(map(len, pair.good)) + sum(map(len, pair.bad)) + len(pair.good) + len(pair.bad)
        if len(block) == BLOCK_PAIRS or characters > BLOCK_CHARACTERS:
            yield from _judged(block, saved.model, saved.vocabulary, work)
            block, characters = [], 0
    yield from _judged(block, saved.model, saved.vocabulary, work)


def _judged(pairs: list[Pair], model: LanguageModel, vocabulary: Vocabulary, work: Workspace) -> Iterator[Judgement]:
    sentences = [vocabulary.encode([*words, SENTENCE_END]) for pair in pairs for words in (pair.good, pair.bad)]
    # Each is scored once: two that read alike are equally likely, to the last bit.
    keys = [sentence.tobytes() for sentence in sentences]
    different = dict(zip(keys, sentences, strict=True))
    ids = np.concatenate([*different.values(), np.empty(0, np.int32)])  # of no pairs, none
    losses = sentence_losses(model, ids, work).astype(np.float64)
    found = dict(zip(different, (-np.add.reduceat(losses, offsets_of(ids)[:-1])).tolist(), strict=True))
    if not np.isfinite(losses).all():
        raise no_numbers()
    for pair, good, bad in zip(pairs, range(0, len(keys), 2), range(1, len(keys), 2), strict=True):
        unknown = any(vocabulary.unknown_id in sentences[at] for at in (good, bad))
        yield Judgement(pair, found[keys[good]], found[keys[bad]], unknown)
