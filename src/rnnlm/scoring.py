"""How well a model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.formats import Scored
from rnnlm.model import IGNORED, SENTENCE_END, Array, LanguageModel, Workspace, log_probabilities, runs
from rnnlm.ranks import ONE, Ranks
from rnnlm.text import Line

WINDOW_NUMBERS = 2**24  # the output layer holds so many numbers at once, V for each position of a window
POSITIONS = 1024  # and more positions than this make its products no faster
RANKED = 16  # positions whose words one thread ranks at a time
STREAMS = 64  # sentences side by side, where each starts from zero


@dataclass(frozen=True)
class Score:
    """How well a text was predicted.

    A prediction is that of a word or of the `</s>` which ends a sentence; `<s>` is never predicted. An unknown word is
    predicted as `<unk>`, one word with the probability of all that it stands for, which flatters a small vocabulary:
    so there is a second figure, in which predictions of `<unk>` count neither in the sum nor in the number. The words
    after an unknown one count in both, and `<unk>` is what they are predicted from.
    """

    sentences: int
    words: int  # `</s>` is none
    unknown: int  # words that are read as <unk>
    predictions: int  # words + sentences
    log_likelihood: float  # log of the text's probability, in nats
    known_log_likelihood: float  # the same without the predictions of <unk>; NaN where they were not told apart

    @property
    def perplexity(self) -> float:
        """The inverse of a prediction's probability, geometric mean: e^(-log_likelihood / predictions)."""
        return _perplexity(self.log_likelihood, self.predictions)

    @property
    def perplexity_excluding_unknown(self) -> float:
        """The same over the predictions whose target is not `<unk>`."""
        return _perplexity(self.known_log_likelihood, self.predictions - self.unknown)

    @property
    def bits_per_prediction(self) -> float:
        """The mean of -log2 p over all predictions, those of `</s>` included: the logarithm of `perplexity`."""
        return -self.log_likelihood / self.predictions / math.log(2)

    def to_json(self) -> dict[str, float | int | None]:
        """Return what `rnnlm evaluate --json` prints; None for a figure that is no finite number."""
        figures = {
            name: getattr(self, name) for name in ("perplexity", "perplexity_excluding_unknown", "bits_per_prediction")
        }
        finite = {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
        counts = {name: getattr(self, name) for name in ("sentences", "words", "unknown", "predictions")}
        return {**finite, **counts}


def _perplexity(log_likelihood: float, predictions: int) -> float:
    try:
        return math.exp(-log_likelihood / predictions)
    except OverflowError:
        return math.inf


def perplexity(
    model: LanguageModel,
    corpus: Corpus,
    work: Workspace,
    *,
    unknown_id: int | None = None,
    streams: int | None = None,
    window: int | None = None,
    progress: Callable[[int], object] | None = None,
    ranks: Ranks = ONE,
) -> Score:
    """Score a text: every prediction once, its loss summed in float64.

    `unknown_id` is the id of `<unk>`, None where no figure without unknown words is wanted. `streams` sequences are
    read side by side, `window` steps at once; both are chosen for speed and change a figure by rounding only, but for
    one case: a model that carries its state from sentence to sentence would begin each further stream in the middle
    of the text from a state of zero, so that 1, the default for such models, alone is exact. `progress` is told the
    number of predictions made since its last call.

    The streams are shared among `ranks`; one that is read by itself, whose states follow one from the other, is read by
    all, and the words of its windows are scored by one after the other. Each has the same Score.

    Raises TextError when the text has no sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to score: the text has no sentences; name another file")
    positions = positions_at_once(model)
    if streams is None:
        streams = 1 if model.settings.carry_state else min(ranks.size * min(STREAMS, positions), corpus.sentences)
    read = windows(corpus, streams, max(1, positions // -(-streams // ranks.size)) if window is None else window)
    shared = read.streams >= ranks.size
    read.columns = ranks.columns(read.streams) if shared else read.columns
    states, total, known = model.start(read.columns.stop - read.columns.start), 0.0, 0.0
    for number, (inputs, targets) in enumerate(read):
        if shared or number % ranks.size == ranks.rank:
            (losses, states), _ = model.losses(inputs, targets, states, work)
            total += float(losses.sum(dtype=np.float64))  # 0 where ignored
            if unknown_id is not None:
                known += float(losses.sum(dtype=np.float64, where=targets != unknown_id))
        else:
            (_, states), _ = model.read(inputs, states, work)
        if progress:
            progress(read.predictions(number))
    total, known = ranks.totals(total, known)
    known = math.nan if unknown_id is None else known
    return Score(corpus.sentences, corpus.words, corpus.unknown, corpus.predictions, -total, -known)


def positions_at_once(model: LanguageModel, ranks: bool = False) -> int:
    """Return how many positions are read at once: fewer where `ranks` need all words of each, several times."""
    return min(POSITIONS, max(1, WINDOW_NUMBERS // (4 if ranks else 1) // model.settings.words))


class Scorer(Protocol):
    """Whatever gives sentences probabilities: a model of ours or of another program, a mixture of several."""

    @property
    def words(self) -> Collection[str]:
        """Return what it predicts under its own name: `</s>`, but not `<unk>`."""
        ...

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p (n + 1,), in nats, of each of a sentence's n words and of the `</s>` behind them.

        Each sentence is read by itself. Raises ModelError where a probability is no number.
        """
        ...

    def next_log_probs(self, words: Sequence[str]) -> dict[str, float]:
        """Return log p, in nats, of each word and of `<unk>` and `</s>` after the words that begin a sentence."""
        ...

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Say which words are read as `<unk>`, the literal `<unk>` among them."""
        ...


# From sentences of words to an array (F, n + 1) for each: log p in nats and, if asked for, ranks and entropies in nats.
Reader = Callable[[Sequence[Sequence[str]]], Sequence[NDArray[Any]]]


def scored(lines: Sequence[Line], reader: Reader, unknown: Callable[[Sequence[str]], list[bool]]) -> list[Scored]:
    """Return the probabilities of lines; `unknown` is that of a Scorer."""
    found = reader([line.words for line in lines])
    return [
        Scored(line.text, line.words, unknown(line.words), figures[0], line.spans, *figures[1:])
        for line, figures in zip(lines, found, strict=True)
    ]


def sentence_losses(
    model: LanguageModel, sentences: Sequence[NDArray[np.int32]], work: Workspace
) -> list[NDArray[np.float32]]:
    """Return -log p, in nats, of each word of sentences, read each by itself from a state of zero.

    A sentence is its ids (n,), the last of which is `</s>`; so are its losses. Sentences of like length are read side
    by side, which changes a figure by rounding only.
    """
    return [figures[0] for figures in sentence_figures(model, sentences, work)]


def sentence_figures(
    model: LanguageModel, sentences: Sequence[NDArray[np.int32]], work: Workspace, ranks: bool = False
) -> list[Array]:
    """Do as `sentence_losses`, and return for each sentence what `window_figures` gives (F, n)."""
    result, positions = [np.empty(0)] * len(sentences), positions_at_once(model, ranks)
    for numbers, x, y in side_by_side(sentences, positions):
        if len(x) > positions:  # in parts
            result[numbers[0]], _ = text_figures(model, y[:, 0], model.start(1), work, ranks)
            continue
        found, _ = window_figures(model, x, y, model.start(len(numbers)), work, ranks)
        for stream, number in enumerate(numbers):
            result[number] = found[:, : len(sentences[number]), stream].copy()
    return result


def side_by_side(sentences: Sequence[NDArray[np.int32]], positions: int) -> Iterator[tuple[list[int], Array, Array]]:
    """Yield the numbers (B,) of sentences of like length, and the words x and targets y (T, B) of all of them.

    There are `positions` in x, unless a sentence alone has more. Where a sentence has ended, y is IGNORED.
    """
    order, place = sorted(range(len(sentences)), key=lambda number: len(sentences[number]), reverse=True), 0
    while place < len(order):
        longest = len(sentences[order[place]])
        numbers = order[place : place + max(1, positions // longest)]
        place += len(numbers)
        y = np.full((longest, len(numbers)), IGNORED, np.int32)
        for stream, number in enumerate(numbers):
            y[: len(sentences[number]), stream] = sentences[number]
        x = np.full_like(y, SENTENCE_END)
        x[1:] = np.maximum(y[:-1], SENTENCE_END)
        yield numbers, x, y


def word_losses(model: LanguageModel, ids: NDArray[np.int32], work: Workspace) -> NDArray[np.float32]:
    """Return -log p (N,), in nats, of each word of a text (N,) whose sentences end in `</s>`."""
    losses: NDArray[np.float32] = text_figures(model, ids, model.start(1), work)[0][0]
    return losses


def text_figures(
    model: LanguageModel, ids: NDArray[np.int32], states: Array, work: Workspace, ranks: bool = False
) -> tuple[Array, Array]:
    """Return what `window_figures` gives, (F, N), for a text (N,) read from states (L, M, 1, H), and those after."""
    positions = positions_at_once(model, ranks)
    read = np.concatenate(([SENTENCE_END], ids[:-1])).astype(np.int32)
    result = []
    for part in runs(0, len(ids), positions):
        found, states = window_figures(model, read[part, None], ids[part, None], states, work, ranks)
        result.append(found[:, :, 0].copy())
    return np.concatenate(result, axis=1), states


def window_figures(
    model: LanguageModel, x: Array, y: Array, states: Array, work: Workspace, ranks: bool = False
) -> tuple[Array, Array]:
    """Return what is known of each target of a window, and the states after it.

    Takes words x and targets y (T, B), some of them perhaps IGNORED, and the states before (L, M, B, H). The figures
    (F, T, B) are -log p in nats and, with `ranks`, the target's rank among all words, from 1, and the entropy of the
    distribution in nats; F is 1 or 3. Of words equally likely the one with the lower id is before the other.
    """
    if not ranks:
        (losses, states), _ = model.losses(x, y, states, work)
        return losses[None], states
    (s, states), _ = model.read(x, states, work)
    V, c, cutoffs = model.parameters["V"], model.parameters["c"], model.settings.cutoffs
    log_p = log_probabilities(s.reshape(y.size, -1), V, c, cutoffs, work)  # (N, words)
    targets, result = np.maximum(y.reshape(-1), 0), np.empty((3, y.size))

    def fill(rows: slice) -> None:
        result[:, rows] = _ranked(log_p[rows], targets[rows])

    work.each(fill, runs(0, y.size, RANKED))
    return result.reshape(3, *y.shape), states


def _ranked(log_p: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return -log p and the ranks of targets y (n,) in log p (n, V), and the entropies."""
    own = log_p[np.arange(len(y)), y]
    before = np.count_nonzero(log_p > own[:, None], axis=1)
    ties = log_p == own[:, None]
    alike = [np.count_nonzero(row[:word]) for row, word in zip(ties, y, strict=True)]  # and of lower ids
    entropy = -np.einsum("nv,nv->n", np.exp(log_p), log_p)
    return -own, 1 + before + alike, entropy
