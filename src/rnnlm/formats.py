"""Probabilities of sentences in the formats of rnnlm and of other tools: functions from records to text.

Each yields its text piece by piece, and a record's text before it asks for the next record. `docs/scoring.md` shows
them, `docs/formats.md` has the odd cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnlm.scoring import Scored
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN

BASES = {"2": ("", math.log(2)), "e": ("_nats", 1.0), "10": ("_log10", math.log(10))}  # what names a column, and unit
LOG10 = math.log(10)

# How many words, itself among them, each word of a sentence (n,) and its </s> are predicted by.
Lengths = Callable[[Sequence[str]], Sequence[int]]


# Our own formats


def sentence_rows(records: Iterable[Scored], base: str = "10", as_json: bool = False) -> Iterator[str]:
    """Write a line for each sentence: log probability, predictions, unknown words; or a line of JSON."""
    _, unit = BASES[base]
    for number, record in enumerate(records, 1):
        total, predictions, unknown = record.total / unit, len(record.log_p), sum(record.unknown)
        if as_json:
            key = f"log{base}_probability".replace("loge", "ln")
            row = {"sentence_id": number, key: _finite(total), "predictions": predictions, "unknown": unknown}
            yield f"{json.dumps(row)}\n"
        else:
            yield f"{total:.6f}\t{predictions}\t{unknown}\n"


def word_rows(
    records: Iterable[Scored], base: str = "2", as_json: bool = False, spans: bool = False, ranks: bool = False
) -> Iterator[str]:
    """Write a header and a row for each word and `</s>`, or each row as a line of JSON.

    `spans` and `ranks` say that the records have them.
    """
    suffix, unit = BASES[base]
    names = ["sentence_id", "token_id", "token", f"surprisal{suffix}", "unknown"]
    names += ["start", "end"] if spans else []
    names += ["rank", f"entropy{suffix}"] if ranks else []
    if not as_json:
        yield "\t".join(names) + "\n"
    for number, record in enumerate(records, 1):
        rows = [[number, *row] for row in _rows(record, unit, spans, ranks)]
        if as_json:
            yield "".join(f"{json.dumps(dict(zip(names, map(_finite, row), strict=True)))}\n" for row in rows)
        else:
            yield "".join("\t".join(map(_cell, row)) + "\n" for row in rows)


def _rows(record: Scored, unit: float, spans: bool, ranks: bool) -> Iterator[list[Any]]:
    """Yield the row of each word, without the sentence's number."""
    surprisals = (0 - record.log_p / unit).tolist()
    places = [*(record.spans or []), (end := record.spans[-1][1] if record.spans else 0, end)]
    for at, word in enumerate([*record.words, SENTENCE_END]):
        row = [at + 1, word, surprisals[at], int(at < len(record.words) and record.unknown[at])]
        row += places[at] if spans else ()
        if ranks and record.ranks is not None and record.entropies is not None:
            row += [int(record.ranks[at]), float(record.entropies[at]) / unit]
        yield row


def _finite(value: object) -> object:
    """Return a value as JSON can hold it: no infinity, which a model of another program may give."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> str:
    """Write a cell; one with a quotation mark as CSV does, since R and pandas read it so."""
    if isinstance(value, float):
        return f"{value:.6f}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if '"' in text else text


def summed(record: Scored) -> Scored:
    """Add up the words that no blank parts, such as `do` and `n't`; those of pretokenized text are such words."""
    if not record.spans:
        return record
    spans = record.spans
    starts = [at for at, (start, _) in enumerate(spans) if at == 0 or spans[at - 1][1] < start]
    joined = [(spans[at][0], spans[after - 1][1]) for at, after in zip(starts, [*starts[1:], len(spans)], strict=True)]
    return record._replace(
        words=[record.text[start:end] for start, end in joined],
        unknown=np.logical_or.reduceat(record.unknown, starts).tolist(),
        log_p=np.add.reduceat(record.log_p, [*starts, len(spans)]),
        spans=joined,
    )


# KenLM


def kenlm(records: Iterable[Scored], numbers: Mapping[str, int], lengths: Lengths, level: str = "2") -> Iterator[str]:
    """Write what KenLM's `query -v LEVEL` prints: 0 the summary, 1 sentences too, 2 words too; or one of them by name.

    `numbers` are of the words, that of an unknown one being 0.
    """
    total = of_unknown = 0.0
    tokens = missing = 0
    for record in records:
        logs = (record.log_p / LOG10).astype(np.float32)
        sentence, unknown = np.cumsum(logs, dtype=np.float32)[-1], sum(record.unknown)
        total += float(sentence)
        of_unknown += float(logs[:-1][record.unknown].sum(dtype=np.float64))
        tokens += len(logs)
        missing += unknown
        if level in ("2", "word"):
            words, flags = [*record.words, SENTENCE_END], [*record.unknown, False]
            for word, flag, length, log_p in zip(words, flags, lengths(record.words), logs, strict=True):
                yield f"{word}={0 if flag else numbers[word]} {length} {shortest(log_p)}\t"
        if level in ("1", "2", "sentence"):
            yield f"Total: {shortest(sentence)} OOV: {unknown}\n"
    if level in ("0", "1", "2", "summary"):
        for name, log_p, count in (("in", total, tokens), ("ex", total - of_unknown, tokens - missing)):
            yield f"Perplexity {name}cluding OOVs:\t{shortest(np.float64(_perplexity(log_p, count)))}\n"
        yield f"OOVs:\t{missing}\nTokens:\t{tokens}\n"


def shortest(number: np.floating[Any]) -> str:
    """Write a number in the fewest digits from which it is read back, as JavaScript and KenLM do."""
    if not np.isfinite(number):
        return "NaN" if np.isnan(number) else "inf" if number > 0 else "-inf"
    if number != 0 and not 1e-6 <= abs(float(str(number))) < 1e21:
        return np.format_float_scientific(number, unique=True, trim="-", exp_digits=1).replace("+", "")
    return np.format_float_positional(number, unique=True, trim="-")


def _perplexity(log10_p: float, count: int) -> float:
    try:
        return 10 ** (-log10_p / count) if count else math.nan
    except OverflowError:
        return math.inf


# SRILM


def srilm(records: Iterable[Scored], name: str, lengths: Lengths, level: str = "2") -> Iterator[str]:
    """Write what SRILM's `ngram -unk -ppl NAME -debug LEVEL` prints; blank lines are skipped, as it does.

    An unknown word has the probability of `<unk>`, and is an OOV only where that is 0.
    """
    total = _SrilmCounts()
    for record in records:
        if not record.words:
            continue
        own = _SrilmCounts.of(record)
        total = total.plus(own)
        if level != "0":
            yield " ".join(record.words) + "\n"
            yield "".join(_srilm_words(record, lengths(record.words))) if level == "2" else ""
            yield f"{own.told()}\n"
    yield f"file {name}: {total.told()}"


class _SrilmCounts(NamedTuple):
    """What SRILM counts; words of probability 0 are in no sum."""

    sentences: int = 0
    words: int = 0
    oovs: int = 0  # unknown ones of probability 0
    zeroprobs: int = 0  # known ones
    log10_p: float = 0.0

    @classmethod
    def of(cls, record: Scored) -> _SrilmCounts:
        """Count a sentence."""
        zero = np.isneginf(record.log_p)
        oovs = int(np.count_nonzero(zero & [*record.unknown, False]))
        logs = record.log_p[~zero] / LOG10
        return cls(1, len(record.words), oovs, int(np.count_nonzero(zero)) - oovs, float(logs.sum()))

    def plus(self, other: _SrilmCounts) -> _SrilmCounts:
        """Add up."""
        sentences, words = self.sentences + other.sentences, self.words + other.words
        oovs, zeroprobs = self.oovs + other.oovs, self.zeroprobs + other.zeroprobs
        return _SrilmCounts(sentences, words, oovs, zeroprobs, self.log10_p + other.log10_p)

    def told(self) -> str:
        """Return SRILM's two lines."""
        count = self.words - self.oovs - self.zeroprobs
        ppl, ppl1 = (
            f"{_perplexity(self.log10_p, number):.7g}" if number else "undefined"
            for number in (count + self.sentences, count)
        )
        counts = f"{self.sentences} sentences, {self.words} words, {self.oovs} OOVs"
        return f"{counts}\n{self.zeroprobs} zeroprobs, logprob= {self.log10_p:.7g} ppl= {ppl} ppl1= {ppl1}\n"


def _srilm_words(record: Scored, lengths: Sequence[int]) -> Iterator[str]:
    known = [UNKNOWN if unknown else word for word, unknown in zip(record.words, record.unknown, strict=True)]
    contexts = ["<s> ", *(f"{word} ..." for word in known)]
    zero = np.isneginf(record.log_p) & [*record.unknown, False]
    tags = ["OOV" if oov else f"{length}gram" for oov, length in zip(zero.tolist(), lengths, strict=True)]
    probabilities, logs = np.exp(record.log_p).tolist(), (record.log_p / LOG10).tolist()
    for word, context, tag, p, log_p in zip([*known, SENTENCE_END], contexts, tags, probabilities, logs, strict=True):
        yield f"\tp( {word} | {context}) \t= [{tag}] {p:.7g} [ {log_p:.7g} ]\n"


# Mikolov's rnnlm


def mikolov(
    records: Iterable[Scored], ids: Mapping[str, int], text: str, model: str, independent: bool, level: str = "2"
) -> Iterator[str]:
    """Write what Mikolov's `rnnlm -test TEXT -rnnlm MODEL -debug LEVEL` prints, where LEVEL is 1 or 2.

    Words that the vocabulary lacks count neither in the sum nor in the number.
    """
    total, count = 0.0, 0
    yield ("debug mode: 2\n" if level == "2" else "") + f"test file: {text}\n"
    yield "Sentences will be processed independently...\n" if independent else ""
    yield f"rnnlm file: {model}\n"
    yield "Index   P(NET)          Word\n----------------------------------\n" if level == "2" else ""
    for record in records:
        for word, absent, log_p in zip(
            [*record.words, SENTENCE_END], [*record.absent, False], record.log_p.tolist(), strict=True
        ):
            if not absent:
                total, count = total + log_p / LOG10, count + 1
            if level == "2":
                yield "-1\t0\t\tOOV\n" if absent else f"{ids[word]}\t{math.exp(log_p):.10f}\t{word}\n"
    yield f"\ntest log probability: {total:f}\n\nPPL net: {_perplexity(total, count):f}\n"


# Kaldi and faster-rnnlm


def kaldi(records: Iterable[Scored]) -> Iterator[str]:
    """Write the key and the cost, -log p in nats, of each sentence."""
    for record in records:
        yield f"{record.key}\t{0 - record.total:.6g}\n"


def faster_rnnlm(records: Iterable[Scored], tell: Callable[[str], object]) -> Iterator[str]:
    """Write log10 p of each sentence, or OOV where the vocabulary lacks a word; blank lines are skipped.

    `tell` is called with the entropy, bits for each prediction, when all is done.
    """
    total, count = 0.0, 0
    for record in records:
        if any(record.absent):
            yield "OOV\n"
        elif record.words:
            total, count = total + record.total, count + len(record.log_p)
            yield f"{record.total / LOG10:f}\n"
    tell(f"Test entropy {-total / math.log(2) / count if count else math.nan:f}")


def keyed(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part each line at its first blank, into keys and the rest; a blank line has an empty key."""
    parts = [line.strip(" ").partition(" ") for line in lines]
    return [key for key, _, _ in parts], [rest for _, _, rest in parts]
