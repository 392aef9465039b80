"""The weights that suit a text best, for a mixture of models and of other programs' probabilities.

They are found by expectation-maximization, as SRILM's compute-best-mix finds them: of each word, a model has the share
l_M p_M / sum_N l_N p_N, and its next weight is the mean of its shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnlm.checking import fit_option
from rnnlm.corpus import Stage, silent
from rnnlm.errors import SettingsError, TextError
from rnnlm.mixture import (
    ROUNDED,
    Array,
    Mixture,
    Oov,
    PathLike,
    blocks,
    check_output,
    digest,
    mixed,
    open_part,
    save,
    tokenizer_of,
)
from rnnlm.run import computing
from rnnlm.scoring import Score
from rnnlm.settings import Precision, Share, Threads
from rnnlm.sources import spooled
from rnnlm.streams import Aligned
from rnnlm.text import Tokenizer
from rnnlm.vocabulary import SENTENCE_END

_PENALTY = math.log(1e-8)  # what Mikolov's tool gives a word that its network lacks, where no mixture helps


@dataclass(frozen=True)
class Iteration:
    """A step of expectation-maximization."""

    number: int
    weights: tuple[float, ...]  # before it
    perplexity: float  # with them, of the words to which some model gives a probability


Told = Callable[[Iteration], object]


def first_weights(parts: int) -> Array:
    """Return where compute-best-mix begins: a half for the first model, the rest in equal shares."""
    return np.array([0.5, *[0.5 / (parts - 1)] * (parts - 1)]) if parts > 1 else np.ones(1)


def best_weights(table: Array, precision: float, told: Told) -> tuple[Array, int]:
    """Return the weights (M,) that give a text the greatest probability, and after how many steps.

    `table` is log p of each model (N, M). The steps end when none has moved a weight by more than `precision`. Raises
    TextError where no model gives a probability to any word.
    """
    top = table.max(axis=1)
    here = top > -math.inf
    if not here.any():
        raise TextError("no model gives a probability to any word of the text; name models of its language")
    p, top = np.exp(table[here] - top[here, None]), top[here]
    weights, number = first_weights(table.shape[1]), 0
    while True:
        number += 1
        mixture = p @ weights
        mean = float((np.log(mixture) + top).mean())
        told(Iteration(number, tuple(weights.tolist()), _exp(-mean)))
        before, weights = weights, weights * (p.T @ (1 / mixture)) / len(p)
        weights /= weights.sum()  # 1 but for rounding
        if np.abs(weights - before).max() <= precision:
            return weights, number


def _exp(number: float) -> float:
    return math.exp(number) if number < 700 else math.inf


@dataclass(frozen=True)
class Mixed:
    """What `mix` has found: a weight and a score for each model and stream, and the mixture's own score."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    scores: tuple[Score, ...]  # in which unknown words are those that no model has
    score: Score
    counted: int  # words and ends of sentences to which some model gives a probability
    iterations: int  # 0 where the weights were given
    lacking: tuple[int, ...] = ()  # of the others' words, how many each model lacks and shares its <unk> with
    carried: tuple[str, ...] = ()  # models that carry their state where they are alone

    @property
    def left_out(self) -> int:
        """How many words count in no score, as all models lack them."""
        return self.score.words + self.score.sentences - self.score.predictions


@dataclass(frozen=True)
class _Text:
    """A scored text."""

    table: Array  # (N, M) log p
    unknown: NDArray[np.bool_]  # (N,)
    sentences: int


def mix(  # noqa: D417 -- some are described together
    text: PathLike,
    models: Sequence[PathLike] = (),
    streams: Sequence[PathLike] = (),
    *,
    weights: Sequence[float] | None = None,
    precision: float = 1e-6,
    oov: Oov = "share",
    output: PathLike | None = None,
    threads: int = 1,
    stage: Stage = silent,
    told: Told = lambda _: None,
    **reading: Any,
) -> Mixed:
    """Mix models, with the weights that suit a text best.

    Arguments:
        text: plain or gzip, or `-` for standard input.
        models, streams: folders and `.npz` of ours, ARPA files, binaries of KenLM; and what `streams` reads, of `text`.
        weights: of models and then streams, instead of the best ones.
        precision, told, oov: see `best_weights` and `Mixture`; a stream's numbers are taken as they are.
        output: write the mixture to this file, whose name ends in .toml.
        threads, stage: how many compute, without changing a result; called when a stage of reading begins.
        reading: `pretokenized`, `lines`, `encoding`; else the text is read as for models of ours, else pretokenized.

    Raises TextError, ModelError and SettingsError, each with the file.
    """
    names, given = _fit_options(models, streams, weights)
    threads, precision = fit_option(Threads, threads, "threads"), fit_option(Precision, precision, "precision")
    check_output(output, bool(streams), oov)
    parts = [open_part(path, threads, stage) for path in models]
    digests = [digest(path) for path in models] if output is not None else []
    mixture = Mixture(parts, [1 / len(names)] * len(parts), oov)
    scored = _scored(text, mixture, streams, tokenizer_of(parts, **reading), threads, stage)
    with computing():
        best, iterations = (given, 0) if given is not None else best_weights(scored.table, precision, told)
        found = _mixed(names, scored, best, iterations, mixture)
    if output is not None:
        save(Path(output), names, found.weights, digests)
    return found


def _fit_options(
    models: Sequence[PathLike], streams: Sequence[PathLike], weights: Sequence[float] | None
) -> tuple[list[str], Array | None]:
    """Return all names, and the weights as an array; raises SettingsError where they are none."""
    names = [*fit_option(tuple[str, ...], models, "models"), *fit_option(tuple[str, ...], streams, "stream")]
    if not names:
        raise SettingsError("there is nothing to mix; name a model, or a stream with --stream")
    return names, None if weights is None else _fit_weights(weights, len(names))


def _fit_weights(weights: Sequence[float], wanted: int) -> Array:
    found = fit_option(tuple[Share, ...], weights, "weights")
    if len(found) != wanted or abs(sum(found) - 1) > ROUNDED:
        message = f"there are {len(found)}, which sum to {sum(found):g}, for {wanted} models and streams"
        raise SettingsError(f"--weights takes one for each, in order, with commas between, whose sum is 1; {message}")
    return np.array(found)


def _scored(
    text: PathLike, mixture: Mixture, streams: Sequence[PathLike], tokenizer: Tokenizer, threads: int, stage: Stage
) -> _Text:
    """Score a text with every model and stream, a block of it at a time."""
    tables, unknown, count = [], [], 0
    with ExitStack() as stack:
        source, *others = stack.enter_context(spooled([text, *streams]))
        aligned = [stack.enter_context(closing(Aligned(other, tokenizer.settings.lowercase))) for other in others]
        progress = stack.enter_context(stage(f"scoring {source.name}", source.size))
        for some in blocks(stack.enter_context(closing(tokenizer.sentences([source], threads, progress)))):
            table, strange = _rows(some, mixture, aligned)
            tables.append(table)
            unknown.append(strange)
            count += len(some)
        for stream in aligned:
            stream.end()
    return _Text(np.concatenate(tables), np.concatenate(unknown), count)


def _rows(sentences: list[list[str]], mixture: Mixture, aligned: list[Aligned]) -> tuple[Array, NDArray[np.bool_]]:
    """Return log p of each word (N, M) in each model and stream, and which words are unknown (N,)."""
    words = [word for sentence in sentences for word in (*sentence, SENTENCE_END)]
    taken = [stream.take(words) for stream in aligned]
    columns = [np.array([each.log_p for each in stream])[:, None] for stream in taken]
    strange = [np.array([each.unknown for each in stream]) for stream in taken]
    if mixture.parts:
        columns.insert(0, mixture.part_log_probs(sentences))
        strange.insert(0, np.array(mixture.unknown(words)))
    table = np.concatenate(columns, axis=1)
    mikolov = mixture.oov == "mikolov"  # there, known are the words to which all give something
    unknown = np.isneginf(table).any(axis=1) if mikolov else np.all(strange, axis=0)
    return table, unknown & (np.array(words, object) != SENTENCE_END)


def _mixed(names: list[str], text: _Text, weights: Array, iterations: int, mixture: Mixture) -> Mixed:
    """Sum up what each model and the mixture give to the text."""
    table, unknown = text.table, text.unknown
    here = table.max(axis=1) > -math.inf
    counted = int(np.count_nonzero(here))
    alone = table
    if mixture.oov == "mikolov":  # a word that all lack is left out; alone, the network pays for those that it lacks
        table, unknown = table[here], unknown[here]
        alone = table.copy()
        alone[np.isneginf(alone[:, 0]), 0] = _PENALTY
    if not np.count_nonzero(~unknown):
        raise TextError("no model knows any word of the text; name models of its language")
    words = len(text.table) - text.sentences
    strange = int(np.count_nonzero(unknown))

    def score(log_p: Array) -> Score:
        return Score(text.sentences, words, strange, len(log_p), float(log_p.sum()), float(log_p[~unknown].sum()))

    scores = tuple(score(column) for column in alone.T)
    return Mixed(
        tuple(names),
        tuple(weights.tolist()),
        scores,
        score(mixed(table, weights)),
        counted,
        iterations,
        mixture.lacking,
        tuple(name for name, part in zip(names, mixture.parts, strict=False) if part.carries_state),
    )
